"""
The index of tar shards: where the members of each tar lie, from one pass over its headers.

Data sets of [WebDataset](https://github.com/webdataset/webdataset) are tars of files, of which those with one key are
a sample: `0001.jpg`, `0001.cls`, `0001.json`. A header of 512 bytes stands before each file.
"""

import contextlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
from filelock import FileLock
from fsspec import AbstractFileSystem

from mae.data.sources import REMOTE_READERS
from mae.utils.errors import UserError
from mae.utils.files import atomic_write
from mae.utils.hashing import hash_key
from mae.utils.progress import ProgressBar
from mae.utils.retries import Retry, explain


HEADER = tarfile.BLOCKSIZE
# Bytes of a request for headers that lie far apart, and of the largest one where they lie close together.
SMALL_BLOCK, LARGE_BLOCK = 4 * 2**10, 8 * 2**20
# A header that is farther than this from the end of the last block is requested by itself. A request to the Hub takes
# about 0.1 s, because it is redirected: at 20 MB/s as long as so many bytes.
SKIP = 2 * 2**20
# Labels are read with the headers, from files up to this size.
_LABEL_BYTES = 16 * 2**10


class TarIndex(NamedTuple):
    """
    The members of a tar that are plain files, in their order.

    Args:
        num_bytes: Size of the tar.
        is_closed: Whether blocks of zeros end it. A tar without them may have been cut between two members.
        names: Names of the members.
        places: Where the contents start, their size, and the checksum of the header; int64 of shape (members, 3).
        labels: What a member holds as a label (.cls, or "label" of .json), by number of the member.
        digest: A hash of all headers.
    """

    num_bytes: int
    is_closed: bool
    names: list[str]
    places: np.ndarray
    labels: dict[int, int | str]
    digest: str


def read_indexes(files: list[str], retry_minutes: float = 0) -> list[TarIndex]:
    """
    The indexes of tars, local or remote, with a progress bar. Indexes of files on the Hub, whose addresses name a
    commit, are cached one by one, so that an interrupted pass resumes.

    Raises:
        UserError: if a file is no tar, or is truncated.
    """
    progress = ProgressBar(
        total=len(files),
        desc="Indexing tars",
        bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]",
        delay=2,
        leave=False,
    )
    pool = ThreadPoolExecutor(REMOTE_READERS)
    with progress:
        try:
            return list(pool.map(lambda file: _cached_index(file, retry_minutes, progress.update), files))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _cached_index(file: str, retry_minutes: float, advance: Callable[[float], object]) -> TarIndex:
    if not re.match(r"hf://[^@]+@[0-9a-f]{40}/", file):
        return _read_index(file, retry_minutes, advance)
    path = Path(datasets.config.HF_DATASETS_CACHE) / "tar_indexes" / f"{hash_key(file, size=16).hex()}.npz"
    with _lock(path):  # the ranks of a machine share the work
        index = _load(path)
        if index is None:
            index = _read_index(file, retry_minutes, advance)
            with contextlib.suppress(OSError):  # the run works without a cache
                _save(path, index)
        else:
            advance(1.0)
    return index


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lock a file of the cache; a cache that cannot be written needs no lock."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock"))
        yield


def _save(path: Path, index: TarIndex) -> None:
    facts = index._asdict() | {"labels": list(index.labels.items())}
    places = facts.pop("places")
    with atomic_write(path) as unfinished, open(unfinished, "wb") as stream:
        np.savez_compressed(stream, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), places=places)


def _load(path: Path) -> TarIndex | None:
    try:
        with np.load(path) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return TarIndex(**facts | {"places": arrays["places"], "labels": dict(facts["labels"])})
    except Exception:  # a damaged file counts as missing
        return None


