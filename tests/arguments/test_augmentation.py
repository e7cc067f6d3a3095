"""Flags of augmentation."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe, recipe_identity
from mae.arguments.run import PreTrainingArguments
from mae.cli.parser import parse_arguments
from mae.utils.errors import UserError
from tests.support.data import ROOT


CHANGES = {
    "crop": "center", "min_crop_area": 0.5, "max_crop_area": 0.9, "min_crop_ratio": 1.0, "max_crop_ratio": 1.0,
    "horizontal_flip": 0.0, "vertical_flip": 0.5, "rot90": True, "color_jitter": 1.0, "grayscale_prob": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_flag_belongs_to_the_identity_if_it_is_not_the_default(name):
    """So that runs from before these flags can be resumed."""
    without = recipe_identity(PreTrainingRecipe())
    assert not CHANGES.keys() & without.keys()
    assert recipe_identity(PreTrainingRecipe(**{name: CHANGES[name]})) == without | {name: CHANGES[name]}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crop": "centre"}, "--crop centre must be one of random_resized, random, center, none"),
        ({"min_crop_area": 0.5, "max_crop_area": 0.4}, "--min_crop_area 0.5 must not exceed --max_crop_area 0.4"),
        ({"min_crop_ratio": 2}, "--min_crop_ratio 2 must not exceed --max_crop_ratio 1.333"),
        ({"crop": "random", "min_crop_area": 0.5}, "--min_crop_area 0.5 is for --crop random_resized"),
        ({"crop": "none", "max_crop_ratio": 2}, "--max_crop_ratio 2 is for --crop random_resized"),
        ({"vertical_flip": 1.5}, "--vertical_flip 1.5 must be in"),
        ({"color_jitter": -1}, "--color_jitter -1 must not be negative"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PreTrainingRecipe(**values)


def test_classification_takes_the_same_flags():
    flags = ClassificationFlags(model_name_or_path="a", crop="random", vertical_flip=0.5)
    recipe = flags.resolve(MAEConfig())
    # Without an area, so that the file that a run writes is a recipe again.
    assert (recipe.crop, recipe.vertical_flip, recipe.min_crop_area) == ("random", 0.5, None)
    assert ClassificationFlags(model_name_or_path="a").resolve(MAEConfig()).min_crop_area == 0.08
    assert recipe.augmentation_set() == ["vertical_flip", "crop"]
    with pytest.raises(UserError, match="--min_crop_area 0.3 is for"):
        ClassificationFlags(model_name_or_path="a", crop="random", min_crop_area=0.3)


def test_crop_on_the_command_line_replaces_the_box_of_a_recipe():
    """The recipe for radiographs has areas and ratios of random resized crops."""
    argv = ["--recipe", str(ROOT / "examples" / "recipes" / "radiograph.yaml"), "--crop", "random"]
    recipe, _ = parse_arguments(PreTrainingRecipe, PreTrainingArguments, description="", argv=argv)
    assert recipe.augmentation_set() == ["horizontal_flip", "crop", "color_jitter"] and recipe.min_crop_area == 0.2
