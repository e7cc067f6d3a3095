"""Rectangles, other channels, and position tables of other sizes."""

import math

import pytest
import torch

from modeling_mae import (
    MAEForImageClassification,
    resample_positions,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_model


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("image_size, patch_size", [((24, 40), 8), ((32, 32), (4, 8)), ((48, 16), (16, 4))])
def test_rectangles_and_other_channels_give_outputs_of_their_size(image_size, patch_size, channels):
    fields = {"image_size": image_size, "patch_size": patch_size, "num_channels": channels, "num_labels": 5}
    images = make_images(*image_size, channels=channels)
    outputs = tiny_model(**fields)(images)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    num_patches = image_size[0] // height * (image_size[1] // width)
    assert outputs.logits.shape == (2, num_patches, height * width * channels)
    assert outputs.mask.shape == (2, num_patches) and outputs.loss.isfinite()
    assert tiny_model(MAEForImageClassification, **fields)(images).logits.shape == (2, 5)


def cubic_matrix(old, new):
    """Rows of bicubic weights (a = -0.75, align_corners=False, borders clamped) from `old` to `new` samples."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x, a = abs(place - tap), -0.75
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(tap, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize("new_grid", [(7, 9), (2, 3), (4, 12), (4, 6)])
def test_resampled_positions_equal_bicubic_interpolation(new_grid):
    table = torch.randn(1, 25, 8)
    resampled = resample_positions(table, (4, 6), new_grid)
    patches = table[0, 1:].double().view(4, 6, 8)
    rows, columns = cubic_matrix(4, new_grid[0]), cubic_matrix(6, new_grid[1])
    expected = torch.einsum("ya,xb,abd->yxd", rows, columns, patches).flatten(0, 1)
    assert_close(resampled[0, 1:], expected.float())
    assert torch.equal(resampled[0, 0], table[0, 0])


def test_resampled_positions_keep_dtype():
    table = torch.randn(1, 17, 8)
    resampled = resample_positions(table.bfloat16(), (4, 4), (6, 6))
    assert resampled.dtype == torch.bfloat16
    assert_close(resampled, resample_positions(table.bfloat16().float(), (4, 4), (6, 6)).bfloat16(), 0)


@pytest.mark.parametrize("size", [(48, 48), (16, 40)])
def test_interpolated_positions_equal_those_of_a_resized_model(size):
    model = tiny_model(num_labels=5)
    images = make_images(*size)
    num_patches = size[0] * size[1] // 64
    noise = make_noise(2, num_patches)
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} .*32 x 32.*interpolate_pos_encoding=True"):
        model(images, noise=noise)
    outputs = model(images, noise=noise, interpolate_pos_encoding=True)
    assert outputs.logits.shape == (2, num_patches, 192)

    # A model of that size with resampled tables gives the same output.
    other = tiny_model(image_size=size)
    weights = model.state_dict()
    for key in ("mae.pos_embed", "decoder.pos_embed"):
        weights[key] = resample_positions(weights[key], (4, 4), (size[0] // 8, size[1] // 8))
    other.load_state_dict(weights)
    assert_close(other(images, noise=noise).logits, outputs.logits)
    model.resize_positions(size)
    assert model.config.image_size == size and model.config.num_patches == num_patches
    assert_close(model(images, noise=noise).logits, outputs.logits)
    assert not model.mae.pos_embed.requires_grad and not model.decoder.pos_embed.requires_grad


def test_classifier_that_interpolates_equals_a_resized_one():
    model = tiny_model(MAEForImageClassification)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model(make_images(48, 48))
    logits = model(make_images(48, 48), interpolate_pos_encoding=True).logits
    model.resize_positions(48)
    assert_close(model(make_images(48, 48)).logits, logits)
    assert model.mae.pos_embed.requires_grad
