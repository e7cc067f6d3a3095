"""Parquet files as a source: row groups, footers, range requests."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from mae.data.cells import array_file, is_array_feature
from mae.data.sources import REMOTE_READERS, Source
from mae.utils.errors import UserError
from mae.utils.files import atomic_write
from mae.utils.hashing import hash_key
from mae.utils.retries import retry
from mae.utils.text import listed


# Bytes of one request for a remote file.
BLOCK_SIZE = 8 * 2**20
# Bytes that row groups may hold while they are read, besides the rows that are read ahead.
READING_MEMORY = 2 * 2**30
# A row group can only be read from its start. From this size on, a note tells the user.
LARGE_ROW_GROUP = 2**30


class RowGroup(NamedTuple):
    """A row group of a Parquet file, from its footer."""

    file: str
    name: str  # of the file, relative to what all files have in common
    number: int  # within the file
    first_row: int  # within the file
    num_rows: int
    num_bytes: int


def read_footers(files: list[str], retry_minutes: float = 0) -> tuple[list[RowGroup], str]:
    """
    The row groups of Parquet files, local or remote, and a hash of their footers, which hold the places and statistics
    of every column and so change with the content. This takes two or three range requests per file, many at once.
    Footers of files on the Hub, whose addresses name a commit, are cached.
    """
    common = os.path.dirname(os.path.commonprefix(files))
    kept = _FooterCache(files)
    with ThreadPoolExecutor(max_workers=16) as pool:
        footers = list(pool.map(lambda file: kept.get(file) or _read_footer(file, retry_minutes), files))
    kept.put(dict(zip(files, footers)))
    row_groups = []
    for file, (_, sizes) in zip(files, footers):
        name, first_row = os.path.relpath(file, common) if common else file, 0
        for number, (num_rows, num_bytes) in enumerate(sizes):
            row_groups.append(RowGroup(file, name, number, first_row, num_rows, num_bytes))
            first_row += num_rows
    if not any(row_group.num_rows for row_group in row_groups):
        raise UserError(f"{listed(files, 3)} holds no rows.")
    return row_groups, hash_key(*(digest for digest, _ in footers)).hex()


def _read_footer(file: str, retry_minutes: float) -> tuple[str, list[list[int]]]:
    """Hash of a file's footer, and [rows, bytes] of each row group."""

    def read() -> tuple[str, list[list[int]]]:
        file_system, path = fsspec.core.url_to_fs(file)
        with file_system.open(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 8, 0))
            length = int.from_bytes(stream.read(8)[:4], "little")
            stream.seek(max(size - 8 - length, 0))
            footer = stream.read(length)
            metadata = pq.ParquetFile(stream).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return hash_key(size, footer).hex(), [[group.num_rows, group.total_byte_size] for group in groups]

    return retry(f"{file} cannot be read as parquet", retry_minutes, read)


class _FooterCache:
    """Footers of files on the Hub. A data set of 10,000 files would otherwise take minutes to open at each start."""

    def __init__(self, files: list[str]):
        self.path = None
        if files and all(re.match(r"hf://[^@]+@[0-9a-f]{40}/", file) for file in files):
            self.path = Path(datasets.config.HF_DATASETS_CACHE) / "footers" / f"{hash_key(*files, size=16).hex()}.json"
        self.footers = {}
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self.footers = {file: (digest, sizes) for file, (digest, sizes) in kept.items()}
            except (ValueError, TypeError, AttributeError):  # a damaged file counts as missing
                pass

    def get(self, file: str) -> tuple[str, list[list[int]]] | None:
        return self.footers.get(file)

    def put(self, footers: dict[str, tuple[str, list[list[int]]]]) -> None:
        if self.path is None or self.footers:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as unfinished:
                unfinished.write_text(json.dumps(footers), encoding="utf-8")
        except OSError:  # the run works without a cache
            pass


