"""Tiles of large images as addressable rows: an epoch covers a scene once."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.bands import Bands
from mae.data.decoding import OpenImage, explained
from mae.data.scenes import Scene, WholeScene, open_scene
from mae.data.sources import ImageFileSource, View
from mae.utils.errors import UserError
from mae.utils.files import atomic_write
from mae.utils.hashing import hash_key


logger = logging.getLogger(__name__)


class Tile(NamedTuple):
    """A window of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Tiling(NamedTuple):
    """
    How images are cut.

    Args:
        size: Side of a tile.
        overlap: Pixels that neighbours share.
        max_empty_share: A tile is left out if one value takes a larger share of its pixels, at least 0.5; None keeps
            all tiles.
    """

    size: int
    overlap: int = 0
    max_empty_share: float | None = None


def cut(height: int, width: int, tiling: Tiling) -> list[Tile]:
    """
    The tiles of an image, row by row. The last of a row and of a column is shifted inwards, so that each has the full
    size: a narrow rest would be enlarged more than its neighbours. A side that is shorter than a tile is not cut.
    """
    size, overlap = tiling[:2]
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    return [Tile(top, left, min(size, height), min(size, width)) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    return [*range(0, length - size, size - overlap), max(length - size, 0)]


def empty_share(pixels: np.ndarray) -> float:
    """
    The share of the pixels that have the most frequent value, if it is above one half; otherwise a smaller number.

    Args:
        pixels: Shape `(H, W, C)`. NaN equals NaN.
    """
    flat = pixels.reshape(-1, pixels.shape[-1])
    # A value that more than half of the pixels have is the median of each channel.
    middle = np.partition(flat, len(flat) // 2, axis=0)[len(flat) // 2]
    return float(((flat == middle) | ((flat != flat) & (middle != middle))).all(-1).mean())


class TileImage(OpenImage):
    """
    A tile as the image of a sample. Workers read it where they decode it.

    Args:
        path: File of the whole image.
        tile: The window.
    """

    is_large = False

    def __init__(self, path: str, tile: Tile):
        self.path = path
        self.tile = tile
        self.height, self.width = tile.height, tile.width
        self.scene: Scene | None = None

    def __len__(self) -> int:
        """Bytes that a waiting sample takes: the address alone."""
        return len(self.path)

    @explained
    def open(self, bands: Bands) -> "TileImage":
        self.scene = open_scene(self.path, bands)
        return self

    @explained
    def values(self) -> np.ndarray:
        return self.scene.values(*self.tile)

    @explained
    def pixels(self, reduction: int = 1) -> np.ndarray:
        return self.scene.pixels(*self.tile)


class TileSource(View):
    """
    A group is an image, and a row is one of its tiles. An image that is one tile is a row as it is.

    Args:
        source: Image files.
        sizes: (height, width) of each image, `(n, 2)`; zeros for one that cannot be read, which is one row.
        kept: For each image the numbers of its tiles that are rows; None for all.
        tiling: How images are cut.
    """

    source: ImageFileSource

    def __init__(self, source: ImageFileSource, sizes: np.ndarray, kept: list[np.ndarray] | None, tiling: Tiling):
        super().__init__(source)
        self.sizes = sizes
        self.tiling = tiling
        self.kept = kept
        counts = [len(cut(height, width, tiling)) for height, width in sizes.tolist()]
        self.num_left_out = 0 if kept is None else sum(counts) - sum(map(len, kept))
        self.group_sizes = counts if kept is None else [len(numbers) for numbers in kept]
        numbers = b"" if kept is None else b"|".join(rows.astype(np.int64).tobytes() for rows in kept)
        self.fingerprint = hash_key("tiles", source.fingerprint, *tiling, sizes.tobytes(), numbers).hex()

    def _tile(self, group: int, row: int) -> tuple[Tile, int] | None:
        """The tile of a row and its number in the image; None if it is the whole image."""
        height, width = self.sizes[group].tolist()
        tiles = cut(height, width, self.tiling)
        if len(tiles) == 1:
            return None
        number = row if self.kept is None else int(self.kept[group][row])
        return tiles[number], number

    def read(self, group: int, first_row: int) -> Iterator[bytes | str | OpenImage]:
        for row in range(first_row, self.group_sizes[group]):
            tile = self._tile(group, row)
            if tile is None:
                yield from self.source.read(group, 0)
            else:
                yield TileImage(self.source.paths[group], tile[0])

    def origin(self, group: int, row: int) -> tuple[str, int]:
        """The file, with the left and upper edge of a tile, and the number of the tile in the whole image."""
        name, tile = self.source.origin(group, 0)[0], self._tile(group, row)
        return (name, 0) if tile is None else (f"{name} (x={tile[0].left}, y={tile[0].top})", tile[1])

    def row_numbers(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.source)), self.group_sizes)


