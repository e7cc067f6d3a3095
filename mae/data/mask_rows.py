"""Masks of the rows of a source: found in a folder or in a column, and all checked before training."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Image

from mae.data.cells import ARRAY_FEATURES
from mae.data.decoding import DecodingError, EncodedImage
from mae.data.folders import IMAGE_EXTENSIONS, open_folder
from mae.data.masks import ClassTable, MaskCoding, RawMask, check_array, make_coding, read_mask, show_value
from mae.data.opening import find_image_column
from mae.data.sources import ImageFileSource, Source
from mae.utils.distributed import count_cores
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from mae.utils.progress import ProgressBar
from mae.utils.text import listed


MASK_EXTENSIONS = IMAGE_EXTENSIONS | {".npy"}
# Columns that hold masks if no flag says so, the most usual names first.
_USUAL_NAMES = ("mask", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask", "masks")
# Values that are kept of a mask column: a photo instead of masks would have as many as pixels.
_MAX_VALUES = 2000


class Masks(ABC):
    """The masks of the rows of a source, in their order."""

    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def read(self, row: int) -> RawMask:
        """The mask of a row. A `DecodingError` if it is damaged."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What errors call the mask of a row."""

    @abstractmethod
    def __getitem__(self, rows: np.ndarray) -> "Masks":
        """The masks of some rows."""


class MaskFiles(Masks):
    """
    Masks in files.

    Args:
        paths: A path for each row.
        fingerprint: A hash that changes with their content.
    """

    def __init__(self, paths: np.ndarray, fingerprint: str):
        self.paths = paths
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> RawMask:
        return read_mask(str(self.paths[row]), self.name(row))

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def __getitem__(self, rows: np.ndarray) -> "MaskFiles":
        return MaskFiles(self.paths[rows], hash_key(self.fingerprint, rows.astype(np.int64).tobytes()).hex())


class MaskColumn(Masks):
    """
    Masks in a column, which Arrow holds in memory as they were stored.

    Args:
        source: Its rows have the masks.
        column: Name of the column.
        values: The column.
        rows: Numbers of the rows in the column (default: all).
    """

    def __init__(self, source: Source, column: str, values: pa.ChunkedArray, rows: np.ndarray | None = None):
        self.source = source
        self.column = column
        self.values = values
        self.rows = np.arange(len(source)) if rows is None else rows
        self.fingerprint = hash_key("masks", source.fingerprint, column, self.rows.astype(np.int64).tobytes()).hex()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> RawMask:
        value = self.values[int(self.rows[row])].as_py()
        if isinstance(value, dict):  # an image
            value = value.get("bytes") or value.get("path")
        if not value if not isinstance(value, np.ndarray) else not value.size:
            raise UserError(f"{self.name(row)} has no mask. Leave such rows out.")
        if isinstance(value, (bytes, str)):
            return read_mask(value, self.name(row))
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "biuf":
            raise UserError(f"The mask {self.name(row)} is no array of numbers.")
        return check_array(array, self.name(row))

    def name(self, row: int) -> str:
        ((file, number),) = self.source.row_origins(self.rows[[row]])
        return f"{file} row {number}, column {self.column},"

    def __getitem__(self, rows: np.ndarray) -> "MaskColumn":
        return MaskColumn(self.source, self.column, self.values, self.rows[rows])


def find_mask_columns(
    features: dict[str, Any], image_column_name: str | None, mask_column_name: str | None
) -> tuple[str, str]:
    """
    The columns of images and of masks.

    Raises:
        UserError: if there are none, or several.
    """
    if mask_column_name is None:
        candidates = [name for name in features if _may_be_masks(features[name]) and name != image_column_name]
        usual = [name for name in _USUAL_NAMES if name in candidates]
        if not usual:
            raise UserError(
                "The data has no column of masks by a usual name. Choose one with --mask_column_name. Columns: "
                f"{', '.join(features) or 'none'}."
            )
        mask_column_name = usual[0]
    elif mask_column_name not in features:
        raise UserError(f"--mask_column_name {mask_column_name} does not exist. Columns: {', '.join(features)}.")
    elif not _may_be_masks(features[mask_column_name]):
        kind = getattr(features[mask_column_name], "dtype", type(features[mask_column_name]).__name__)
        raise UserError(
            f"--mask_column_name {mask_column_name} holds {kind}. Masks are images (PNG), or arrays of whole numbers."
        )
    others = {name: feature for name, feature in features.items() if name != mask_column_name}
    return find_image_column(others, image_column_name), mask_column_name


