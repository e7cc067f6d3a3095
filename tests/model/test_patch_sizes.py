"""Patch projections at another patch size."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from patches_mae import resample_prediction, resample_projection
from tests.support.models import tiny_config, tiny_model


# resample_patch_embed of timm 1.0.31 for a weight (2, 3, 4, 6) drawn with torch.Generator().manual_seed(0):
#   {"weight": w, "8x12": resample_patch_embed(w, [8, 12]), "2x3": resample_patch_embed(w, [2, 3]),
#    "5x4": resample_patch_embed(w, [5, 4])}, saved by safetensors' save_file.
TIMM = load_file(Path(__file__).parents[1] / "fixtures" / "timm_resampled_patches.safetensors")


@pytest.mark.parametrize("size", [(8, 12), (2, 3), (5, 4)])
def test_projection_is_resampled_as_in_timm(size):
    found = resample_projection(TIMM["weight"], size)
    torch.testing.assert_close(found, TIMM[f"{size[0]}x{size[1]}"], rtol=1e-4, atol=1e-5)


def test_larger_patches_of_a_resized_patch_give_the_same_token():
    """What FlexiViT derives it from: a patch and the same patch resized have the same product."""
    patch, weight = torch.rand(1, 3, 4, 4), torch.randn(5, 3, 4, 4)
    resized = F.interpolate(patch, (12, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        F.conv2d(resized, resample_projection(weight, (12, 8))), F.conv2d(patch, weight), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [(4, 4), (16, 12)])
def test_prediction_is_the_resized_prediction(size):
    weight, bias, latent = torch.randn(8 * 8 * 3, 7), torch.randn(8 * 8 * 3), torch.randn(7)
    predicted = (weight @ latent + bias).view(8, 8, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(predicted, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).flatten()
    weight, bias = (resample_prediction(values, (8, 8), size) for values in (weight, bias))
    torch.testing.assert_close(weight @ latent + bias, expected, rtol=1e-4, atol=1e-4)


def test_model_of_larger_patches_gives_the_features_of_smaller_images(tmp_path):
    """Patches of 16 pixels on an image of twice the size, against patches of 8: closed form, the same tokens."""
    config = tiny_config(image_size=32, patch_size=8)
    MAEModel(config).save_pretrained(tmp_path)
    small = MAEModel.from_pretrained(tmp_path)
    large = MAEModel.from_pretrained(tmp_path, patch_size=16, image_size=64)
    images = torch.rand(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # resized one by one, because a resize looks across their edges
    resized = F.interpolate(patches.reshape(-1, 3 * 16, 8, 8), (16, 16), mode="bicubic", antialias=True)
    resized = resized.view(2, 3, 4, 4, 16, 16).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 64, 64)
    torch.testing.assert_close(large(resized).last_hidden_state, small(images).last_hidden_state, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification])
def test_resampled_model_is_saved_and_loaded_as_it_is(model_class, tmp_path, caplog):
    tiny_model(model_class).save_pretrained(tmp_path / "old")
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("transformers"), "propagate", True)
        model = model_class.from_pretrained(tmp_path / "old", patch_size=(4, 16))
    assert "resampled from patches of 8 x 8 pixels to 4 x 16" in caplog.text
    model.save_pretrained(tmp_path / "new")
    again = model_class.from_pretrained(tmp_path / "new")
    assert list(again.config.patch_size) == [4, 16] and again.config.image_size == model.config.image_size
    for name, values in again.state_dict().items():
        assert torch.equal(values, model.state_dict()[name]), name
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.mae(images).last_hidden_state, model.mae(images).last_hidden_state)
