"""Transforms of samples."""

import re

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.decoding import decode_image
from mae.data.transforms import PreTrainingTransform
from tests.support.samples import CONFIG, encode, picture, png_of_16_bits, sample


def test_images_that_cannot_be_decoded(emoji_bytes):
    whole = encode(picture(size=(200, 100)), "JPEG")
    bomb = png_of_16_bits(np.zeros((1, 1), np.uint16), size=(20_000, 20_000))
    for data, message in [
        (b"", "no image"),
        (whole[: len(whole) // 2], "truncated|[Cc]orrupt|premature|[Ee]nd of"),
        (emoji_bytes[0][: len(emoji_bytes[0]) // 2], "truncated|broken"),
        (bomb, "exceeds limit"),
        (b"<html></html>", "no image of a known"),
    ]:
        example = SampleDataset(PreTrainingTransform(CONFIG))[sample(data)]
        assert "pixel_values" not in example
        assert re.search(message, example["skipped"]), example["skipped"]


def test_augmentation_is_torchvisions(emoji_bytes):
    # The second implementation: torchvision's own transforms under the same generator state.
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    flips = 0
    for seed in range(20):
        example = SampleDataset(PreTrainingTransform(CONFIG))[sample(emoji_bytes[0], seed=seed)]
        torch.manual_seed(seed)
        expected = transform(decode_image(emoji_bytes[0]))
        assert torch.equal(example["pixel_values"], expected)
        assert torch.equal(example["noise"], torch.rand(CONFIG.num_patches))
        flips += not torch.equal(expected, transform(decode_image(emoji_bytes[0])))
    assert flips > 0


def test_decode_is_pure(emoji_bytes):
    torch.manual_seed(0)
    first = SampleDataset(PreTrainingTransform(CONFIG))[sample(emoji_bytes[0])]
    untouched = torch.rand(())
    torch.manual_seed(0)
    assert untouched == torch.rand(())
    again = SampleDataset(PreTrainingTransform(CONFIG))[sample(emoji_bytes[0])]
    assert torch.equal(first["pixel_values"], again["pixel_values"]) and first["digest"] == again["digest"]


def test_digest_covers_what_it_says(emoji_bytes):
    def digest(config=CONFIG, **changes):
        return SampleDataset(PreTrainingTransform(config))[sample(emoji_bytes[0])._replace(**changes)]["digest"]

    other_ratio = MAEConfig(**{**CONFIG.to_dict(), "mask_ratio": 0.5})
    digests = [
        digest(),
        digest(epoch=1),
        digest(position=6),
        digest(origin=("other", 5)),
        digest(origin=("file", 6)),
        digest(seed=12),
        digest(config=other_ratio),
    ]
    assert len(set(digests)) == len(digests)