def _may_be_masks(feature: Any) -> bool:
    return isinstance(feature, (Image, *ARRAY_FEATURES))


def read_mask_column(source: Source, column: str) -> MaskColumn:
    """The masks of a source that is opened whole, in one of its columns."""
    return MaskColumn(source, column, source.read_column(column))


def match_folder(images: ImageFileSource, folder: str, flag: str, images_flag: str) -> MaskFiles:
    """
    The masks of images in another folder: the files of the same name, relative to the folder and without extension.

    Raises:
        UserError: if an image has no mask, or a mask no image.
    """
    masks = open_folder(folder, flag, extensions=MASK_EXTENSIONS)
    place_of: dict[str, int] = {}
    for number, name in enumerate(masks.names):
        stem = os.path.splitext(name)[0]
        if stem in place_of:
            twins = f"{masks.names[place_of[stem]]} and {name}"
            raise UserError(f"{flag} {folder} has two masks of one name, {twins}. Keep one of them.")
        place_of[stem] = number
    stems = [os.path.splitext(name)[0] for name in images.names]
    without = [name for name, stem in zip(images.names, stems) if stem not in place_of]
    left = [name for name in masks.names if os.path.splitext(name)[0] not in set(stems)]
    if without:
        raise UserError(
            f"{len(without):,} of {len(stems):,} images have no mask. The first is {without[0]}, for which {flag} "
            f"{folder} should hold {os.path.splitext(without[0])[0]}.png. Masks have the names of their images."
        )
    if left:
        raise UserError(
            f"{len(left):,} of {len(masks.names):,} masks have no image. The first is {left[0]} in {flag} {folder}. "
            f"Remove them, or add their images to {images_flag}."
        )
    if len(set(stems)) < len(stems):
        twice = next(name for name, stem in zip(images.names, stems) if stems.count(stem) > 1)
        raise UserError(f"{images_flag} has several images of the name of {twice}, for one mask. Rename one of them.")
    return MaskFiles(np.array([masks.paths[place_of[stem]] for stem in stems]), masks.fingerprint)


@dataclass
class MaskStatistics:
    """
    What masks hold.

    Args:
        pixels: Raw value -> number of pixels.
        masks: Raw value -> number of masks that have it.
        first: Raw value -> row of the first of them.
        is_colour: Whether raw values are colours; None if there is no readable mask.
        first_readable: Row of the first readable mask.
        unreadable: Reason for each row whose mask is damaged.
    """

    pixels: dict[int, int] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    is_colour: bool | None = None
    first_readable: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)


def scan_masks(masks: Masks, source: Source, what: str) -> MaskStatistics:
    """
    Read every mask once, with a progress bar. If the images are on this machine, sizes are compared with theirs.

    Args:
        what: The flag that names the masks, for errors.

    Raises:
        UserError: if masks have sizes of their own, or some have colours and others values, or are no masks.
    """
    statistics, sizes = MaskStatistics(), iter(())
    if source.revision is None:
        groups = (group for group, size in enumerate(source.group_sizes) if size)
        sizes = (image for group in groups for image in source.read(group, 0))

    def read(row: int, image: bytes | str | None) -> tuple[int, RawMask | None, str | None, tuple | None]:
        try:
            mask = masks.read(row)
        except DecodingError as error:
            return row, None, str(error), None
        return row, mask, None, _size_of(image)

    shown = {"desc": f"reading masks, {what}", "unit": "mask", "leave": False}
    wrong_sizes = []
    with ProgressBar(total=len(masks), **shown) as bar, ThreadPoolExecutor(max(count_cores(), 1)) as pool:
        rows = range(len(masks))
        for chunk in _chunks(rows, 64):
            images = [next(sizes, None) for _ in chunk]
            for row, mask, reason, size in pool.map(read, chunk, images):
                bar.update()
                if mask is None:
                    statistics.unreadable[row] = reason
                    continue
                if size is not None and size != mask.values.shape:
                    wrong_sizes.append((row, mask.values.shape, size))
                _count(statistics, masks, row, mask, what)
    if wrong_sizes:
        row, (height, width), (image_height, image_width) = wrong_sizes[0]
        raise UserError(
            f"{what}: {len(wrong_sizes):,} masks differ in size from their images. The first is {masks.name(row)} of "
            f"{width} x {height} pixels, whose image has {image_width} x {image_height}."
        )
    return statistics


def _chunks(rows: range, size: int) -> Iterator[range]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _size_of(image: bytes | str | None) -> tuple[int, int] | None:
    """(height, width) of an image; None if it is not known, or the image cannot be read, which training reports."""
    if image is None:
        return None
    try:
        encoded = EncodedImage(image)
    except DecodingError:
        return None
    return encoded.height, encoded.width


