"""Tar shards as a source: rows are images in tars, which are read by range."""

import itertools
import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
from datasets import Image, Value
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mae.data.folders import IMAGE_EXTENSIONS
from mae.data.sources import REMOTE_READERS, Source
from mae.data.tar_index import HEADER, TarIndex, read_indexes, sample_key
from mae.utils.errors import DataError, UserError
from mae.utils.hashing import hash_key
from mae.utils.text import listed


# Rows of a group, as `datasets` writes them into a row group. An epoch permutes groups.
GROUP_ROWS = 100
# Bytes of one request, unless a single image is larger; and those between two images that are not worth another one.
READ_BYTES, GAP = 8 * 2**20, 2**20
LABEL_COLUMN = "label"


class _Shard(NamedTuple):
    """The rows of a tar."""

    file: str
    name: str  # relative to what all files have in common
    members: list[str]
    places: np.ndarray  # as in the index
    labels: list[int | str | None]
    num_bytes: int


def open_tars(
    files: list[str], extension: str | None = None, revision: str | None = None, retry_minutes: float = 0
) -> "TarSource":
    """
    Open tars of image files as a source, in the order of the files and of their members.

    Args:
        extension: Extension of the members that are the images, "jpg" or "left.png" (default: that of the only image
            of each sample).
        revision: The commit that they are read at, on the Hub.

    Raises:
        UserError: if a tar is damaged, holds several images a sample, or if none holds an image.
    """
    common = os.path.dirname(os.path.commonprefix(files))
    indexes = read_indexes(files, retry_minutes)
    shards, without = [], 0
    for file, index in zip(files, indexes):
        shard, missing = _find_images(file, os.path.relpath(file, common) if common else file, index, extension)
        shards.append(shard)
        without += missing
    if not any(shard.members for shard in shards):
        found = sorted({sample_key(name)[1] for index in indexes for name in index.names})
        raise UserError(
            f"{listed(files, 3)} holds no {extension or 'image'} files. Their extensions: {listed(found) or 'none'}. "
            "Choose one with --image_column_name."
        )
    notes = []
    if without:
        notes.append(f"Note: {without:,} samples of the tars hold no {extension or 'image'} file and are left out.")
    if cut := [shard.name for shard, index in zip(shards, indexes) if not index.is_closed]:
        notes.append(f"Note: no blocks of zeros end {listed(cut, 3)}, as they end a tar. The rest may be missing.")
    headers = hash_key(*(index.digest for index in indexes)).hex()
    return TarSource(shards, extension, headers, revision, "\n".join(notes) or None)


def _find_images(file: str, name: str, index: TarIndex, extension: str | None) -> tuple[_Shard, int]:
    """The images of a tar, and the number of samples without one."""
    wanted = None if extension is None else extension.lower().removeprefix(".")
    rows: list[int] = []
    labels: list[int | str | None] = []
    without = 0
    keys = [sample_key(member) for member in index.names]

    def is_image(extension: str) -> bool:
        return extension == wanted if wanted else f".{extension.split('.')[-1]}" in IMAGE_EXTENSIONS

    for key, numbers in itertools.groupby(range(len(keys)), lambda number: keys[number][0]):
        members = list(numbers)
        images = [number for number in members if is_image(keys[number][1])]
        if len(images) > 1:
            found = listed(sorted({keys[number][1] for number in images}))
            raise UserError(
                f"{file} holds several images of the sample {key} ({found}). Choose an extension with "
                "--image_column_name."
            )
        if not images:
            without += 1
            continue
        rows += images
        # .cls before .json, whatever their order in the tar.
        found_labels = {keys[number][1]: index.labels[number] for number in members if number in index.labels}
        labels.append(found_labels.get("cls", found_labels.get("json")))
    places = index.places[np.array(rows, dtype=np.int64)]
    return _Shard(file, name, [index.names[row] for row in rows], places, labels, index.num_bytes), without


class TarSource(Source):
    """
    The images of tar shards. A group is a part of a tar.

    Args:
        shards: The rows of each tar.
        extension: The extension that was asked for.
        headers: A hash of all headers, for the fingerprint.
        revision: The commit that they are read at, on the Hub.
        note: What the user should know of them.
    """

    def __init__(
        self, shards: list[_Shard], extension: str | None, headers: str, revision: str | None, note: str | None
    ):
        self.shards = shards
        self.revision = revision
        self.note = note
        # (number of the tar, its first row in the tar, number of rows) of each group.
        self.groups = [
            (number, first, min(GROUP_ROWS, len(shard.members) - first))
            for number, shard in enumerate(shards)
            for first in range(0, len(shard.members), GROUP_ROWS)
        ]
        self.group_sizes = [count for _, _, count in self.groups]
        self.fingerprint = hash_key("tars", extension or "", [shard.name for shard in shards], headers).hex()
        self.file_system: AbstractFileSystem = fsspec.core.url_to_fs(shards[0].file)[0]
        self.num_readers = 1 if isinstance(self.file_system, LocalFileSystem) else REMOTE_READERS
        self.features = {"image": Image()}
        self._labels = [label for shard in shards for label in shard.labels]
        if any(label is not None for label in self._labels):
            self._are_numbers = all(label is None or isinstance(label, int) for label in self._labels)
            self.features[LABEL_COLUMN] = Value("int64" if self._are_numbers else "string")

    def read(self, group: int, first_row: int) -> Iterator[bytes]:
        number, first, count = self.groups[group]
        shard = self.shards[number]
        places = shard.places[first + first_row : first + count]
        path = shard.file if "://" not in shard.file else fsspec.core.url_to_fs(shard.file)[1]
        # Without a cache exactly the requested bytes are sent.
        options = {} if isinstance(self.file_system, LocalFileSystem) else {"cache_type": "none"}
        with self.file_system.open(path, **options) as stream:
            while len(places):
                taken = _count_together(places)
                start, end = int(places[0, 0]) - HEADER, int(places[taken - 1, :2].sum())
                stream.seek(start)
                content = memoryview(stream.read(end - start))
                for offset, size, checksum in places[:taken].tolist():
                    at = offset - start
                    if not _is_member(content[at - HEADER : at + size], size, checksum):
                        raise DataError(f"{shard.name} is truncated, or has changed since it was indexed")
                    yield bytes(content[at : at + size])
                places = places[taken:]

    def origin(self, group: int, row: int) -> tuple[str, int]:
        number, first, _ = self.groups[group]
        shard = self.shards[number]
        return f"{shard.name}/{shard.members[first + row]}", first + row

    def read_column(self, name: str) -> pa.ChunkedArray:
        if name != LABEL_COLUMN or name not in self.features:
            raise KeyError(name)
        if self._are_numbers:
            return pa.chunked_array([pa.array(self._labels, pa.int64())])
        return pa.chunked_array([pa.array([None if label is None else str(label) for label in self._labels])])


def _count_together(places: np.ndarray) -> int:
    """How many of the next images one request reads."""
    starts, ends = places[:, 0] - HEADER, places[:, 0] + places[:, 1]
    apart = (ends - starts[0] > READ_BYTES) | (np.concatenate([[0], starts[1:] - ends[:-1]]) > GAP)
    apart[0] = False
    return int(np.argmax(apart)) if apart.any() else len(places)


def _is_member(block: memoryview, size: int, checksum: int) -> bool:
    """Whether a header with this checksum, and as many bytes as it says, are in a block."""
    try:
        header = tarfile.TarInfo.frombuf(bytes(block[:HEADER]), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return header.chksum == checksum and len(block) == HEADER + size
