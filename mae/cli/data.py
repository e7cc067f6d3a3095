"""Open the data that flags name, in a training and a validation part."""

import logging
import sys
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import constants

from mae.arguments.classification import ProtocolArguments
from mae.arguments.data import DataArguments
from mae.arguments.model import FeatureArguments
from mae.arguments.tiles import TileArguments
from mae.cli.mixture import describe_shares, mixed_names, open_mixture, short_name
from mae.data.bands import Bands
from mae.data.folders import kinds_of_files, open_folder
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.opening import open_dataset
from mae.data.sources import Source
from mae.data.subsets import CachedSource, hold_out, take_rows
from mae.data.tiles import Tiling, cut_source
from mae.utils.errors import UserError
from mae.utils.hashing import permutation


logger = logging.getLogger(__name__)

LabelledSource = tuple[Source, Labels]

# What the embedded data are called in cards.
EMBEDDED_NAME = "the Noto emoji"


def embedded_data() -> Path:
    """The data set beside the running script, for commands that name no data."""
    return Path(sys.argv[0]).resolve().parent / "data" / "emoji"


def names_embedded_data(data: DataArguments) -> bool:
    """Whether flags name no data."""
    return data.train_dir is None and data.dataset_name is None


def set_cache(cache_dir: str | None) -> None:
    """Keep what is downloaded from the Hub in a folder; None leaves the folders as they are."""
    if cache_dir is not None:
        constants.HF_HUB_CACHE = cache_dir
        datasets.config.HF_DATASETS_CACHE = Path(cache_dir) / "datasets"


def open_splits(data: DataArguments, bands: Bands, retry_minutes: float) -> tuple[Source, Source | None]:
    """
    The training images, and the validation images if there are any.

    Validation images are those of --validation_dir or of the data's validation split. If there are none, the share
    --train_val_split of the training images is held out; without that flag a test split is used.

    Args:
        bands: What is read of image files.
    """
    train, validation = _open(data, bands, retry_minutes)
    if validation is None and data.train_val_split is not None:
        train, validation = hold_out(train, data.train_val_split, data.seed)
    count, total = getattr(data, "max_train_samples", None), len(train)
    if count is not None and count < total:
        rows = np.sort(permutation(total, data.seed, "training samples")[:count])
        train = CachedSource(take_rows(train, rows))
    return train, validation


def open_labelled_splits(
    data: ProtocolArguments | FeatureArguments,
    bands: Bands,
    retry_minutes: float,
    max_eval_samples: int | None = None,
) -> tuple[LabelledSource, LabelledSource]:
    """
    The training images and the validation images as [`open_splits`] has them, with their labels. Images that are held
    out, and the samples that --max_train_samples and --max_eval_samples ask for, are stratified by class.

    Raises:
        UserError: if there are no validation images, and as [`read_labels`] does.
    """
    source, validation = _open(data, bands, retry_minutes)
    column = data.label_column_name
    name = describe_source(data)
    labels = read_labels(source, name, column)
    check_classes(labels, name)
    train = source, labels
    if validation is not None:
        name = "--validation_dir" if data.train_dir is not None else f"the validation images of {name}"
        held_out = validation, read_labels(validation, name, column, labels.names)
    elif data.train_val_split is not None:
        train, held_out = hold_out_labelled(*train, data.train_val_split, data.seed)
    else:
        other = "Pass --validation_dir" if data.train_dir is not None else "Use a data set with a validation split"
        raise UserError(f"There are no validation images. {other}, or hold some out with --train_val_split 0.1.")
    train = _sample(*train, data.max_train_samples, data.seed, "training samples")
    return train, _sample(*held_out, max_eval_samples, 0, "held-out samples")


def _open(data: DataArguments, bands: Bands, retry_minutes: float) -> tuple[Source, Source | None]:
    """The training images, and the data's own images for validation unless --train_val_split replaces them."""
    set_cache(data.cache_dir)
    if mixed_names(data):
        train, validation = open_mixture(data, lambda part: _open_one(part, bands, retry_minutes))
    else:
        train, validation = _open_one(data, bands, retry_minutes)
    if validation is not None and data.train_val_split is not None:
        logger.info("Note: --train_val_split has no effect, because the data has validation images.")
    return train, validation


def _open_one(data: DataArguments, bands: Bands, retry_minutes: float) -> tuple[Source, Source | None]:
    """The training and validation images of a single data set."""
    if data.train_dir is not None:
        train, validation = _open_folder(data, "train_dir", bands), None
        if data.validation_dir is not None:
            validation = _open_folder(data, "validation_dir", bands)
    else:
        # A test split is used for validation, unless images are held out for it.
        splits = ("validation", "test") if data.train_val_split is None else ("validation",)
        train, validation = open_dataset(
            data.dataset_name or str(embedded_data()),
            data.dataset_config_name,
            data.image_column_name,
            data.dataset_revision,
            retry_minutes,
            data.streaming,
            splits,
        )
    return train, validation


def _open_folder(data: DataArguments, name: str, bands: Bands) -> Source:
    """The image files of the folder that a flag names, cut into tiles if flags ask for it."""
    folder, flag = getattr(data, name), f"--{name}"
    if not isinstance(data, TileArguments) or data.tile_size is None:
        return open_folder(folder, flag, bands)
    tiling = Tiling(data.tile_size, data.tile_overlap, data.max_empty_share)
    files = open_folder(folder, flag, bands, set().union(*kinds_of_files(bands)))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "mae_tiles"
    return cut_source(files, tiling, bands, cache, f"{flag} {folder}")


def _sample(source: Source, labels: Labels, count: int | None, seed: int, purpose: str) -> LabelledSource:
    """A sample that is stratified by class, and is kept in memory. None takes all images."""
    if count is None or count >= len(labels.values):
        return source, labels
    some, labels = select(source, labels, stratified_sample(labels, count, seed, purpose))
    return CachedSource(some), labels


def short_data_name(data: DataArguments) -> str:
    """The name of the data in cards, without the folders that it is in."""
    if names_embedded_data(data):
        return EMBEDDED_NAME
    if mixed_names(data):
        return describe_shares(data)
    return f"the images of {short_name(data.train_dir or data.dataset_name)}"


def describe_source(data: DataArguments) -> str:
    """The flag that names the data, for messages."""
    flag = "--train_dir" if data.train_dir is not None else "--dataset_name"
    return f"{flag} {' '.join(mixed_names(data)) or data.train_dir or data.dataset_name or embedded_data()}"


def data_name(data: DataArguments, revision: str | None) -> str:
    """
    The flags that name the data, for messages.

    Args:
        revision: Commit of the data on the Hub.
    """
    name = describe_source(data)
    if data.train_dir is not None:
        return name
    for flag, value in (
        ("dataset_config_name", data.dataset_config_name),
        ("dataset_revision", revision),
        ("image_column_name", data.image_column_name),
    ):
        name += f" --{flag} {value}" if value is not None else ""
    return name if data.streaming else f"{name} --no_streaming"
