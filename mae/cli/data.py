"""Data sets from flags."""

import logging
from pathlib import Path

from mae.arguments.data import DataArguments, FeatureArguments
from mae.arguments.recipes import ClassificationRecipe
from mae.data.folders import open_folder
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.opening import open_dataset
from mae.data.sources import Source
from mae.data.subsets import CachedSource
from mae.utils.errors import UserError


logger = logging.getLogger(__name__)


def open_sources(
    data: DataArguments, num_channels: int, retry_minutes: float, default: str | None = None
) -> tuple[Source, Source | None]:
    """
    The training images that flags name, and the held-out ones where the data has them.

    Args:
        default: The data set where they name none.
    """
    if data.train_dir is not None:
        source, held_out = open_folder(data.train_dir, "--train_dir", num_channels), None
        if data.validation_dir is not None:
            held_out = open_folder(data.validation_dir, "--validation_dir", num_channels)
        return source, held_out
    name = data.dataset_name or default
    if name is None:
        raise UserError("Name the data: --dataset_name, or --train_dir with a folder of images for each class.")
    return open_dataset(
        name,
        data.dataset_config_name,
        data.image_column_name,
        data.dataset_revision,
        retry_minutes,
        data.streaming,
    )


def open_labelled(
    data: ClassificationRecipe | FeatureArguments,
    num_channels: int,
    retry_minutes: float,
    max_eval_samples: int | None = None,
    default: str | None = None,
) -> tuple[tuple[Source, Labels], tuple[Source, Labels]]:
    """
    The training images that flags name, and the held-out ones, with their labels.

    Raises:
        UserError: where there are no held-out images, and as [`read_labels`].
    """
    source, held_out = open_sources(data, num_channels, retry_minutes, default)
    flag = "--train_dir" if data.train_dir is not None else "--dataset_name"
    what = f"{flag} {getattr(data, flag[2:]) or default}"
    labels = read_labels(source, what, data.label_column_name)
    check_classes(labels, what)
    if held_out is not None and data.train_val_split is None:
        flag = "--validation_dir" if data.train_dir is not None else "--dataset_name, its held-out split,"
        train, held = (source, labels), (held_out, read_labels(held_out, flag, data.label_column_name, labels.names))
    elif data.train_val_split is not None:
        if held_out is not None:
            logger.info(
                "Note: as --train_val_split says, training images are held out, and the data's own are not looked at."
            )
        train, held = hold_out_labelled(source, labels, data.train_val_split, data.seed)
    else:
        other = "--validation_dir" if data.train_dir is not None else "a data set with a validation split"
        raise UserError(f"There are no held-out images to evaluate on: --train_val_split 0.1, or {other}.")
    if data.max_train_samples is not None and data.max_train_samples < len(train[1].values):
        some, labels = select(
            *train, stratified_sample(train[1], data.max_train_samples, data.seed, "training samples")
        )
        train = CachedSource(some), labels
    if max_eval_samples is not None and max_eval_samples < len(held[1].values):
        held = select(*held, stratified_sample(held[1], max_eval_samples, 0, "held-out samples"))
    return train, held


def short_data_name(data: DataArguments) -> str:
    """What the data is called where others read it."""
    if data.train_dir is None and data.dataset_name is None:
        return "the Noto emoji"
    path = Path(data.train_dir or data.dataset_name).expanduser()
    return f"the images of {path.resolve().name if path.exists() else path}"


def data_name(data: DataArguments, revision: str | None, default: str | None = None) -> str:
    """The flags that name the data, to be printed."""
    if data.train_dir is not None:
        return f"--train_dir {data.train_dir}"
    name = f"--dataset_name {data.dataset_name or default}"
    for flag, value in (
        ("dataset_config_name", data.dataset_config_name),
        ("dataset_revision", revision),
        ("image_column_name", data.image_column_name),
    ):
        name += f" --{flag} {value}" if value is not None else ""
    return name if data.streaming else f"{name} --no_streaming"
