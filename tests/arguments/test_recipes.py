"""Recipes: the paper's tables, and what belongs to the identity of a run."""

import pytest

from mae.arguments.recipes import PreTrainingRecipe, Recipe, recipe_identity
from mae.utils.errors import UserError


def test_defaults_of_pre_training_are_those_of_table_8():
    recipe = PreTrainingRecipe()
    assert (recipe.base_learning_rate, recipe.weight_decay) == (1.5e-4, 0.05)
    assert (recipe.adam_beta1, recipe.adam_beta2) == (0.9, 0.95)
    assert (recipe.num_train_epochs, recipe.warmup_epochs) == (800, 40)
    assert recipe.max_grad_norm is None and recipe.ema_decay is None


@pytest.mark.parametrize(
    "given, epochs", [({}, 40), ({"warmup_ratio": 0.05}, 10), ({"warmup_steps": 50}, 100), ({"warmup_steps": 0}, 0)]
)
def test_warm_up_in_epochs(given, epochs):
    """Of 100 steps in 200 epochs."""
    assert Recipe(**given).warmup(200, 0.5) == pytest.approx(epochs)


def test_identity_holds_what_changes_results():
    first = recipe_identity(PreTrainingRecipe())
    assert {"weight_decay", "seed", "lanes", "num_train_epochs", "learning_rate"} <= first.keys()
    assert not {"train_dir", "model_name_or_path", "cache_dir", "warmup_steps"} & first.keys()
    assert recipe_identity(PreTrainingRecipe(weight_decay=0.1)) != first
    assert recipe_identity(PreTrainingRecipe(train_dir="elsewhere")) == first
    with_steps = recipe_identity(PreTrainingRecipe(max_steps=5, warmup_steps=1))
    assert "num_train_epochs" not in with_steps and with_steps["warmup_steps"] == 1


@pytest.mark.parametrize("kind", ["wsd", "constant_with_warmup"])
def test_length_of_a_run_that_can_grow_is_no_part_of_its_identity(kind):
    short = PreTrainingRecipe(lr_scheduler_type=kind, max_steps=5)
    assert recipe_identity(short) == recipe_identity(PreTrainingRecipe(lr_scheduler_type=kind, num_train_epochs=7))
    assert recipe_identity(short) != recipe_identity(PreTrainingRecipe(max_steps=5))
    assert "lr_scheduler_type" not in recipe_identity(PreTrainingRecipe())


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (PreTrainingRecipe, {"lr_scheduler_type": "linear"}, "--lr_scheduler_type linear must be one of cosine, con"),
        (PreTrainingRecipe, {"decay_ratio": 0.1}, "--decay_ratio 0.1 needs --lr_scheduler_type wsd"),
        (
            PreTrainingRecipe,
            {"lr_scheduler_type": "wsd", "warmup_ratio": 0.1},
            "--warmup_ratio 0.1 depends on the length .*Use --warmup_epochs",
        ),
        (PreTrainingRecipe, {"max_steps": 0}, "--max_steps 0"),
        (PreTrainingRecipe, {"num_train_epochs": 0}, "--num_train_epochs 0"),
        (PreTrainingRecipe, {"warmup_steps": 1, "warmup_ratio": 0.1}, "--warmup_steps and --warmup_ratio"),
    ],
)
def test_impossible_recipe_is_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_number_of_epochs_is_free_with_max_steps():
    assert PreTrainingRecipe(max_steps=5, num_train_epochs=0).max_steps == 5