class ParquetSource(Source):
    """
    The image column of one split of a Parquet data set.

    Args:
        row_groups: Row groups of all its files.
        column: A struct of `bytes` and `path`, as `datasets` stores images, the bytes alone, or arrays.
        footers: A hash of the footers, for the fingerprint.
        revision: The commit that it is read at, on the Hub.
        features: Type of each column.
        retry_minutes: Minutes for which [`ParquetSource.read_column`] retries network errors.
    """

    def __init__(
        self,
        row_groups: list[RowGroup],
        column: str,
        footers: str,
        revision: str | None = None,
        features: dict[str, Any] | None = None,
        retry_minutes: float = 0,
    ):
        self.row_groups = row_groups
        self.column = column
        self.revision = revision
        self.features = features or {}
        self.retry_minutes = retry_minutes
        self.group_sizes = [row_group.num_rows for row_group in row_groups]
        index = tuple((row_group.name, row_group.num_rows, row_group.num_bytes) for row_group in row_groups)
        self.fingerprint = hash_key("parquet", column, index, footers).hex()
        # All threads share one, and what it knows of the files.
        self.file_system, _ = fsspec.core.url_to_fs(row_groups[0].file)
        largest = max(row_groups, key=lambda row_group: row_group.num_bytes)
        # An open row group may hold its whole column, because its writer decides how large pages are.
        fitting = READING_MEMORY // max(largest.num_bytes, 1)
        self.num_readers = 1 if isinstance(self.file_system, LocalFileSystem) else max(min(fitting, REMOTE_READERS), 1)
        # Without the footers of a few hundred files each row group would cost one more request.
        self._metadata = lru_cache(maxsize=256)(self._read_metadata)
        self.note = None
        if largest.num_bytes >= LARGE_ROW_GROUP:
            self.note = (
                f"Note: {largest.name} has a row group of {largest.num_bytes / 1e9:.1f} GB ({largest.num_rows:,} "
                "rows), which can only be read from its start. If a lane starts or a run resumes in it, the rows "
                "before are read and dropped. Smaller row groups, as `datasets` writes them, avoid this."
            )

    def _read_metadata(self, file: str) -> pq.FileMetaData:
        with self.file_system.open(file) as stream:
            return pq.ParquetFile(stream).metadata

    def read_column(self, name: str) -> pa.ChunkedArray:
        wanted = datasets.Features({name: self.features[name]}).arrow_schema.field(name).type

        def read(file: str) -> pa.ChunkedArray:
            with self.file_system.open(file) as stream:
                column = pq.ParquetFile(stream).read(columns=[name]).column(name)
            try:
                return column.cast(wanted)  # types may differ between files
            except pa.ArrowInvalid as error:
                raise UserError(f"{file}: column {name} holds {column.type}, not {wanted} ({error}).") from None

        files = list(dict.fromkeys(row_group.file for row_group in self.row_groups))
        with ThreadPoolExecutor(REMOTE_READERS) as pool:
            columns = pool.map(
                lambda file: retry(f"{file}, column {name}", self.retry_minutes, lambda: read(file)), files
            )
            return pa.chunked_array([chunk for column in columns for chunk in column.chunks], wanted)

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        row_group, metadata = self.row_groups[group], self._metadata(self.row_groups[group].file)
        # Without a cache exactly the requested bytes are sent, in blocks that end with the column.
        with self.file_system.open(row_group.file, cache_type="none") as stream:
            # With pre_buffer it would fetch the whole column at once, whatever the size of the buffer.
            file = pq.ParquetFile(stream, metadata=metadata, buffer_size=BLOCK_SIZE, pre_buffer=False)
            names = [field.name for field in file.schema_arrow.field(self.column).flatten()]
            leaf = f"{self.column}.bytes" if f"{self.column}.bytes" in names else self.column
            row, paths = 0, None
            is_array = is_array_feature(self.features.get(self.column))
            # In this thread, because Arrow has only as many threads as there are cores, and they would all wait.
            batches = file.iter_batches(32, row_groups=[row_group.number], columns=[leaf], use_threads=False)
            for batch in batches:
                images = batch.column(0) if leaf == self.column else batch.column(0).field("bytes")
                for index in range(max(first_row - row, 0), len(batch)):
                    if is_array:
                        yield array_file(images[index])
                        continue
                    image = images[index].as_py()
                    if image is None and f"{self.column}.path" in names:  # an image beside the file
                        if paths is None:
                            table = file.read_row_group(row_group.number, columns=[f"{self.column}.path"])
                            paths = table.column(0).combine_chunks().field("path")
                        image = paths[row + index].as_py()
                    yield image or b""
                row += len(batch)

    def origin(self, group: int, row: int) -> tuple[str, int]:
        row_group = self.row_groups[group]
        return row_group.name, row_group.first_row + row