class RangeFile:
    """
    A file that is read in blocks of the size that suits how far apart its reads are, for a pass over headers.

    Blocks start small and grow fourfold while each read starts near the end of the last block. Headers that are far
    apart take one small request each, and a tar of small files is read whole in large blocks.
    """

    def __init__(self, file_system: AbstractFileSystem, path: str, retry_minutes: float):
        self.file_system = file_system
        self.path = path
        self.retry_minutes = retry_minutes
        self.position = 0
        self._stream: Any = None
        self._block, self._start, self._block_size = b"", 0, SMALL_BLOCK
        self._attempt = Retry(f"Reading headers of {path}", retry_minutes)
        self.size = int(self._retried(lambda: self.file_system.info(path)["size"]))

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        self.position = position
        return position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file."""
        end, parts = min(self.position + size, self.size), []
        while self.position < end:
            offset = self.position - self._start
            if not 0 <= offset < len(self._block):
                self._fetch(end - self.position)
                offset = 0
            parts.append(self._block[offset : offset + end - self.position])
            self.position += len(parts[-1])
        return b"".join(parts)

    def _fetch(self, at_least: int) -> None:
        is_near = 0 <= self.position - self._start - len(self._block) <= SKIP
        self._block_size = min(4 * self._block_size, LARGE_BLOCK) if is_near else SMALL_BLOCK
        start, stop = self.position, min(self.position + max(self._block_size, at_least), self.size)
        self._block, self._start = self._retried(lambda: self._read_range(start, stop)), start

    def _read_range(self, start: int, stop: int) -> bytes:
        if self._stream is None:
            self._stream = self.file_system.open(self.path, cache_type="none")
        self._stream.seek(start)
        data = self._stream.read(stop - start)
        if len(data) < stop - start:
            raise ConnectionError(f"{len(data)} of {stop - start} bytes came")
        return data

    def _retried(self, function: Callable[[], Any]) -> Any:
        while True:
            try:
                result = function()
            except Exception as error:
                self.close()
                if not self._attempt.wait(error):
                    raise UserError(f"{self.path} cannot be read: {explain(error)}") from error
                continue
            self._attempt.succeeded()
            return result

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def _read_index(file: str, retry_minutes: float, advance: Callable[[float], object]) -> TarIndex:
    """Read all headers of a tar. `advance` is called with shares of 1."""
    file_system, path = fsspec.core.url_to_fs(file)
    stream = RangeFile(file_system, path, retry_minutes)
    names: list[str] = []
    places, labels, headers, done = [], {}, [], 0.0
    try:
        # "r:" refuses compressed tars, whose members cannot be read one by one.
        tar = tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape")  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # it keeps them all otherwise
            headers.append((member.name, member.offset_data, member.size, member.chksum, int(member.mtime)))
            if not member.isreg() or member.issparse() or _is_hidden(member.name):
                continue
            label = _read_label(stream, member)
            if label is not None:
                labels[len(names)] = label
            names.append(member.name)
            places.append((member.offset_data, member.size, member.chksum))
            if len(headers) % 256 == 0:
                share = tar.offset / stream.size
                advance(share - done)
                done = share
        is_closed = _check_end(file, stream, tar.offset)
    except tarfile.ReadError as error:
        if "unexpected end of data" in str(error):
            raise UserError(
                f"{file} is truncated: it has {stream.size:,} bytes, and the last of its {len(headers):,} members "
                "ends behind them. Copy or download it again."
            ) from None
        raise UserError(f"{file} is not an uncompressed tar ({error}).") from None
    finally:
        stream.close()
    advance(1.0 - done)
    digest = hash_key(stream.size, *headers).hex()
    return TarIndex(stream.size, is_closed, names, np.array(places, np.int64).reshape(-1, 3), labels, digest)


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden, as those that macOS adds are (`._0001.jpg`)."""
    return os.path.basename(name).startswith(".")


def _read_label(stream: RangeFile, member: tarfile.TarInfo) -> int | str | None:
    extension = sample_key(member.name)[1]
    if extension not in ("cls", "json") or member.size > _LABEL_BYTES:
        return None
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    try:
        text = content.decode().strip()
        label = json.loads(text).get("label") if extension == "json" else text
    except (ValueError, AttributeError):  # no JSON, or no dictionary
        return None
    if isinstance(label, str) and re.fullmatch(r"-?\d{1,18}", label):
        return int(label)
    return label if isinstance(label, (int, str)) and not isinstance(label, bool) else None


def _check_end(file: str, stream: RangeFile, offset: int) -> bool:
    """
    Whether blocks of zeros end a tar, after its last member.

    Raises:
        UserError: if something else stands there.
    """
    stream.seek(offset)
    block = stream.read(HEADER)
    if any(block) or 0 < len(block) < HEADER:
        raise UserError(
            f"{file} is truncated or damaged: there is no valid header at byte {offset:,} of {stream.size:,}. Copy or "
            "download it again."
        )
    return bool(block)


def sample_key(name: str) -> tuple[str, str]:
    """The key and the extension of a member, as WebDataset has them: the name up to its first dot, and the rest."""
    folder, base = os.path.split(name)
    key, _, extension = base.partition(".")
    return os.path.join(folder, key), extension.lower()
