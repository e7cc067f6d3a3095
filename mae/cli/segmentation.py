"""Images with masks, and the segmenter for them, from flags."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configuration_mae import MAEConfig
from mae.arguments.data import DataArguments
from mae.arguments.masks import MaskFlags
from mae.arguments.segmentation import SegmentationFlags, SegmentationRecipe
from mae.cli.data import describe_source, set_cache
from mae.cli.model import build_model
from mae.conversion.layouts import has_part
from mae.conversion.loading import load_checkpoint
from mae.conversion.report import LoadReport
from mae.conversion.weights import Weights
from mae.data.bands import Bands
from mae.data.folders import open_folder
from mae.data.mask_rows import (
    Masks,
    MaskStatistics,
    check_masks,
    find_coding,
    find_mask_columns,
    match_folder,
    read_mask_column,
    scan_masks,
)
from mae.data.masks import IGNORED, MaskCoding, read_class_table
from mae.data.opening import open_dataset
from mae.data.sources import Source
from mae.data.subsets import CachedSource, Subset, hold_out, take_rows
from mae.training.transfer import freeze_encoder
from mae.utils.errors import UserError, configuration_errors
from mae.utils.hashing import permutation
from mae.utils.text import listed
from modeling_mae import MAEForSemanticSegmentation


logger = logging.getLogger(__name__)

MaskedSource = tuple[Source, Masks]


@dataclass
class SegmentationData:
    """
    Images with masks.

    Args:
        train, validation: Images and their masks.
        coding: How values in masks become classes.
        pixels: Number of pixels of each class in the training masks.
        notes: For the console.
    """

    train: MaskedSource
    validation: MaskedSource
    coding: MaskCoding
    pixels: np.ndarray
    notes: list[str] = field(default_factory=list)


def open_masked_splits(
    data: DataArguments,
    flags: MaskFlags,
    bands: Bands,
    retry_minutes: float,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> SegmentationData:
    """
    The training images and the validation images, with their masks, of which each is read once.

    Validation images are those of --validation_dir or of the data's validation split. If there are none, the share
    --train_val_split of the training images is held out; without that flag a test split is used.

    Raises:
        UserError: if there are no validation images, if masks and images do not match, and if masks do not have the
            classes.
    """
    set_cache(data.cache_dir)
    table = None if flags.id2label is None else read_class_table(flags.id2label)
    train, validation = (_open_folders if data.train_dir is not None else _open_columns)(
        data, flags, bands, retry_minutes
    )
    what = f"--train_mask_dir {flags.train_mask_dir}" if data.train_dir is not None else describe_source(data)
    statistics = scan_masks(train[1], train[0], what)
    ignored = None if flags.ignore_value < 0 else flags.ignore_value
    coding = find_coding(statistics, train[1], what, table, ignored, flags.reduce_labels)
    if validation is not None:
        what = f"the validation masks of {what}"
        if data.train_dir is not None:
            what = f"--validation_mask_dir {flags.validation_mask_dir}"
        others = scan_masks(validation[1], validation[0], what)
        check_masks(others, validation[1], what, coding, "the training masks" if table is None else table.origin)
        if data.train_val_split is not None:
            logger.info("Note: --train_val_split has no effect, because the data has validation images.")
    elif data.train_val_split is not None:
        train, validation = _hold_out(*train, data.train_val_split, data.seed)
    else:
        other = "Pass --validation_dir and --validation_mask_dir"
        other = other if data.train_dir is not None else "Use a data set with a validation split"
        raise UserError(f"There are no validation images. {other}, or hold some out with --train_val_split 0.1.")
    train = _sample(*train, max_train_samples, data.seed, "training samples")
    validation = _sample(*validation, max_eval_samples, 0, "held-out samples")
    pixels = np.array([statistics.pixels.get(value, 0) for value in coding.values], dtype=np.int64)
    return SegmentationData(train, validation, coding, pixels, _notes(statistics, coding, pixels))


def _open_folders(
    data: DataArguments, flags: MaskFlags, bands: Bands, retry_minutes: float
) -> tuple[MaskedSource, MaskedSource | None]:
    def open_pair(images: str, masks: str) -> MaskedSource:
        folder, mask_folder = getattr(data, images), getattr(flags, masks)
        source = open_folder(folder, f"--{images}", bands)
        return source, match_folder(source, mask_folder, f"--{masks}", f"--{images} {folder}")

    train = open_pair("train_dir", "train_mask_dir")
    return train, None if data.validation_dir is None else open_pair("validation_dir", "validation_mask_dir")


def _open_columns(
    data: DataArguments, flags: MaskFlags, bands: Bands, retry_minutes: float
) -> tuple[MaskedSource, MaskedSource | None]:
    columns = {}

    def find_column(features: dict[str, Any], image_column_name: str | None) -> str:
        columns["image"], columns["mask"] = find_mask_columns(features, image_column_name, flags.mask_column_name)
        return columns["image"]

    # A test split is used for validation, unless images are held out for it.
    splits = ("validation", "test") if data.train_val_split is None else ("validation",)
    train, validation = open_dataset(
        data.dataset_name,
        data.dataset_config_name,
        data.image_column_name,
        data.dataset_revision,
        retry_minutes,
        data.streaming,
        splits,
        find_column,
    )
    if not columns:
        raise UserError(
            f"{describe_source(data)} is made of image files, which have no column of masks. Pass --no_streaming if "
            "`datasets` finds masks in it, or use two folders, --train_dir and --train_mask_dir."
        )
    pairs = [
        None if source is None else (source, read_mask_column(source, columns["mask"]))
        for source in (train, validation)
    ]
    return pairs[0], pairs[1]


def _hold_out(source: Source, masks: Masks, share: float, seed: int) -> tuple[MaskedSource, MaskedSource]:
    train, held_out = hold_out(source, share, seed)
    return (train, masks[_rows(train)]), (held_out, masks[_rows(held_out)])


def _rows(subset: Subset) -> np.ndarray:
    return np.asarray(subset.row_numbers())


def _sample(source: Source, masks: Masks, count: int | None, seed: int, purpose: str) -> MaskedSource:
    """Some images, which are kept in memory. None takes all images."""
    if count is None or count >= len(source):
        return source, masks
    rows = np.sort(permutation(len(source), seed, purpose)[:count])
    return CachedSource(take_rows(source, rows)), masks[rows]


def _notes(statistics: MaskStatistics, coding: MaskCoding, pixels: np.ndarray) -> list[str]:
    shares = pixels / pixels.sum()
    most = np.argsort(-shares, kind="stable")
    described = listed([f"{coding.names[number]} {shares[number]:.1%}" for number in most], most=10)
    notes = [f"{len(coding.names)} classes, by their share of the pixels that count: {described}"]
    missing = [name for name, count in zip(coding.names, pixels) if not count]
    if missing:
        notes.append(f"Note: {len(missing)} classes are in no training mask: {listed(missing)}.")
    if statistics.unreadable:
        reason = next(iter(statistics.unreadable.values()))
        notes.append(f"Note: {len(statistics.unreadable)} masks cannot be read. The first: {reason}.")
    return notes


def build_segmenter(
    flags: SegmentationFlags, weights: Weights | None, data: SegmentationData
) -> tuple[MAEForSemanticSegmentation, LoadReport | None, SegmentationRecipe]:
    """
    Build the segmenter that flags name, for the classes of some data. Returns it with the report of its loading, and
    with the recipe in which the model's size has decided the values that the flags leave open.

    Raises:
        UserError: if there is no model to start from, and as [`build_model`].
    """
    if weights is None and not flags.from_scratch:
        raise UserError(
            "--model_name_or_path is missing: it names the pre-trained model to start from. Pass --from_scratch to "
            "train random weights, the baseline."
        )
    names = data.coding.names
    defaults = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "num_labels": len(names),
        "problem_type": None,
        "segmentation_head": flags.head,
        "semantic_loss_ignore_index": IGNORED,
        "class_weights": choose_class_weights(flags.class_weights, data),
    }
    # As in BEiT's code, which the paper uses for UPerNet, its blocks have no norm in common. A frozen encoder's last
    # block needs one. A segmenter that training continues from keeps its own.
    if weights is None or not has_part(weights.tensors, "decode_head"):
        defaults["pooling"] = "mean" if flags.head == "upernet" else "cls"
    with configuration_errors(f"--segmentation_head {flags.head}: "):  # UPerNet needs four blocks
        model, report = build_model(flags, weights, MAEForSemanticSegmentation, defaults)
    recipe = flags.resolve(model.config)
    if report is not None:
        recipe.model_revision = report.revision
    model.mae.set_drop_path_rate(recipe.drop_path_rate)
    if recipe.protocol != "finetune":
        freeze_encoder(model, recipe.num_trainable_blocks or 0)
    return model, report, recipe


def choose_class_weights(words: list[str] | None, data: SegmentationData) -> list[float] | None:
    """
    Weights of classes as --class_weights asks for them.

    Raises:
        UserError: if they are no numbers, or not as many as there are classes.
    """
    if words is None:
        return None
    names = data.coding.names
    if words == ["balanced"]:
        # As in scikit-learn: the mean over all pixels is 1. A class that is in no mask has no share.
        present = data.pixels > 0
        return np.where(present, data.pixels.sum() / (present.sum() * np.maximum(data.pixels, 1)), 1.0).tolist()
    try:
        weights = [float(word) for word in words]
    except ValueError:
        weights = []
    if len(weights) != len(names):
        raise UserError(
            f"--class_weights {' '.join(words)} must be balanced, or {len(names)} numbers, for {listed(names)}."
        )
    return weights


# Using a segmenter


def load_segmenter(
    name: str, revision: str | None = None, retry_minutes: float = 0
) -> tuple[MAEForSemanticSegmentation, LoadReport]:
    """
    Load a segmenter for use, with the report of its loading.

    Raises:
        UserError: as [`load_checkpoint`], and if the checkpoint is of another model.
    """
    model, report = load_checkpoint(name, revision=revision, dtype=torch.float32, retry_minutes=retry_minutes)
    if not isinstance(model, MAEForSemanticSegmentation):
        raise UserError(
            f"--model {name} has no segmentation head: it is a {type(model).__name__}. Train one on it with "
            "examples/run_semantic_segmentation.py."
        )
    return model, report


def find_images(path: str, bands: Bands) -> dict[str, str]:
    """
    Image files by the names of their masks: the path within the folder, without extension unless two would be equal.

    Args:
        path: A file, or a folder.

    Raises:
        UserError: if there is none.
    """
    if os.path.isfile(path):
        return {Path(path).stem: path}
    source = open_folder(path, "--images", bands)
    stems = [os.path.splitext(name)[0] for name in source.names]
    counts = Counter(stems)
    names = [stem if counts[stem] == 1 else name for stem, name in zip(stems, source.names)]
    return dict(zip(names, source.paths))


def read_colours(path: str, config: MAEConfig) -> list[int]:
    """
    The colours of a model's classes, from a file of class names.

    Raises:
        UserError: if the file has no colours, or not those classes.
    """
    table = read_class_table(path)
    colours = {name: table.colours.get(number) for number, name in table.names.items()}
    names = [config.id2label[number] for number in range(config.num_labels)]
    missing = [name for name in names if colours.get(name) is None]
    if missing:
        raise UserError(f"--id2label {path} has no color for {listed(missing)}.")
    return [colours[name] for name in names]
