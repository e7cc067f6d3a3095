"""Recipes of classification: the paper's tables, and flags that win over them."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.utils.errors import UserError


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
    "values, message",
    [
        ({"config_overrides": "num_labels=3"}, "--config_overrides num_labels"),
        ({"randaugment_magnitude": 11}, "--randaugment_magnitude 11"),
    ],
)
def test_impossible_flag_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        ClassificationFlags(**values)
