"""For every augmentation, samples follow from their keys: workers, processes and restarts change nothing."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mae.data.batch import samples_digest
from mae.data.crop import CropOptions
from mae.data.dataset import SampleDataset
from mae.data.decoding import decode_image
from mae.data.loader import make_loader
from mae.data.opening import open_dataset
from mae.data.order import SampleOrder
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from tests.support.samples import CONFIG, assert_same, encode, picture, sample


# Every value of every flag, and each kind of crop with all that turns and recolours.
OPTIONS = [
    *((CropOptions(crop, rot90=True, vertical_flip=0.5), 1.0, 0.3) for crop in ("random_resized", "random")),
    *((CropOptions(crop, horizontal_flip=0.0, vertical_flip=1.0), 0.0, 0.5) for crop in ("center", "none")),
    (CropOptions(min_crop_area=0.6, max_crop_area=0.8, min_crop_ratio=1, max_crop_ratio=1), 2.0, 0.0),
]


def batches(source, options, workers=0, start=0, size=8, index=0, processes=1):
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(source, order, size, index, processes, start, stop=96)
    return list(make_loader(stream, SampleDataset(PreTrainingTransform(CONFIG, *options)), workers))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sequence_does_not_depend_on_workers_processes_or_restarts(options, parquet_folder):
    source = open_dataset(str(parquet_folder))[0]
    expected = batches(source, options)
    torch.manual_seed(99)
    assert_same(batches(source, options, workers=3), expected)
    for start in (24, 80):
        assert_same(batches(source, options, start=start), expected[start // 8 :])
    halves = [batches(source, options, size=4, index=index, processes=2) for index in range(2)]
    for step, whole in zip(zip(*halves), expected, strict=True):
        together = torch.cat([batch.digests for batch in step])
        assert samples_digest(together) == samples_digest(whole.digests)
        pixels = torch.stack([batch.pixel_values for batch in step], 1).flatten(0, 1)
        assert torch.equal(pixels, whole.pixel_values)


def test_each_flag_changes_the_digest(emoji_bytes):
    """Over a few samples, because a turn, for example, may be by 0 degrees."""
    every = [
        {}, {"crop": "random"}, {"crop": "center"}, {"crop": "none"}, {"min_crop_area": 0.5}, {"max_crop_area": 0.5},
        {"min_crop_ratio": 1}, {"max_crop_ratio": 1}, {"horizontal_flip": 0}, {"vertical_flip": 0.5}, {"rot90": True},
    ]  # fmt: skip
    every = [(CropOptions(**options),) for options in every]
    every += [(CropOptions(), 1.0), (CropOptions(), 0.5), (CropOptions(), 0.0, 0.3), (CropOptions(), 0.0, 0.4)]
    digests = []
    for options in every:
        dataset = SampleDataset(PreTrainingTransform(CONFIG, *options))
        digests.append(b"".join(dataset[sample(emoji_bytes[0], seed=seed)]["digest"] for seed in range(10)))
    assert all(one != other for one, other in itertools.combinations(digests, 2))


@pytest.mark.parametrize("size", [(80, 60), (20, 90), (10, 12)])
def test_crop_without_change_of_scale_takes_the_pixels_as_they_are(size):
    """Against slices of the decoded image: the pixels are there to the last bit, the rest has the mean colour."""
    data = encode(picture(size=size), "PNG")
    image, transform = decode_image(data), PreTrainingTransform(CONFIG, CropOptions("random", horizontal_flip=0))
    for seed in range(10):
        pixels = transform(sample(data, seed=seed))[0]["pixel_values"]
        _, (top, left, height, width, *_), _ = transform.draw(sample(data, seed=seed))
        row, column = (32 - height) // 2, (32 - width) // 2
        expected = np.full((3, 32, 32), np.round(255 * np.array(CONFIG.image_mean))[:, None, None])
        expected[:, row : row + height, column : column + width] = image[:, top : top + height, left : left + width]
        assert np.array_equal(pixels, expected)


def test_whole_image_is_resized_and_turned_as_by_torch():
    data = encode(picture(size=(80, 60)), "PNG")
    image = F.interpolate(decode_image(data)[None], (32, 32), mode="bicubic", antialias=True)[0]
    transform = PreTrainingTransform(CONFIG, CropOptions("none", horizontal_flip=0, rot90=True))
    seen = set()
    for seed in range(20):
        turns = transform.draw(sample(data, seed=seed))[1].turns
        pixels = transform(sample(data, seed=seed))[0]["pixel_values"]
        # Its sides are equal, so that it does not matter whether it is resized before or after it is turned.
        assert torch.equal(pixels, torch.rot90(image, turns, (1, 2)))
        seen.add(turns)
    assert seen == {0, 1, 2, 3}
