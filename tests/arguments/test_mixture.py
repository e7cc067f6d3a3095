"""Flags of mixtures."""

import pytest

from mae.arguments.recipes import PreTrainingRecipe
from mae.utils.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_name": ["a"], "dataset_weights": [1.0]}, "--dataset_weights needs several"),
        ({"dataset_name": ["a", "b"], "dataset_weights": [1.0]}, "--dataset_weights 1 must be 2 positive numbers"),
        ({"train_dir": ["a", "b"], "dataset_weights": [1.0, 0.0]}, "--dataset_weights 1 0 must.*--train_dir"),
        ({"dataset_name": ["a", "b"], "dataset_revision": "v1"}, "--dataset_revision v1.*a@REVISION"),
        ({"dataset_name": ["a", "a"]}, "--dataset_name a a names a data set twice"),
        ({"dataset_name": ["a", "b"], "train_dir": ["c"]}, "exclude each other"),
    ],
)
def test_impossible_mixture_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        PreTrainingRecipe(**flags)


def test_single_name_is_a_text():
    assert PreTrainingRecipe(dataset_name=["a"]).dataset_name == "a"
    assert PreTrainingRecipe(train_dir="b").train_dir == "b"
