"""
Sources of images: lists of groups of addressable rows, with a fingerprint.

    ParquetSource        a group is a row group; read through `datasets` in streaming mode, bytes handed over as stored
    ImageFolderSource    a group is one file, read when it is decoded

A row is an image's bytes, or the path of its file. Counts come from parquet footers or the listing, so that a source
opens quickly whatever its size.
"""

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import fsspec
import pyarrow.parquet as pq
from datasets import Image, IterableDataset, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.parquet.parquet import Parquet

from mae.errors import DataError, UserError, first_line
from mae.order import hash_key


IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Of images with other numbers of channels than 1 and 3.
ARRAY_EXTENSIONS = {".npy", ".tif", ".tiff"}


class Source(Protocol):
    """What the sample stream needs to know of a data set."""

    group_sizes: list[int]
    fingerprint: str

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        """The rows of a group from `first_row` on: an image's bytes, or the path of its file."""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        """Where a row comes from: the file's name within the source and the row's number in it."""


class ImageFolderSource:
    """All image files below a folder, at any depth, in any case of the extension. Links are not followed."""

    def __init__(self, folder: str, num_channels: int = 3):
        extensions = IMAGE_EXTENSIONS if num_channels in (1, 3) else ARRAY_EXTENSIONS
        self.folder = folder
        files = []
        for directory, subdirectories, names in os.walk(folder):
            subdirectories.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                if os.path.splitext(name)[1].lower() in extensions and not os.path.islink(path):
                    files.append((Path(path).relative_to(folder).as_posix(), os.path.getsize(path)))
        if not files:
            kind = "image files" if num_channels in (1, 3) else f"files of images with {num_channels} channels"
            raise UserError(f"{folder} holds no {kind} ({', '.join(sorted(extensions))}).")
        self.names = [name for name, _ in files]
        self.group_sizes = [1] * len(files)
        self.fingerprint = hash_key("folder", tuple(files)).hex()

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        yield os.path.join(self.folder, self.names[group])

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.names[group], 0


class RowGroup(NamedTuple):
    """A row group of a parquet file, as the footer tells."""

    file: str  # relative to what all files have in common
    first_row: int  # within the file
    num_rows: int
    num_bytes: int


def read_footers(files: list[str]) -> list[RowGroup]:
    """The row groups of parquet files, local or remote; a range request for each file."""
    common = os.path.dirname(os.path.commonprefix(files))
    row_groups = []
    for file in files:
        name = os.path.relpath(file, common) if common else file
        try:
            file_system, path = fsspec.core.url_to_fs(file)
            with file_system.open(path) as stream:
                metadata = pq.ParquetFile(stream).metadata
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            raise UserError(f"{file} cannot be read as parquet: {first_line(error)}") from error
        first_row = 0
        for number in range(metadata.num_row_groups):
            row_group = metadata.row_group(number)
            row_groups.append(RowGroup(name, first_row, row_group.num_rows, row_group.total_byte_size))
            first_row += row_group.num_rows
    if not any(row_group.num_rows for row_group in row_groups):
        raise UserError(f"{', '.join(files)} holds no rows.")
    return row_groups


class ParquetSource:
    """The image column of one split of a parquet data set."""

    def __init__(self, dataset: IterableDataset, row_groups: list[RowGroup], image_column_name: str | None = None):
        self.column = find_image_column(dataset, image_column_name)
        dataset = dataset.reshard()  # a shard for each row group
        self.dataset = dataset.select_columns([self.column]).cast_column(self.column, Image(decode=False))
        self.row_groups = row_groups
        if self.dataset.num_shards != len(row_groups):
            raise DataError(f"datasets reads {self.dataset.num_shards} row groups where there are {len(row_groups)}.")
        self.group_sizes = [row_group.num_rows for row_group in row_groups]
        index = tuple((row_group.file, row_group.num_rows, row_group.num_bytes) for row_group in row_groups)
        self.fingerprint = hash_key("parquet", self.column, index).hex()

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        # A row group cannot be entered by row: what is not wanted is passed over.
        rows = self.dataset.shard(num_shards=len(self.row_groups), index=group)
        for row in itertools.islice(rows, first_row, None):
            image = row[self.column] or {}
            yield image.get("bytes") or image.get("path") or b""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        row_group = self.row_groups[group]
        return row_group.file, row_group.first_row + row


def find_image_column(dataset: IterableDataset, image_column_name: str | None) -> str:
    """The column to read: the named one, or the only one of the Image type."""
    features = dataset.features or dataset._resolve_features().features
    if image_column_name is not None:
        feature = features.get(image_column_name)
        if isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary")):
            return image_column_name
        if isinstance(feature, dict) and "bytes" in feature:
            return image_column_name
        found = "there is no such column" if feature is None else f"that column holds {type(feature).__name__}"
        raise UserError(f"--image_column_name {image_column_name}: {found}. Columns: {', '.join(features)}.")
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        found = f"several image columns ({', '.join(columns)})" if columns else "no column of type Image"
        raise UserError(
            f"The data has {found}: name one with --image_column_name. Columns: {', '.join(features) or 'none'}."
        )
    return columns[0]


def open_folder(folder: str, flag: str, num_channels: int = 3) -> ImageFolderSource:
    """The images below a folder; `flag` is named in the error."""
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: there is no such folder.")
    try:
        return ImageFolderSource(folder, num_channels)
    except UserError as error:
        raise UserError(f"{flag} {error}") from None


def open_dataset(
    name: str, config_name: str | None = None, image_column_name: str | None = None
) -> tuple[ParquetSource, ParquetSource | None]:
    """
    A parquet data set: a folder of parquet files, a file or a pattern of files, or whatever else `load_dataset` takes
    that is parquet.

    Returns:
        Its train split, and its validation or test split where there is one.
    """
    paths = []
    if name.endswith(".parquet"):
        # An address (hf://, https://) goes to datasets as it is; a name with brackets may be a file after all.
        paths = [name] if "://" in name or os.path.exists(name) else sorted(glob.glob(name))
        if not paths:
            raise UserError(f"--dataset_name {name}: there is no such file.")
    arguments = {"path": "parquet", "data_files": {"train": paths}} if paths else {"path": name, "name": config_name}
    if not paths and (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.isdir(name):
        raise UserError(f"--dataset_name {name}: there is no such folder.")
    try:
        builder = load_dataset_builder(**arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--dataset_name {name} cannot be opened: {first_line(error)}") from error
    if not isinstance(builder, Parquet):
        raise UserError(
            f"--dataset_name {name} is not made of parquet files: for a folder of images use --train_dir {name}; "
            "other formats have no addressable rows and must be converted to parquet."
        )
    files = {str(split): list(files) for split, files in builder.config.data_files.items()}
    if "train" not in files:
        raise UserError(f"--dataset_name {name} has no train split; it has {', '.join(files)}.")

    def open_split(split: str) -> ParquetSource:
        row_groups = read_footers(files[split])
        return ParquetSource(load_dataset(**arguments, split=split, streaming=True), row_groups, image_column_name)

    held_out = next((split for split in ("validation", "test") if split in files), None)
    return open_split("train"), open_split(held_out) if held_out else None