def cut_source(
    source: ImageFileSource, tiling: Tiling, bands: int | Bands, cache: Path | None = None, flag: str = "--train_dir"
) -> TileSource:
    """
    Cut the images of a source into tiles. Sizes come from headers. Empty tiles are looked for once: the result is kept
    in a file.

    Args:
        source: Local image files.
        bands: What is read of them.
        cache: Folder of that file; None for no such file.
        flag: The flag that names the images, for messages.

    Raises:
        UserError: if a large image has to be decoded whole, or if all tiles are empty.
    """
    bands = Bands.of(bands)
    sizes = np.array([_size(path, bands) for path in source.paths], dtype=np.int64)
    kept = None
    if tiling.max_empty_share is not None:
        times = [Path(path).stat().st_mtime_ns for path in source.paths]
        parts = *tiling, bands.num_channels, *(bands.channels or ()), *times
        key = hash_key("empty tiles", source.fingerprint, *parts, size=16).hex()
        kept = _once(cache and cache / f"{key}.npz", lambda: _find_kept(source, sizes, tiling, bands), len(sizes))
    tiles = TileSource(source, sizes, kept, tiling)
    total = len(tiles) + tiles.num_left_out
    if not len(tiles):
        raise UserError(
            f"All {total:,} tiles of {flag} are empty. Raise --max_empty_share {tiling.max_empty_share}, or leave it "
            "out."
        )
    left_out = f"; {tiles.num_left_out:,} of {total:,} are empty and left out" if kept is not None else ""
    logger.info(f"{len(source):,} images of {flag} are {len(tiles):,} tiles of {tiling.size} pixels{left_out}.")
    return tiles


def _size(path: str, bands: Bands) -> tuple[int, int]:
    """Height and width; zeros if it cannot be read, so that its one row is skipped with the reason."""
    try:
        scene = open_scene(path, bands)
    except UserError:
        raise
    except Exception:  # broken files end in errors of many kinds
        return 0, 0
    return scene.height, scene.width


def _find_kept(source: ImageFileSource, sizes: np.ndarray, tiling: Tiling, bands: Bands) -> list[np.ndarray]:
    """Numbers of the tiles of each image that are not empty. A tile that cannot be read is kept, and skipped later."""
    logger.info(f"Reading {len(source):,} images to find their empty tiles, once.")
    kept = []
    for path, (height, width) in zip(source.paths, sizes.tolist()):
        tiles = cut(height, width, tiling)
        kept.append(np.array([n for n, tile in enumerate(tiles) if not _is_empty(path, tile, tiling, bands)]))
        WholeScene.kept.clear()  # workers would inherit it
    return [numbers.astype(np.int64) for numbers in kept]


def _is_empty(path: str, tile: Tile, tiling: Tiling, bands: Bands) -> bool:
    try:
        return empty_share(open_scene(path, bands).values(*tile)) > tiling.max_empty_share
    except Exception:
        return False


def _once(file: Path | None, find: Callable[[], list[np.ndarray]], count: int) -> list[np.ndarray]:
    """Read lists of numbers from a file, or find them and write it."""
    try:
        with np.load(file) as saved:
            ends, numbers = saved["ends"], saved["numbers"]
        if len(ends) == count:
            return np.split(numbers, ends[:-1])
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        pass
    kept = find()
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as path, open(path, "wb") as out:
                np.savez(out, ends=np.cumsum([len(numbers) for numbers in kept]), numbers=np.concatenate(kept))
        except OSError as error:
            logger.warning(f"{file} cannot be written ({error}). Empty tiles are found again by the next run.")
    return kept
