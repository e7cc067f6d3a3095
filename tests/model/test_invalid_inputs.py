"""Images, masks and sizes that do not fit are refused."""

import pytest
import torch

from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    check_pixel_values,
)
from tests.support.models import make_images, tiny_config, tiny_model


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((3, 32, 32), r"pixel_values.*\(3, 32, 32\)"),
        ((2, 1, 32, 32), "pixel_values.* 1 .* 3"),
        ((2, 3, 30, 32), "30 x 32 .* 8 x 8"),
        ((2, 3, 32, 30), "32 x 30 .* 8 x 8"),
        ((2, 3, 64, 32), "64 x 32 .* 32 x 32.*interpolate_pos_encoding=True"),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(cls, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(cls)(torch.randn(shape))


def test_check_pixel_values_returns_the_grid_of_any_size_that_patches_divide():
    config = tiny_config(image_size=(24, 40), patch_size=(8, 4))
    assert check_pixel_values(torch.empty(2, 3, 24, 40), config) == (3, 10)
    assert check_pixel_values(torch.empty(2, 3, 8, 60), config, any_size=True) == (1, 15)
    with pytest.raises(ValueError, match="8 x 60 .* 24 x 40"):
        check_pixel_values(torch.empty(2, 3, 8, 60), config)


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining])
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise": torch.rand(2, 15)}, r"noise.*\(2, 16\).*\(2, 15\)"),
        ({"noise": torch.rand(16)}, r"noise.*\(2, 16\).*\(16,\)"),
        ({"bool_masked_pos": torch.ones(1, 16)}, r"bool_masked_pos.*\(2, 16\).*\(1, 16\)"),
        ({"bool_masked_pos": torch.eye(16)[[0, 1]].cumsum(1)}, r"bool_masked_pos.*\[16, 15\]"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 .*\[0, 1\)"),
        ({"mask_ratio": -0.1}, r"mask_ratio=-0.1 .*\[0, 1\)"),
    ],
)
def test_invalid_mask_arguments_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(cls)(make_images(), **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask_ratio": 0}, "16 of 16.*mask_ratio"),
        ({"mask_ratio": 0.97}, " 0 of 16.*mask_ratio"),
        ({"bool_masked_pos": torch.zeros(2, 16)}, "16 of 16.*mask_ratio"),
        ({"bool_masked_pos": torch.ones(2, 16)}, " 0 of 16.*mask_ratio"),
    ],
)
def test_pretraining_mask_without_visible_or_removed_patches_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(make_images(), **arguments)


@pytest.mark.parametrize(
    "fields, message", [({"mask_ratio": 0.0}, "16 of 16.*mask_ratio"), ({"mask_ratio": 0.97}, " 0 of 16.*mask_ratio")]
)
def test_pretraining_model_with_such_a_mask_ratio_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MAEForPreTraining(tiny_config(**fields))
    MAEModel(tiny_config(**fields))  # the encoder allows it


def test_resize_to_a_size_that_does_not_fit_changes_nothing():
    model = tiny_model()
    with pytest.raises(Exception, match="image_size=33.*patch_size=8"):
        model.resize_positions(33)
    assert model.config.image_size == 32 and model.mae.pos_embed.shape[1] == 17
