"""The nearest name to one that does not exist."""

import pytest

from mae.arguments.names import find_nearest, suggestion


NAMES = [
    "num_train_epochs",
    "warmup_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "output_dir",
    "mask_ratio",
]


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("mask_ration", "mask_ratio"),  # a letter too many
        ("mask-ratio", "mask_ratio"),
        ("MASK_RATIO", "mask_ratio"),
        ("train_batch_size", "per_device_train_batch_size"),  # whole words
        ("epochs", "num_train_epochs"),  # not warmup_epochs
        ("lr", "learning_rate"),  # a name of other projects
        ("batch_size", "per_device_train_batch_size"),
        ("zebra", None),
        ("", None),
    ],
)
def test_nearest_name(name, nearest):
    assert find_nearest(name, NAMES) == nearest


def test_synonym_is_suggested_only_where_the_flag_exists():
    assert find_nearest("lr", ["output_dir"]) is None
    assert find_nearest("x", []) is None


def test_suggestion_is_a_question_or_nothing():
    assert suggestion("mask_ration", NAMES, "--") == " Did you mean --mask_ratio?"
    assert suggestion("zebra", NAMES) == ""
