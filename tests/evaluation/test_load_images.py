"""Images for evaluation."""

import torch

from configuration_mae import MAEConfig
from mae.data.opening import open_dataset
from mae.evaluation.reconstruction import load_images
from tests.support.samples import CONFIG


def test_load_images(parquet_folder):
    _, held_out = open_dataset(str(parquet_folder))
    images = load_images(held_out, CONFIG, count=8)
    assert images.shape == (8, 3, 32, 32) and torch.equal(images, load_images(held_out, CONFIG, count=8))
    assert len(load_images(held_out, CONFIG, count=100)) == 12
    wide = MAEConfig(image_size=(16, 48), patch_size=8)
    assert load_images(held_out, wide, count=2).shape == (2, 3, 16, 48)
