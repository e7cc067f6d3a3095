"""
Sources of images: lists of groups of addressable rows, with a fingerprint.

    ParquetSource      a group is a row group, of a file here or on the Hub
    ImageFileSource    a group is one image file, here or on the Hub
    ArrowSource        a group is one row of what `datasets` has downloaded

A row is an image's bytes, or the path of its file. Counts come from parquet footers or the listing, so that a source
opens quickly whatever its size.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, Image, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from mae.data.order import hash_key, permutation
from mae.utils.errors import UserError
from mae.utils.retries import with_patience


IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# How much is asked for at once of a file that is not on this machine.
BLOCK_SIZE = 8 * 2**20
# How many requests for data of one process are under way at once.
REMOTE_READERS = 16
# How much row groups that are being read may hold, beside what is read ahead.
READING_MEMORY = 2 * 2**30
# A row group cannot be entered by row: what lies before is read and passed over. Larger ones are told of.
LARGE_ROW_GROUP = 2**30
# What may describe image files in a data set.
METADATA_EXTENSIONS = {".csv", ".jsonl", ".parquet"}
# Of images with other numbers of channels than 1 and 3.
ARRAY_EXTENSIONS = {".npy", ".tif", ".tiff"}


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


class RowGroup(NamedTuple):
    """A row group of a parquet file, as the footer tells."""

    file: str
    name: str  # of the file, relative to what all files have in common
    number: int  # within the file
    first_row: int  # within the file
    num_rows: int
    num_bytes: int


def read_footers(files: list[str], retry_minutes: float = 0) -> tuple[list[RowGroup], str]:
    """
    The row groups of parquet files, local or remote, and a hash of all that the footers say: with the places and
    statistics of every column, it changes with the content. Two or three range requests for each file, many at once;
    those of files on the Hub, whose addresses name a commit, are kept for the next time.
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
        raise UserError(f"{', '.join(files[:3])}{' …' if len(files) > 3 else ''} holds no rows.")
    return row_groups, hash_key(*(digest for digest, _ in footers)).hex()


def _read_footer(file: str, retry_minutes: float) -> tuple[str, list[list[int]]]:
    """A hash of a file's footer, and [rows, bytes] of each row group."""

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

    return with_patience(f"{file} cannot be read as parquet", retry_minutes, read)


class _FooterCache:
    """Footers of files on the Hub, in one file of the data sets' cache for each set of files."""

    def __init__(self, files: list[str]):
        self.path = None
        if files and all(re.match(r"hf://[^@]+@[0-9a-f]{40}/", file) for file in files):
            self.path = Path(datasets.config.HF_DATASETS_CACHE) / "footers" / f"{hash_key(*files, size=16).hex()}.json"
        self.footers = {}
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self.footers = {file: (digest, sizes) for file, (digest, sizes) in kept.items()}
            except (ValueError, TypeError, AttributeError):  # damaged: as if it were not there
                pass

    def get(self, file: str) -> tuple[str, list[list[int]]] | None:
        return self.footers.get(file)

    def put(self, footers: dict[str, tuple[str, list[list[int]]]]) -> None:
        if self.path is None or self.footers:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(footers), encoding="utf-8")
            os.replace(unfinished, self.path)
        except OSError:  # a cache that cannot be written is no reason to stop
            pass


