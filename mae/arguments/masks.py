"""Flags that choose masks and their classes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mae.arguments.data import DataArguments
from mae.arguments.flags import DATA, Arguments, flag
from mae.utils.errors import UserError


# The identity of a run holds the fingerprint of the masks, and what became of their values.
_data = partial(flag, changes_results=False, group=DATA)


@dataclass
class MaskFlags(Arguments):
    """Flags that choose the masks of some images."""

    train_mask_dir: str | None = _data(
        None,
        "Folder of the masks of --train_dir. Files have the names of their images, without the extension.",
        is_path=True,
        default_words="none",
    )
    validation_mask_dir: str | None = _data(
        None, "Folder of the masks of --validation_dir.", is_path=True, default_words="none"
    )
    mask_column_name: str | None = _data(
        None,
        "Column that holds the masks, as images or arrays.",
        default_words="mask, label or another usual name",
    )
    id2label: str | None = _data(
        None,
        'JSON file with the names of the classes, {"0": "background", "1": "road"}, and with their colors for masks '
        'in colour, {"0": {"name": "background", "color": "#000000"}}.',
        is_path=True,
        default_words="the values that occur in the training masks",
    )
    ignore_value: int = _data(255, "Value in masks of pixels that do not count. -1 if there is none.")
    reduce_labels: bool = _data(
        False,
        "Value 0 in masks does not count, and the classes are the other values minus 1, as in ADE20K.",
        aliases=("--do_reduce_labels",),
    )

    def check(self) -> None:
        super().check()
        if not -1 <= self.ignore_value < 2**16:
            raise UserError(f"--ignore_value {self.ignore_value} must be from 0 to 65535, or -1 if there is none.")


def check_masked_data(data: Any, masks: MaskFlags) -> None:
    """
    Check that flags name images and masks.

    Raises:
        UserError: if they do not.
    """
    for images, folder in (("train_dir", "train_mask_dir"), ("validation_dir", "validation_mask_dir")):
        has_images, has_masks = getattr(data, images) is not None, getattr(masks, folder) is not None
        if has_images != has_masks:
            raise UserError(f"--{images} and --{folder} go together. Give both, or neither.")
    if data.train_dir is None and data.dataset_name is None:
        raise UserError(
            "No data is named. Pass --train_dir with --train_mask_dir, or --dataset_name with columns of images and "
            "masks."
        )
    if data.train_dir is not None and masks.mask_column_name is not None:
        raise UserError(f"--mask_column_name {masks.mask_column_name} is for --dataset_name, not for --train_dir.")


@dataclass
class MaskedDataArguments(MaskFlags, DataArguments):
    """Flags that choose images with masks."""

    dataset_name: str | None = _data(
        None,
        "Parquet data set with columns of images and masks: a name on the Hub, a folder, a file or a pattern.",
        is_path=True,
        default_words="none",
    )
    mask_column_name: str | None = _data(
        None,
        "Column that holds the masks, as images or arrays.",
        default_words="mask, label or another usual name",
        aliases=("--label_column_name",),
    )

    def check(self) -> None:
        super().check()
        check_masked_data(self, self)
