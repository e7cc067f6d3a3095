"""Some rows of a source: splits, samples, cached rows, rows without images."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from mae.data.sources import Source, View
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key, permutation
from mae.utils.text import encodable


class Subset(View):
    """
    Some rows of each group of another source.

    Args:
        sizes: Number of rows of each group that are in it.
        rows: group -> the numbers of these rows, ascending.
        fingerprint: A hash of the choice and of the other source.
    """

    def __init__(self, source: Source, sizes: list[int], rows: Callable[[int], np.ndarray], fingerprint: str):
        super().__init__(source)
        self.group_sizes = sizes
        self.rows = lru_cache(maxsize=64)(rows)
        self.fingerprint = fingerprint

    def row_numbers(self) -> np.ndarray:
        starts = self.source.starts
        rows = [starts[group] + self.rows(group) for group, size in enumerate(self.group_sizes) if size]
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        wanted = self.rows(group)[first_row:].tolist()
        rows = enumerate(self.source.read(group, wanted[0]), wanted[0])
        for number in wanted:
            image = next((image for row, image in rows if row == number), None)
            if image is None:  # the other source has ended early, and so does this one
                return
            yield image

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.source.origin(group, int(self.rows(group)[row]))


class CachedSource(View):
    """
    A few rows of a large source that are read once. The encoded images stay in memory, up to `max_bytes`; otherwise
    each epoch would read again what lies between them. It may be read by several threads.
    """

    def __init__(self, source: Source, max_bytes: int = 2**30):
        super().__init__(source)
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint
        self._room = max_bytes
        self._images: dict[int, list[bytes | str]] = {}
        self._room_lock = threading.Lock()
        # Two lanes may share a group, which is still read once.
        self._group_locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        with self._room_lock:
            lock = self._group_locks[group]
        with lock:
            images = self._images.get(group)
            if images is None:
                images = list(self.source.read(group, 0))
                self._keep(group, images)
        yield from images[first_row:]

    def _keep(self, group: int, images: list[bytes | str]) -> None:
        if len(images) < self.group_sizes[group]:  # the reader raises an error for the missing rows, or retries
            return
        size = sum(map(len, images))
        with self._room_lock:
            if size <= self._room:
                self._room -= size
                self._images[group] = images

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.source.origin(group, row)


class RowNumbers(View):
    """The rows of another source without their images, if only their order counts."""

    def __init__(self, source: Source):
        super().__init__(source)
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint
        self.num_readers = 1

    def read(self, group: int, first_row: int) -> Iterator[bytes]:
        for _ in range(first_row, self.group_sizes[group]):
            yield b""

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.source.origin(group, row)


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """
    Split a source in two, the second part with about `share` of the rows. They are drawn within each group, so that a
    part is read as quickly as the whole, and the index of millions of groups takes no memory.

    Raises:
        UserError: if one part would be empty.
    """
    sizes = np.asarray(source.group_sizes)
    # Rounded at random, because groups of one row would otherwise all fall on one side.
    chance = np.argsort(permutation(len(sizes), seed, "held out")) + 0.5
    held = np.floor(sizes * share + chance / len(sizes)).astype(np.int64)
    if not 0 < held.sum() < sizes.sum():
        raise UserError(
            f"--train_val_split {share} of {sizes.sum()} images leaves {sizes.sum() - held.sum()} training images and "
            f"{held.sum()} validation images. Choose another share."
        )

    def held_rows(group: int) -> np.ndarray:
        return np.sort(permutation(int(sizes[group]), seed, "held out", group)[: held[group]])

    def other_rows(group: int) -> np.ndarray:
        return np.setdiff1d(np.arange(sizes[group]), held_rows(group), assume_unique=True)

    def part(name: str, counts: np.ndarray, rows: Callable[[int], np.ndarray]) -> Subset:
        fingerprint = hash_key("part", source.fingerprint, share, seed, name).hex()
        return Subset(source, counts.tolist(), rows, fingerprint)

    return part("train", sizes - held, other_rows), part("held out", held, held_rows)


def take_rows(source: Source, rows: np.ndarray) -> Subset:
    """
    Take some rows of a source.

    Args:
        rows: Their numbers over all groups, ascending.
    """
    bounds = np.searchsorted(rows, source.starts)  # group g has rows[bounds[g] : bounds[g + 1]]

    def rows_of(group: int) -> np.ndarray:
        return rows[bounds[group] : bounds[group + 1]] - source.starts[group]

    fingerprint = hash_key("rows", source.fingerprint, rows.astype(np.int64).tobytes()).hex()
    return Subset(source, np.diff(bounds).tolist(), rows_of, fingerprint)


def origin_columns(source: Source, rows: np.ndarray) -> dict[str, list]:
    """Origins of rows as columns of a table: the name of the file, and the number of the row in it."""
    origins = source.row_origins(rows)
    return {"file": [encodable(file) for file, _ in origins], "row": [row for _, row in origins]}
