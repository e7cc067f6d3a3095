"""Recipes: the paper's tables, and what belongs to the identity of a run."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe, Recipe, recipe_identity
from mae.utils.errors import UserError


def test_defaults_of_pre_training_are_those_of_table_8():
    recipe = PreTrainingRecipe()
    assert (recipe.base_learning_rate, recipe.weight_decay) == (1.5e-4, 0.05)
    assert (recipe.adam_beta1, recipe.adam_beta2) == (0.9, 0.95)
    assert (recipe.num_train_epochs, recipe.warmup_epochs) == (800, 40)
    assert recipe.max_grad_norm is None and recipe.ema_decay is None


# From the paper: Table 9 (fine-tuning), Table 10 (linear probe), Table 11 (from scratch).
PAPER = {
    ("base", "finetune"): {"num_train_epochs": 100, "warmup_epochs": 5, "drop_path_rate": 0.1, "layer_decay": 0.65},
    ("large", "finetune"): {"num_train_epochs": 50, "warmup_epochs": 5, "drop_path_rate": 0.2, "layer_decay": 0.75},
    ("huge", "finetune"): {"num_train_epochs": 50, "warmup_epochs": 5, "drop_path_rate": 0.3, "layer_decay": 0.75},
    ("base", "linear"): {"num_train_epochs": 90, "warmup_epochs": 10, "weight_decay": 0, "mixup_alpha": 0},
    ("base", "scratch"): {"num_train_epochs": 300, "weight_decay": 0.3, "adam_beta2": 0.95, "ema_decay": 0.9999},
    ("large", "scratch"): {"num_train_epochs": 200, "warmup_epochs": 20, "drop_path_rate": 0.2, "layer_decay": 1},
}


@pytest.mark.parametrize("size, protocol", PAPER)
def test_classification_has_the_values_of_the_paper_for_the_model_s_size(size, protocol):
    chosen = {"from_scratch": True} if protocol == "scratch" else {"protocol": protocol}
    recipe = ClassificationFlags(**chosen).resolve(MAEConfig.from_size(size))
    assert {name: getattr(recipe, name) for name in PAPER[size, protocol]} == PAPER[size, protocol]
    if protocol == "finetune":
        assert (recipe.mixup_alpha, recipe.cutmix_alpha, recipe.label_smoothing_factor) == (0.8, 1.0, 0.1)
        assert (recipe.adam_beta2, recipe.weight_decay, recipe.augmentation) == (0.999, 0.05, "randaugment")


def test_flag_wins_over_the_paper():
    flags = ClassificationFlags(weight_decay=0.0, num_train_epochs=10, augmentation="none")
    recipe = flags.resolve(MAEConfig.from_size("base"))
    assert recipe.weight_decay == 0 and recipe.num_train_epochs == 10
    assert recipe.warmup_epochs == pytest.approx(5 * 10 / 100)  # the paper's share of a shorter run
    assert recipe.random_erasing == 0  # which is an augmentation too


def test_base_learning_rate_replaces_the_probe_s_absolute_one():
    config = MAEConfig.from_size("base")
    assert ClassificationFlags(protocol="linear").resolve(config).learning_rate == 6.4
    recipe = ClassificationFlags(protocol="linear", base_learning_rate=0.1).resolve(config)
    assert recipe.learning_rate is None and recipe.base_learning_rate == 0.1


@pytest.mark.parametrize(
    "given, epochs", [({}, 40), ({"warmup_ratio": 0.05}, 10), ({"warmup_steps": 50}, 100), ({"warmup_steps": 0}, 0)]
)
def test_warm_up_in_epochs(given, epochs):
    """Of 100 steps in 200 epochs."""
    assert Recipe(**given).warmup(100, 200) == pytest.approx(epochs)


def test_identity_holds_what_changes_results():
    first = recipe_identity(PreTrainingRecipe())
    assert {"weight_decay", "seed", "lanes", "num_train_epochs", "learning_rate"} <= first.keys()
    assert not {"train_dir", "model_name_or_path", "cache_dir", "warmup_steps"} & first.keys()
    assert recipe_identity(PreTrainingRecipe(weight_decay=0.1)) != first
    assert recipe_identity(PreTrainingRecipe(train_dir="elsewhere")) == first
    with_steps = recipe_identity(PreTrainingRecipe(max_steps=5, warmup_steps=1))
    assert "num_train_epochs" not in with_steps and with_steps["warmup_steps"] == 1


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (PreTrainingRecipe, {"max_steps": 0}, "--max_steps 0"),
        (PreTrainingRecipe, {"num_train_epochs": 0}, "--num_train_epochs 0"),
        (PreTrainingRecipe, {"warmup_steps": 1, "warmup_ratio": 0.1}, "--warmup_steps and --warmup_ratio"),
        (ClassificationFlags, {"protocol": "partial"}, "--num_trainable_blocks"),
        (ClassificationFlags, {"num_trainable_blocks": 1}, "--protocol partial"),
        (ClassificationFlags, {"config_overrides": "num_labels=3"}, "--config_overrides num_labels"),
        (ClassificationFlags, {"from_scratch": True, "protocol": "linear"}, "--from_scratch"),
        (ClassificationFlags, {"from_scratch": True, "model_name_or_path": "x"}, "--model_name_or_path"),
        (ClassificationFlags, {"randaugment_magnitude": 11}, "--randaugment_magnitude 11"),
    ],
)
def test_impossible_recipe_is_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_number_of_epochs_is_free_with_max_steps():
    assert PreTrainingRecipe(max_steps=5, num_train_epochs=0).max_steps == 5
