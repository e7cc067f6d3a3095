"""
Sources of images: lists of groups of addressable rows, with a fingerprint.

    ParquetSource      a group is a row group, of a file here or on the Hub
    ImageFileSource    a group is one image file, here or on the Hub
    ArrowSource        a group is one row of what `datasets` has downloaded

A row is an image's bytes, or the path of its file. Counts come from parquet footers or the listing, so that a source
opens quickly whatever its size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow as pa
from datasets import Image

from mae.data.parquet import REMOTE_READERS
from mae.utils.hashing import hash_key


class Source(Protocol):
    """What the sample stream needs to know of a data set."""

    group_sizes: list[int]
    fingerprint: str
    revision: str | None  # the commit on the Hub that it is read at
    num_readers: int  # how many groups are worth reading at once
    note: str | None  # what the user should know of it
    features: dict[str, Any]  # column -> type; of files none

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        """The rows of a group from `first_row` on: an image's bytes, or the path of its file."""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        """Where a row comes from: the file's name within the source and the row's number in it."""

    def read_column(self, name: str) -> pa.ChunkedArray:
        """All values of a small column, labels say, in the order of the rows."""


class ImageFileSource:
    """
    Image files. Those on this machine are read where they are decoded, those on the Hub before.

    Args:
        files: Name within the source -> path or address.
        fingerprint: A hash of the names and of what says something of the contents.
        revision: The commit that they are read at, on the Hub.
    """

    def __init__(self, files: dict[str, str], fingerprint: str, revision: str | None = None):
        self.names, self.paths = list(files), list(files.values())
        self.group_sizes = [1] * len(files)
        self.fingerprint = fingerprint
        self.revision = revision
        self.num_readers = 1 if revision is None else REMOTE_READERS
        self.file_system = None if revision is None else fsspec.core.url_to_fs(self.paths[0])[0]
        self.note = None
        self.features = {}

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        path = self.paths[group]
        yield path if self.file_system is None else self.file_system.cat_file(path)

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.names[group], 0


class ArrowSource:
    """One split of a data set that is on this machine as Arrow: every row can be read by itself, and is a group."""

    num_readers = 1
    note = None

    def __init__(self, dataset: datasets.Dataset, column: str, split: str, revision: str | None = None):
        self.split = split
        self.features = dict(dataset.features)
        self._all_columns = dataset
        self.dataset = dataset.select_columns([column]).cast_column(column, Image(decode=False))
        self.column = column
        self.revision = revision
        self.group_sizes = [1] * len(dataset)
        # Of a sample of the rows, because nothing else says what is in them on every machine alike.
        content = [_read_file(next(iter(self.read(row, 0)))) for row in _sampled_rows(len(dataset))]
        self.fingerprint = hash_key("arrow", column, len(dataset), *content).hex()

    def read_column(self, name: str) -> pa.ChunkedArray:
        return self._all_columns.select_columns([name]).with_format("arrow")[:][name]

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        image = self.dataset[group][self.column] or {}
        yield image.get("bytes") or image.get("path") or b""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.split, group


def _sampled_rows(num_rows: int) -> list[int]:
    """A few rows that stand for all, where to read all would take too long."""
    return sorted(set(np.linspace(0, num_rows - 1, 64).astype(int).tolist()))


def _read_file(image: bytes | str) -> bytes:
    return Path(image).read_bytes() if isinstance(image, str) else image
