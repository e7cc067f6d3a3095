"""Flags of masks: what is missing is named."""

import pytest

from mae.arguments.masks import MaskedDataArguments
from mae.utils.errors import UserError


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "--train_dir with --train_mask_dir, or --dataset_name"),
        ({"train_dir": "a"}, "--train_dir and --train_mask_dir go together"),
        ({"train_mask_dir": "a", "dataset_name": "b"}, "--train_dir and --train_mask_dir go together"),
        (
            {"train_dir": "a", "train_mask_dir": "b", "validation_dir": "c"},
            "--validation_dir and --validation_mask",
        ),
        ({"train_dir": "a", "train_mask_dir": "b", "mask_column_name": "m"}, "--mask_column_name m is for"),
        ({"dataset_name": "a", "ignore_value": -2}, "--ignore_value -2 must be from 0 to 65535, or -1"),
    ],
)
def test_flags_that_do_not_name_images_and_masks_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MaskedDataArguments(**fields).check()


def test_folders_or_a_data_set_are_accepted():
    MaskedDataArguments(train_dir="a", train_mask_dir="b").check()
    MaskedDataArguments(dataset_name="a", mask_column_name="m", ignore_value=-1).check()
