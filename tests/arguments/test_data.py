"""Flags that choose the data."""

import pytest

from mae.arguments.data import DataArguments
from mae.arguments.flags import flags_of
from mae.utils.errors import UserError


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dataset_name": "a", "train_dir": "b"}, "--dataset_name and --train_dir"),
        ({"validation_dir": "b"}, "--validation_dir needs --train_dir"),
        ({"train_val_split": 1.0}, "--train_val_split 1.0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_data_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        DataArguments(**values)


def test_paths_of_the_data_may_start_with_a_tilde():
    paths = {name for name, declared in flags_of(DataArguments).items() if declared.is_path}
    assert paths == {"dataset_name", "train_dir", "validation_dir", "cache_dir"}


def test_place_of_the_data_is_not_in_the_identity_but_its_division_is():
    changing = {name for name, declared in flags_of(DataArguments).items() if declared.changes_results}
    assert changing == {"train_val_split", "seed"}
