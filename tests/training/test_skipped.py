"""Unreadable images: named once, warned of a few times, and too many of them end the run."""

import pytest
from accelerate import Accelerator

from mae.training.metrics import JsonLines
from mae.training.skipped import SkippedImages
from mae.utils.errors import DataError


@pytest.fixture
def skipped(tmp_path):
    return SkippedImages(JsonLines(tmp_path / "skipped.jsonl"), Accelerator(cpu=True))


def test_each_image_is_named_once_and_counted_each_time(skipped, caplog):
    images = [((f"{number}.png", 0), "broken") for number in range(7)]
    skipped.add(images[:2])
    skipped.add(images[:1])
    assert skipped.collect() == 3
    skipped.add(images)
    assert skipped.collect() == 7 and skipped.collect() == 0
    assert [line["file"] for line in skipped.log.read()] == [f"{number}.png" for number in range(7)]
    warnings = [record.message for record in caplog.records if "unreadable" in record.message]
    assert len(warnings) == 5 and "skipped.jsonl" in warnings[-1]


@pytest.mark.parametrize(
    ("num_skipped", "num_samples", "enough", "message"),
    [
        (8, 8, 1000, "None of the first 8 images"),
        (20, 1000, 1000, "20 of 1,000 samples"),
        (2, 8, 0, "2 of 8 samples"),
        (20, 999, 1000, None),  # not enough samples yet
        (10, 1000, 1000, None),  # the share that is allowed
    ],
)
def test_too_many_unreadable_images_end_the_run(skipped, num_skipped, num_samples, enough, message):
    skipped.name([(("scene.tif", 3), "it has 4 channels, but the model takes 5")] * num_skipped)
    if message is None:
        skipped.check(num_skipped, num_samples, enough, 0.01)
    else:
        with pytest.raises(DataError, match=f"{message}.*The first is scene.tif row 3: it has 4 channels"):
            skipped.check(num_skipped, num_samples, enough, 0.01)
