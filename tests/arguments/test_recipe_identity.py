"""What run.json holds of a recipe, against a literal table: a stored run can be resumed only if it stays the same."""

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe, recipe_identity


WIDTHS = {
    "B": {},
    "L": {"hidden_size": 1024, "num_attention_heads": 16},
    "H": {"hidden_size": 1280, "num_attention_heads": 16},
}
# What run.json holds under "recipe" for the default flags. A stored run can be resumed only if this stays.
SHARED = {
    "train_val_split": None, "seed": 42, "learning_rate": None, "max_grad_norm": None, "ema_decay": None,
    "max_steps": -1, "warmup_ratio": None, "lanes": 8, "shuffle_buffer_size": 4096,
}  # fmt: skip
PRE_TRAINING = SHARED | {
    "base_learning_rate": 1.5e-4, "weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.95,
    "num_train_epochs": 800, "warmup_epochs": 40,
}  # fmt: skip
FINE_TUNING = SHARED | {
    "protocol": "finetune", "num_trainable_blocks": None, "from_scratch": False, "max_train_samples": None,
    "base_learning_rate": 5e-4, "weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "num_train_epochs": 100, "warmup_epochs": 5, "augmentation": "randaugment", "randaugment_magnitude": 9,
    "min_crop_area": 0.08, "random_erasing": 0.25, "mixup_alpha": 0.8, "cutmix_alpha": 1.0,
    "label_smoothing_factor": 0.1, "drop_path_rate": 0.1, "layer_decay": 0.65,
}  # fmt: skip
LARGE = {"base_learning_rate": 1e-3, "num_train_epochs": 50, "layer_decay": 0.75}
SCRATCH = {
    "from_scratch": True, "base_learning_rate": 1e-4, "weight_decay": 0.3, "adam_beta2": 0.95, "layer_decay": 1.0,
    "num_train_epochs": 300, "warmup_epochs": 20, "ema_decay": 0.9999,
}  # fmt: skip
LINEAR = {
    "protocol": "linear", "base_learning_rate": None, "learning_rate": 6.4, "weight_decay": 0.0, "adam_beta2": 0.0,
    "num_train_epochs": 90, "warmup_epochs": 10, "augmentation": "none", "random_erasing": 0.0,
    "label_smoothing_factor": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "drop_path_rate": 0.0, "layer_decay": 1.0,
}  # fmt: skip


def config(size="B"):
    return MAEConfig(**WIDTHS[size])


def test_identity_of_pre_training_holds_table_8():
    assert recipe_identity(PreTrainingRecipe()) == PRE_TRAINING


@pytest.mark.parametrize(
    ("flags", "size", "expected"),
    [
        ({}, "B", {}),
        ({}, "L", LARGE | {"drop_path_rate": 0.2}),
        ({}, "H", LARGE | {"drop_path_rate": 0.3}),
        ({"protocol": "partial", "num_trainable_blocks": 4}, "B", {"protocol": "partial", "num_trainable_blocks": 4}),
        ({"from_scratch": True}, "B", SCRATCH),
        ({"from_scratch": True}, "H", SCRATCH | {"drop_path_rate": 0.2, "num_train_epochs": 200}),
        ({"protocol": "linear"}, "L", LINEAR),
    ],
)
def test_identity_of_classification_holds_tables_9_to_11(flags, size, expected):
    assert recipe_identity(ClassificationFlags(**flags).resolve(config(size))) == FINE_TUNING | expected


def test_identity_leaves_out_flags_that_it_holds_in_another_form():
    named = {
        "dataset_name": "data", "dataset_revision": "abc", "streaming": False, "image_column_name": "image",
        "cache_dir": "/cache", "model_name_or_path": "model", "image_size": [32], "patch_size": [8],
        "image_mean": ["0.5"], "image_std": ["0.5"], "config_overrides": "hidden_size=192", "mask_ratio": 0.5,
        "norm_pix_loss": True, "max_train_samples": 5,
    }  # fmt: skip
    assert recipe_identity(PreTrainingRecipe(**named)) == PRE_TRAINING


def test_identity_has_steps_instead_of_epochs():
    expected = PRE_TRAINING | {"max_steps": 7}
    del expected["num_train_epochs"]
    assert recipe_identity(PreTrainingRecipe(max_steps=7, num_train_epochs=3)) == expected


def test_identity_has_warmup_steps_only_if_given():
    assert recipe_identity(PreTrainingRecipe(warmup_steps=3)) == PRE_TRAINING | {"warmup_steps": 3}
