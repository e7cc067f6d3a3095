"""Flags of training on a pre-trained encoder: what excludes each other, and how a recipe fills them in."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.segmentation import SegmentationFlags
from mae.arguments.transfer import fill_in
from mae.utils.errors import UserError


DATA = {"dataset_name": "x"}
RECIPE = {"num_train_epochs": 100, "warmup_epochs": 5, "layer_decay": (0.6, 0.7, 0.8), "base_learning_rate": 1.0}


@pytest.mark.parametrize("kind", [ClassificationFlags, SegmentationFlags])
@pytest.mark.parametrize(
    "values, message",
    [
        ({"protocol": "partial"}, "--num_trainable_blocks"),
        ({"num_trainable_blocks": 1}, "--protocol partial"),
        ({"from_scratch": True, "protocol": "linear"}, "--from_scratch"),
        ({"from_scratch": True, "model_name_or_path": "x"}, "--model_name_or_path"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**DATA, **values)


@pytest.mark.parametrize("size, expected", [("base", 0.6), ("large", 0.7), ("huge", 0.8)])
def test_recipe_has_a_value_for_the_size_of_the_model(size, expected):
    assert fill_in(ClassificationFlags(), RECIPE, MAEConfig.from_size(size))["layer_decay"] == expected


def test_flag_wins_over_a_recipe_and_a_shorter_run_warms_up_for_its_share():
    config = MAEConfig.from_size("base")
    values = fill_in(ClassificationFlags(layer_decay=0.9, num_train_epochs=20), RECIPE, config)
    assert values["layer_decay"] == 0.9 and values["warmup_epochs"] == 1
    assert fill_in(ClassificationFlags(max_steps=50), RECIPE, config)["warmup_ratio"] == 0.05
    assert fill_in(ClassificationFlags(num_train_epochs=200), RECIPE, config)["warmup_epochs"] == 5