def _count(statistics: MaskStatistics, masks: Masks, row: int, mask: RawMask, what: str) -> None:
    if statistics.is_colour is None:
        statistics.is_colour, statistics.first_readable = mask.is_colour, row
    elif statistics.is_colour != mask.is_colour:
        kinds = ("values", "colours") if mask.is_colour else ("colours", "values")
        names = masks.name(statistics.first_readable), masks.name(row)
        raise UserError(
            f"{what}: {names[0]} has {kinds[0]}, and {names[1]} has {kinds[1]}. Masks must be of one kind."
        )
    if mask.values.dtype == np.uint8:
        counts = np.bincount(mask.values.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(mask.values, return_counts=True)
    if len(values) > _MAX_VALUES:
        kind = "colours" if mask.is_colour else "values"
        raise UserError(f"{what}: {masks.name(row)} has {len(values):,} {kind}, and looks like a photo, not a mask.")
    for value, count in zip(values.tolist(), counts.tolist()):
        statistics.pixels[value] = statistics.pixels.get(value, 0) + count
        statistics.masks[value] = statistics.masks.get(value, 0) + 1
        statistics.first.setdefault(value, row)


def check_masks(statistics: MaskStatistics, masks: Masks, what: str, coding: MaskCoding, origin: str) -> list[str]:
    """
    Check that masks hold the classes of a coding; returns the names of those that occur.

    Args:
        what: The flag that names the masks, for errors.
        origin: Where the classes come from, for errors.

    Raises:
        UserError: if no mask can be read, masks have values that are no class, or no pixel counts.
    """
    if statistics.is_colour is None:
        reason = next(iter(statistics.unreadable.values()))
        raise UserError(f"{what}: none of the {len(masks):,} masks can be read. The first: {reason}.")
    if statistics.is_colour != coding.is_colour:
        kinds = ("colours", "values") if statistics.is_colour else ("values", "colours")
        raise UserError(f"{what}: the masks have {kinds[0]}, but those of training have {kinds[1]}.")
    unknown = sorted(statistics.pixels.keys() - coding.known)
    if unknown:
        value, number = unknown[0], statistics.masks[unknown[0]]
        more = f" {len(unknown) - 1:,} more values are no classes either." if len(unknown) > 1 else ""
        flags = "--id2label" if coding.is_colour else "--id2label, --ignore_value or --reduce_labels"
        raise UserError(
            f"{what}: {show_value(value, coding.is_colour)} is no class of {origin}. The number of masks that have it "
            f"is {number:,}, and the first is {masks.name(statistics.first[value])}.{more} Set {flags} as the masks "
            "need it."
        )
    found = [name for value, name in zip(coding.values, coding.names) if value in statistics.pixels]
    if not found:
        ignored = listed([show_value(value, coding.is_colour) for value in coding.ignored])
        raise UserError(
            f"{what}: all pixels of all {len(masks):,} masks are ignored ({ignored}). Check --ignore_value and "
            "--reduce_labels."
        )
    return found


def find_coding(
    statistics: MaskStatistics,
    masks: Masks,
    what: str,
    table: ClassTable | None,
    ignore_value: int | None,
    reduce_labels: bool,
) -> MaskCoding:
    """
    The coding of training masks: by a table of classes or, without one, by the values that occur.

    Raises:
        UserError: as [`make_coding`] and [`check_masks`] do, and if only one class occurs.
    """
    if table is None:
        table = _table_of_values(statistics, ignore_value, reduce_labels)
    coding = make_coding(table, ignore_value, reduce_labels, bool(statistics.is_colour), what)
    found = check_masks(statistics, masks, what, coding, table.origin)
    if len(found) == 1:
        raise UserError(
            f"{what}: all pixels that count are of one class ({found[0]}). There is nothing to learn from these masks."
        )
    return coding


def _table_of_values(statistics: MaskStatistics, ignore_value: int | None, reduce_labels: bool) -> ClassTable:
    """The values that occur, as classes without names."""
    ignored = {ignore_value, 0} if reduce_labels else {ignore_value}
    counted = sorted(statistics.pixels.keys() - ignored)
    if not counted:  # the check of the masks reports it
        counted = [1, 2]
    elif ignore_value in statistics.pixels and not reduce_labels:
        counted.append(ignore_value)  # for the error if there is a single other class
    return ClassTable({value - reduce_labels: str(value - reduce_labels) for value in counted})
