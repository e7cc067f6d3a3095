"""Normalization."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from configuration_mae import MAEConfig
from mae.data.folders import open_folder
from mae.data.normalization import denormalize, measure_statistics
from mae.data.order import SampleOrder
from mae.utils.errors import UserError
from patches_mae import normalize
from tests.support.samples import CONFIG, BrokenSource, encode


def test_normalize_and_back():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = v2.functional.normalize(images / 255, mean=CONFIG.image_mean, std=CONFIG.image_std)
    torch.testing.assert_close(normalize(images, CONFIG), expected)
    torch.testing.assert_close(denormalize(normalize(images, CONFIG), CONFIG), images / 255)
    plain = MAEConfig(num_channels=4)
    four = torch.randint(0, 256, (2, 4, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalize(four, plain), four / 255)


def test_measured_statistics_are_those_of_numpy(tmp_path):
    """Against numpy over the same images, which are so large that a crop does not matter; one is unreadable."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (24, 3), dtype=np.uint8)
    for number, colour in enumerate(colours):
        Image.new("RGB", (64, 64), tuple(map(int, colour))).save(tmp_path / f"{number:02}.png")
    (tmp_path / "99.png").write_bytes(b"no image")
    source = open_folder(str(tmp_path), "--train_dir")
    order = SampleOrder(source.group_sizes, seed=0, lanes=5)
    mean, std, count, missing = measure_statistics(source, order, CONFIG, count=1000)
    assert count == 24
    np.testing.assert_allclose(mean, colours.mean(0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, colours.std(0) / 255, atol=1e-6)
    assert measure_statistics(source, order, CONFIG, count=1000) == (mean, std, count, 0)
    assert measure_statistics(source, order, CONFIG, count=10)[2] <= 10
    grey = [encode(Image.new("RGB", (8, 8), "grey"), "PNG")] * 8
    with pytest.raises(UserError, match="single value"):
        measure_statistics(BrokenSource(grey), SampleOrder([8], seed=0), CONFIG, count=8)
    with pytest.raises(UserError, match="has nothing to measure"):
        measure_statistics(BrokenSource([b""] * 8), SampleOrder([8], seed=0), CONFIG, count=8)