class ParquetSource:
    """
    The image column of one split of a parquet data set.

    Args:
        row_groups: Of all its files.
        column: A struct of `bytes` and `path`, as `datasets` stores images, or the bytes alone.
        footers: A hash of what the footers say, for the fingerprint.
        revision: The commit that it is read at, on the Hub.
        features: Column -> type, of all of them.
        retry_minutes: How long [`ParquetSource.read_column`] waits faults of the network out.
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
        # One for all threads, with what it knows of the files.
        self.file_system, _ = fsspec.core.url_to_fs(row_groups[0].file)
        largest = max(row_groups, key=lambda row_group: row_group.num_bytes)
        # An open row group may hold all of its column: pages are as large as its writer made them.
        fitting = READING_MEMORY // max(largest.num_bytes, 1)
        self.num_readers = 1 if isinstance(self.file_system, LocalFileSystem) else max(min(fitting, REMOTE_READERS), 1)
        # Footers of a few hundred files stay here, or each row group would cost a request more.
        self._metadata = lru_cache(maxsize=256)(self._read_metadata)
        self.note = None
        if largest.num_bytes >= LARGE_ROW_GROUP:
            self.note = (
                f"Note: {largest.name} has a row group of {largest.num_bytes / 1e9:.1f} GB ({largest.num_rows:,} "
                "rows), which cannot be entered in the middle: where a lane starts or a run resumes in it, what lies "
                "before is read and dropped. Smaller ones, as `datasets` writes them, cost nothing."
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
                return column.cast(wanted)  # files of one data set may differ
            except pa.ArrowInvalid as error:
                raise UserError(f"{file}: column {name} holds {column.type}, not {wanted} ({error}).") from None

        files = list(dict.fromkeys(row_group.file for row_group in self.row_groups))
        with ThreadPoolExecutor(REMOTE_READERS) as pool:
            columns = pool.map(
                lambda file: with_patience(f"{file}, column {name}", self.retry_minutes, lambda: read(file)), files
            )
            return pa.chunked_array([chunk for column in columns for chunk in column.chunks], wanted)

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        row_group, metadata = self.row_groups[group], self._metadata(self.row_groups[group].file)
        # No cache: what is asked for is what is sent, in blocks that end where the column does.
        with self.file_system.open(row_group.file, cache_type="none") as stream:
            # Without pre_buffer=False it would fetch the whole column at once, whatever the size of the buffer.
            file = pq.ParquetFile(stream, metadata=metadata, buffer_size=BLOCK_SIZE, pre_buffer=False)
            names = [field.name for field in file.schema_arrow.field(self.column).flatten()]
            leaf = f"{self.column}.bytes" if f"{self.column}.bytes" in names else self.column
            row, paths = 0, None
            # In this thread: those of Arrow are as many as there are cores, and would wait for the network instead.
            batches = file.iter_batches(32, row_groups=[row_group.number], columns=[leaf], use_threads=False)
            for batch in batches:
                images = batch.column(0) if leaf == self.column else batch.column(0).field("bytes")
                for index in range(max(first_row - row, 0), len(batch)):
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


class Part:
    """
    Some rows of each group of another source.

    Args:
        sizes: How many rows of each group are in it.
        rows: group -> the numbers of these rows, ascending.
    """

    def __init__(self, source: Source, sizes: list[int], rows: Callable[[int], np.ndarray], fingerprint: str):
        self.source = source
        self.group_sizes = sizes
        self.rows = lru_cache(maxsize=64)(rows)
        self.fingerprint = fingerprint
        self.revision = source.revision
        self.num_readers = source.num_readers
        self.note = source.note
        self.features = source.features

    def all_rows(self) -> np.ndarray:
        """The rows of the whole that are in it, by their numbers over all groups."""
        starts = np.concatenate([[0], np.cumsum(self.source.group_sizes)])
        rows = [starts[group] + self.rows(group) for group, size in enumerate(self.group_sizes) if size]
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        wanted = self.rows(group)[first_row:].tolist()
        rows = enumerate(self.source.read(group, wanted[0]), wanted[0])
        for number in wanted:
            # A source that ends early ends this one too, as it would without a part.
            image = next((image for row, image in rows if row == number), None)
            if image is None:
                return
            yield image

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.source.origin(group, int(self.rows(group)[row]))


class Kept:
    """
    A few rows of a large source, which are read once: the images stay in memory as they are encoded, up to
    `max_bytes`. Otherwise each epoch would read what lies between them again.
    """

    def __init__(self, source: Source, max_bytes: int = 2**30):
        self.source = source
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint
        self.revision = source.revision
        self.num_readers = source.num_readers
        self.note = source.note
        self.features = source.features
        self.origin = source.origin
        self.room = max_bytes
        self.images: dict[int, list[bytes | str]] = {}

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        images = self.images.get(group)
        if images is None:
            images = list(self.source.read(group, 0))
            size = sum(map(len, images))
            # Half a group is an error of its reader's, which asks again.
            if size <= self.room and len(images) == self.group_sizes[group]:
                self.room -= size
                self.images[group] = images
        yield from images[first_row:]


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """
    A source in two parts, the second of about `share` of the rows: drawn within each group, so that a part is read as
    quickly as the whole, and an index of millions of groups takes no memory.

    Raises:
        UserError: where nothing would be left of one of them.
    """
    sizes = np.asarray(source.group_sizes)
    # Rounded at random, or groups of one row would all fall on one side.
    chance = np.argsort(permutation(len(sizes), seed, "held out")) + 0.5
    held = np.floor(sizes * share + chance / len(sizes)).astype(np.int64)
    if not 0 < held.sum() < sizes.sum():
        raise UserError(
            f"--train_val_split {share} of {sizes.sum()} images leaves {sizes.sum() - held.sum()} to train on and "
            f"{held.sum()} held out: give another share."
        )

    def held_rows(group: int) -> np.ndarray:
        return np.sort(permutation(int(sizes[group]), seed, "held out", group)[: held[group]])

    def other_rows(group: int) -> np.ndarray:
        return np.setdiff1d(np.arange(sizes[group]), held_rows(group), assume_unique=True)

    def part(name: str, counts: np.ndarray, rows: Callable[[int], np.ndarray]) -> Part:
        fingerprint = hash_key("part", source.fingerprint, share, seed, name).hex()
        return Part(source, counts.tolist(), rows, fingerprint)

    return part("train", sizes - held, other_rows), part("held out", held, held_rows)


def take_rows(source: Source, rows: np.ndarray) -> Source:
    """
    Some rows of a source.

    Args:
        rows: Their numbers over all groups, ascending.
    """
    starts = np.concatenate([[0], np.cumsum(source.group_sizes)])
    bounds = np.searchsorted(rows, starts)  # group g has rows[bounds[g] : bounds[g + 1]]

    def rows_of(group: int) -> np.ndarray:
        return rows[bounds[group] : bounds[group + 1]] - starts[group]

    fingerprint = hash_key("rows", source.fingerprint, rows.astype(np.int64).tobytes()).hex()
    return Part(source, np.diff(bounds).tolist(), rows_of, fingerprint)


def row_origins(source: Source, rows: np.ndarray) -> list[tuple[str, int]]:
    """Where rows, by their numbers over all groups, come from."""
    starts = np.concatenate([[0], np.cumsum(source.group_sizes)])
    groups = np.searchsorted(starts, rows, side="right") - 1
    return [source.origin(group, row) for group, row in zip(groups.tolist(), (rows - starts[groups]).tolist())]


def _sampled_rows(num_rows: int) -> list[int]:
    """A few rows that stand for all, where to read all would take too long."""
    return sorted(set(np.linspace(0, num_rows - 1, 64).astype(int).tolist()))


def _read_file(image: bytes | str) -> bytes:
    return Path(image).read_bytes() if isinstance(image, str) else image


def find_image_column(features: dict[str, Any], image_column_name: str | None) -> str:
    """The column to read: the named one, or the only one of the Image type."""
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


def open_folder(folder: str, flag: str, num_channels: int = 3) -> ImageFileSource:
    """
    All image files below a folder, at any depth, in any case of the extension. Links are not followed.

    Args:
        folder: The folder; `~` is the user's home.
        flag: Named in the error.
        num_channels: Images of other numbers than 1 and 3 are arrays.

    Raises:
        UserError: where there is none.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        raise UserError(f"{flag} {folder}: there is no such folder.")
    extensions = IMAGE_EXTENSIONS if num_channels in (1, 3) else ARRAY_EXTENSIONS
    files, index, num_links = {}, [], 0
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        num_links += sum(os.path.islink(os.path.join(directory, name)) for name in subdirectories)
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.splitext(name)[1].lower() not in extensions:
                continue
            if os.path.islink(path):
                num_links += 1
                continue
            name = Path(path).relative_to(root).as_posix()
            files[name] = path
            index.append((name, os.path.getsize(path)))
    if not files:
        kind = "image files" if num_channels in (1, 3) else f"files of images with {num_channels} channels"
        links = f"; its {num_links} symbolic links are not followed" if num_links else ""
        raise UserError(f"{flag} {folder} holds no {kind} ({', '.join(sorted(extensions))}){links}.")
    # Sizes alone say little of arrays, which are all alike.
    sampled = [Path(files[index[row][0]]).read_bytes() for row in _sampled_rows(len(index))]
    return ImageFileSource(files, hash_key("folder", tuple(index), *sampled).hex())


