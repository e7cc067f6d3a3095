"""Some rows of a source: splits, samples, cached rows."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from mae.data.sources import Source
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key, permutation


def origin_columns(source: Source, rows: np.ndarray) -> dict[str, list]:
    """Where images come from, as columns of a table: the file's name and the row within it."""
    origins = row_origins(source, rows)
    # Names that are not UTF-8 could not be written.
    names = [file.encode("utf-8", "backslashreplace").decode() for file, _ in origins]
    return {"file": names, "row": [row for _, row in origins]}


class Subset:
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


class CachedSource:
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

    def part(name: str, counts: np.ndarray, rows: Callable[[int], np.ndarray]) -> Subset:
        fingerprint = hash_key("part", source.fingerprint, share, seed, name).hex()
        return Subset(source, counts.tolist(), rows, fingerprint)

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
    return Subset(source, np.diff(bounds).tolist(), rows_of, fingerprint)


def row_origins(source: Source, rows: np.ndarray) -> list[tuple[str, int]]:
    """Where rows, by their numbers over all groups, come from."""
    starts = np.concatenate([[0], np.cumsum(source.group_sizes)])
    groups = np.searchsorted(starts, rows, side="right") - 1
    return [source.origin(group, row) for group, row in zip(groups.tolist(), (rows - starts[groups]).tolist())]
