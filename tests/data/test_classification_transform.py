"""The transform of training a classifier."""

import io

import numpy as np
import torch
from PIL import Image

from configuration_mae import MAEConfig
from mae.data.crop import CropOptions
from mae.data.dataset import SampleDataset
from mae.data.normalization import normalize
from mae.data.stream import Sample
from mae.data.transforms import ClassificationTransform
from modeling_mae import make_image_processor
from tests.support.classification import SIZES


def examples_of(config, **options):
    return SampleDataset(ClassificationTransform(config, np.arange(9), **options))


def sample(data, seed=1, index=3):
    return Sample(0, 5, ("file", 0), seed, data, index)


def test_examples_are_functions_of_the_sample(emoji_bytes):
    config = MAEConfig(**SIZES, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    options = {"crop": CropOptions(min_crop_area=0.08), "randaugment_magnitude": 9, "random_erasing": 0.25}
    views = []
    for _ in range(2):
        torch.manual_seed(len(views))  # of no account
        views.append([examples_of(config, **options)[sample(emoji_bytes[0], seed)] for seed in range(20)])
    for one, other in zip(*views):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and one["digest"] == other["digest"]
        assert one["labels"] == 3 and one["pixel_values"].shape == (3, 32, 32)
    assert len({view["digest"] for view in views[0]}) == 20
    plain = examples_of(config)[sample(emoji_bytes[0])]["pixel_values"]
    processor = make_image_processor(config)
    rgb = Image.open(io.BytesIO(emoji_bytes[0])).convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    expected = processor(rgb, return_tensors="pt").pixel_values
    torch.testing.assert_close(normalize(plain[None], config), expected, rtol=0, atol=1e-6)


def test_erasing_is_noise_of_the_normalised_image(emoji_bytes):
    config = MAEConfig(**SIZES, image_mean=[0.3] * 3, image_std=[0.2] * 3)
    erased = []
    for seed in range(60):
        without = examples_of(config)[sample(emoji_bytes[0], seed)]["pixel_values"]
        pixels = examples_of(config, random_erasing=0.999)[sample(emoji_bytes[0], seed)]["pixel_values"]
        differs = (pixels - without).abs().amax(dim=0) > 0.01
        rows, columns = differs.any(1).nonzero().flatten(), differs.any(0).nonzero().flatten()
        if len(rows):
            box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            erased.append(normalize(pixels[None], config)[0][box].flatten())
            assert differs[box[1:]].float().mean() > 0.95
    noise = torch.cat(erased)
    assert len(erased) > 55 and abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
