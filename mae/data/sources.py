"""
Sources of images: groups of addressable rows, with a fingerprint.

    ImageFileSource    a group is one image file, local or on the Hub
    ParquetSource      a group is a row group of a Parquet file, local or on the Hub (parquet.py)
    ArrowSource        a group is one row of a data set that `datasets` has on this machine
    View               some rows of another source (subsets.py)

A row is the bytes of an image, or the path of its file. The number of rows comes from listings and Parquet footers, so
that a source of any size opens quickly.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
from datasets import Image

from mae.data.cells import array_file, is_array_feature
from mae.utils.hashing import hash_key


# Requests for data of one process that are active at once.
REMOTE_READERS = 16


class Source(ABC):
    """
    A list of groups of addressable rows.

    Args:
        group_sizes: Number of rows of each group.
        fingerprint: A hash that changes with the content.
        revision: The commit on the Hub that the source is read at; None for local data.
        num_readers: Number of groups that are worth reading at once.
        note: What the user should know of the source.
        features: Type of each column; empty for image files.
        parts: Of a mixture of data sets, (number of groups, weight) of each; empty for a single one.
    """

    group_sizes: list[int]
    fingerprint: str
    revision: str | None = None
    num_readers: int = 1
    note: str | None = None
    features: Mapping[str, Any] = MappingProxyType({})
    parts: tuple[tuple[int, float], ...] = ()

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each group over all groups, and the number of all rows."""
        return np.concatenate([[0], np.cumsum(self.group_sizes)]).astype(np.int64)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @abstractmethod
    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        """The rows of a group from `first_row` on: the bytes of an image, or the path of its file."""

    @abstractmethod
    def origin(self, group: int, row: int) -> tuple[str, int]:
        """File of a row, by its name within the source, and the number of the row in that file."""

    def read_column(self, name: str) -> pa.ChunkedArray:
        """All values of a small column, for example labels, in the order of the rows. A `KeyError` if it has none."""
        raise KeyError(name)

    def class_folders(self) -> list[str] | None:
        """The class folder of each row, "" for a row in none; None for a source that is no list of image files."""
        return None

    def row_origins(self, rows: np.ndarray) -> list[tuple[str, int]]:
        """Origins of rows, by their numbers over all groups."""
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        return [self.origin(group, row) for group, row in zip(groups.tolist(), (rows - self.starts[groups]).tolist())]


class View(Source):
    """Some rows of another source, or all of them read in another way."""

    def __init__(self, source: Source):
        self.source = source
        self.revision = source.revision
        self.num_readers = source.num_readers
        self.note = source.note
        self.features = source.features
        self.parts = source.parts

    def row_numbers(self) -> np.ndarray:
        """The numbers of its rows in the other source, over all groups."""
        return np.arange(len(self.source))

    def read_column(self, name: str) -> pa.ChunkedArray:
        return self.source.read_column(name).take(self.row_numbers())

    def class_folders(self) -> list[str] | None:
        folders = self.source.class_folders()
        return None if folders is None else [folders[row] for row in self.row_numbers()]


class ImageFileSource(Source):
    """
    Image files. Workers read local ones where they decode them; those on the Hub are read before.

    Args:
        files: Name within the source -> path or address.
        fingerprint: A hash of the names and of what the contents are known by.
        revision: The commit that they are read at, on the Hub.
        note: What the user should know of the files.
    """

    def __init__(self, files: dict[str, str], fingerprint: str, revision: str | None = None, note: str | None = None):
        self.names, self.paths = list(files), list(files.values())
        self.group_sizes = [1] * len(files)
        self.fingerprint = fingerprint
        self.revision = revision
        self.num_readers = 1 if revision is None else REMOTE_READERS
        self.note = note
        self._file_system = None if revision is None else fsspec.core.url_to_fs(self.paths[0])[0]

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        path = self.paths[group]
        yield path if self._file_system is None else self._file_system.cat_file(path)

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.names[group], 0

    def class_folders(self) -> list[str]:
        # Locally a class is a folder right below the root, as in torchvision. On the Hub splits are folders too, and a
        # class is the folder that holds the image, as in `datasets`.
        part = 0 if self.revision is None else -2
        return [name.split("/")[part] if "/" in name else "" for name in self.names]


class ArrowSource(Source):
    """One split of a data set that is on this machine as Arrow. Every row can be read by itself, and is a group."""

    def __init__(self, dataset: datasets.Dataset, column: str, split: str, revision: str | None = None):
        self.split = split
        self.column = column
        self.revision = revision
        self.features = dict(dataset.features)
        self.group_sizes = [1] * len(dataset)
        self._dataset = dataset
        self._is_array = is_array_feature(dataset.features[column])
        images = dataset.select_columns([column])
        self._images = (
            images.with_format("arrow") if self._is_array else images.cast_column(column, Image(decode=False))
        )
        # Of a sample of the rows, because nothing else tells on every machine alike what is in them.
        content = [_content(next(iter(self.read(row, 0)))) for row in sample_rows(len(dataset))]
        self.fingerprint = hash_key("arrow", column, len(dataset), *content).hex()

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        if self._is_array:
            yield array_file(self._images[group][self.column][0])
            return
        image = self._images[group][self.column] or {}
        yield image.get("bytes") or image.get("path") or b""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.split, group

    def read_column(self, name: str) -> pa.ChunkedArray:
        if name not in self.features:
            raise KeyError(name)
        return self._dataset.select_columns([name]).with_format("arrow")[:][name]


def sample_rows(num_rows: int) -> list[int]:
    """A few rows that stand for all, if reading all would take too long."""
    return sorted(set(np.linspace(0, num_rows - 1, 64).astype(int).tolist()))


def _content(image: bytes | str) -> bytes:
    return Path(image).read_bytes() if isinstance(image, str) else image