def open_dataset(
    name: str,
    config_name: str | None = None,
    image_column_name: str | None = None,
    revision: str | None = None,
    retry_minutes: float = 0,
    streaming: bool = True,
) -> tuple[Source, Source | None]:
    """
    A parquet data set: on the Hub, a folder of parquet files, a file or a pattern of files, or whatever else
    `load_dataset` takes that is parquet. One on the Hub is read at the commit that `revision` names now.

    With `streaming=False` it is downloaded, and may be of any format that `load_dataset` reads.

    Returns:
        Its train split, and its validation or test split where there is one.
    """
    local = os.path.expanduser(name)
    paths = []
    if name.endswith(".parquet"):
        # An address (hf://, https://) goes to datasets as it is; a name with brackets may be a file after all.
        paths = [name] if "://" in name else [local] if os.path.exists(local) else sorted(glob.glob(local))
        if not paths:
            raise UserError(f"--dataset_name {name}: there is no such file.")
    on_the_hub = not paths and not os.path.isdir(local)
    if on_the_hub and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"--dataset_name {name}: there is no such folder.")
    if revision is not None and not on_the_hub:
        raise UserError(f"--dataset_revision {revision} is for data sets on the Hub; {name} is on this machine.")
    what, repository = f"--dataset_name {name} cannot be opened", name
    if on_the_hub and not constants.HF_HUB_OFFLINE:
        # Asked for by ourselves, because `datasets` takes a copy of any revision where the Hub does not answer.
        info = with_patience(what, retry_minutes, lambda: HfApi().dataset_info(name, revision=revision))
        revision, repository = info.sha, info.id  # an old name leads to another one
    arguments: dict[str, Any] = {"path": name if on_the_hub else local, "name": config_name, "revision": revision}
    if paths:
        escaped = [path if "://" in path else glob.escape(path) for path in paths]
        arguments = {"path": "parquet", "data_files": {"train": escaped}}

    def open_builder() -> DatasetBuilder:
        try:
            builder = load_dataset_builder(**arguments)
        except ValueError as error:
            configurations = re.search(r"(Available|available configs): \[(.*?)\]", str(error))
            if configurations is None:
                raise
            raise UserError(
                f"--dataset_name {name} has several configurations: give --dataset_config_name one of "
                f"{configurations[2].replace(chr(39), '')}{f', not {config_name}' if config_name else ''}."
            ) from None
        if streaming and isinstance(builder, Cache):
            problem = "a downloaded copy is here, which --no_streaming reads"
            if constants.HF_HUB_OFFLINE:
                raise UserError(f"{what}: HF_HUB_OFFLINE is set; {problem}.")
            raise ConnectionError(f"the Hub does not answer; {problem}")
        return builder

    builder = with_patience(what, retry_minutes, open_builder)
    files = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}

    def stream_parquet(split: str) -> ParquetSource:
        row_groups, footers = read_footers(files[split], retry_minutes)
        dataset = with_patience(
            what, retry_minutes, lambda: load_dataset(**arguments, split=split, streaming=True)._resolve_features()
        )
        column = find_image_column(dataset.features, image_column_name)
        return ParquetSource(row_groups, column, footers, revision, dict(dataset.features), retry_minutes)

    def stream_files(split: str) -> ImageFileSource:
        root = f"hf://datasets/{repository}@{revision}/"
        images = {file.removeprefix(root): file for file in files[split]}
        images = {name: file for name, file in images.items() if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS}
        contents = hash_key("files", *((name, blobs()[name]) for name in images)).hex()
        return ImageFileSource(images, contents, revision)

    @cache
    def blobs() -> dict[str, str]:
        """What git calls the contents of the files."""

        def listing() -> dict[str, str]:
            entries = HfApi().list_repo_tree(name, recursive=True, revision=revision, repo_type="dataset")
            return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}

        return with_patience(what, retry_minutes, listing)

    def download(split: str) -> ArrowSource:
        dataset = with_patience(what, retry_minutes, lambda: load_dataset(**arguments, split=split))
        if not len(dataset):
            raise UserError(f"--dataset_name {name} holds no rows.")
        column = find_image_column(dataset.features, image_column_name)
        return with_patience(what, 0, lambda: ArrowSource(dataset, column, split, revision))

    if not files:  # of a downloaded copy
        files = dict.fromkeys(map(str, builder.info.splits or ()), [])
    extensions = {Path(file).suffix.lower() for split in files.values() for file in split}
    if not streaming:
        open_split = download
    elif isinstance(builder, Parquet):
        open_split = stream_parquet
    elif on_the_hub and isinstance(builder, ImageFolder) and extensions <= IMAGE_EXTENSIONS | METADATA_EXTENSIONS:
        open_split = stream_files
    else:
        raise UserError(
            f"--dataset_name {name} is not made of parquet files or image files, which can be read one by one. "
            f"--no_streaming downloads it; for a folder of images on this machine use --train_dir {name}; of most "
            "data sets the Hub has a parquet copy, --dataset_revision refs/convert/parquet."
        )
    if "train" not in files:
        raise UserError(f"--dataset_name {name} has no train split; it has {', '.join(files)}.")
    held_out = next((split for split in ("validation", "test") if split in files), None)
    return open_split("train"), open_split(held_out) if held_out else None
