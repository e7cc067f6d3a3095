"""Recipes of segmentation: the values for ADE20K, and flags that do not fit together."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.segmentation import SegmentationArguments, SegmentationFlags
from mae.utils.errors import UserError


FOLDERS = {"train_dir": "a", "train_mask_dir": "b"}


def resolve(size="base", **flags):
    return SegmentationFlags(**FOLDERS, **flags).resolve(MAEConfig.from_size(size))


def test_fine_tuning_has_the_values_for_ade20k():
    """Appendix A.4: 100 epochs at batch size 16; BEiT's code: a rate of 1e-4 there, layer decay 0.65 for B."""
    recipe = resolve()
    assert recipe.num_train_epochs == 100 and SegmentationArguments().per_device_train_batch_size == 16
    assert recipe.base_learning_rate * 16 / 256 == pytest.approx(1e-4)
    assert (recipe.layer_decay, recipe.drop_path_rate, recipe.weight_decay) == (0.65, 0.1, 0.05)
    assert (recipe.min_scale, recipe.max_scale, recipe.horizontal_flip, recipe.rot90) == (0.5, 2.0, 0.5, False)
    assert recipe.segmentation_head == "upernet" and recipe.color_jitter == 1
    assert resolve("large").layer_decay == 0.75 and resolve("huge").drop_path_rate == 0.3


def test_other_protocols_have_values_of_their_own():
    linear = resolve(protocol="linear")
    assert (linear.segmentation_head, linear.drop_path_rate, linear.layer_decay) == ("linear", 0, 1)
    scratch = resolve(from_scratch=True)
    assert scratch.layer_decay == 1 and scratch.num_train_epochs > 100
    assert resolve(protocol="linear", segmentation_head="upernet").segmentation_head == "upernet"


def test_images_of_many_channels_have_no_colours_to_change():
    flags = SegmentationFlags(**FOLDERS)
    assert flags.resolve(MAEConfig(num_channels=5)).color_jitter == 0
    assert flags.resolve(MAEConfig(num_channels=1)).color_jitter == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "No data is named"),
        ({"train_dir": "a"}, "--train_dir and --train_mask_dir go together"),
        ({**FOLDERS, "validation_dir": "a"}, "--validation_dir and --validation_mask_dir go together"),
        ({**FOLDERS, "mask_column_name": "mask"}, "--mask_column_name mask is for --dataset_name"),
        ({**FOLDERS, "min_scale": 2, "max_scale": 1}, "--min_scale 2 must not exceed --max_scale 1"),
        ({**FOLDERS, "ignore_value": -3}, "--ignore_value -3"),
        ({**FOLDERS, "config_overrides": "class_weights=1"}, "class_weights cannot be set"),
        ({**FOLDERS, "num_train_epochs": 0}, "--num_train_epochs 0"),
    ],
)
def test_impossible_flags_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        SegmentationFlags(**values)
