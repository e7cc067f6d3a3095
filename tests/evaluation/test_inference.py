"""A function of every image of a source, exactly once."""

import numpy as np
import pytest
import torch
from accelerate import PartialState

from mae.data.folders import open_folder
from mae.evaluation.inference import EvaluationBatches, map_images
from tests.support.samples import CONFIG, BrokenSource


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=True)


def run(source, batch_size=7, function=None, **options):
    calls = []

    def note(pixel_values, rows):
        calls.append(rows.tolist())
        return {"mean": pixel_values.mean(dim=(1, 2, 3)), "row": torch.from_numpy(rows)}

    images = EvaluationBatches(source, CONFIG, batch_size)
    return map_images(function or note, images, torch.device("cpu"), **options), calls


@pytest.mark.parametrize("batch_size", [1, 7, 60, 64])
def test_each_image_is_in_one_batch(batch_size, image_folder):
    outputs, calls = run(open_folder(str(image_folder), "--train_dir"), batch_size)
    assert sorted(row for rows in calls for row in rows) == list(range(60))
    assert all(len(rows) == batch_size for rows in calls[:-1]) and len(calls) == -(-60 // batch_size)
    assert outputs.rows.tolist() == outputs.outputs["row"].tolist() == list(range(60)) and not outputs.skipped


def test_size_of_the_batches_changes_no_output(image_folder):
    source = open_folder(str(image_folder), "--train_dir")
    first, second = (run(source, batch_size)[0].outputs["mean"] for batch_size in (7, 60))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_unreadable_images_are_left_out_and_named(emoji_bytes):
    outputs, _ = run(BrokenSource([emoji_bytes[0], b"no image", emoji_bytes[1], b""]))
    assert outputs.rows.tolist() == outputs.outputs["row"].tolist() == [0, 2]
    assert sorted(origin for origin, _ in outputs.skipped) == [("file", 1), ("file", 3)]


def test_batch_without_a_readable_image_still_calls_the_function():
    """A sharded model needs all ranks; its blank image leaves no output."""
    outputs, calls = run(BrokenSource([b"no image"] * 3), batch_size=2)
    assert calls == [[0], [0]] and len(outputs.rows) == 0 and len(outputs.skipped) == 3


def test_request_to_stop_ends_without_a_result(image_folder):
    source = open_folder(str(image_folder), "--train_dir")
    stops = iter([False, False, True])
    outputs, calls = run(source, should_stop=lambda: next(stops))
    assert outputs is None and len(calls) == 2


def test_progress_counts_images(image_folder):
    counts = []
    run(open_folder(str(image_folder), "--train_dir"), batch_size=25, progress=counts.append)
    assert counts == [25, 25, 10] and np.sum(counts) == 60
