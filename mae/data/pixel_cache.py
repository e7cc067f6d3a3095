"""
Decoded images in memory that DataLoader workers and ranks of a machine share, so that each is decoded once.

    CachedRows      leaves out the encoded bytes of images whose pixels are in the cache
    PixelCache      the memory
    SharedImage     takes its pixels from the cache, or puts them there
"""

import fcntl
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np

from mae.data.bands import Bands
from mae.data.decoding import OpenImage, open_image
from mae.data.sources import Source, View
from mae.utils.memory import available_memory


_DTYPES = (np.uint8, np.float32)
_REDUCTIONS = (1, 2, 4, 8)
_HEAD = 8  # int64 values at the start of the file
_TOKEN, _NEXT, _COUNT, _REFUSED, _CLOSED = range(5)
_ENTRY = 8  # int32 values before pixels: their shape, type and order of memory, and the `Size` of the whole image
_PENDING = 1  # instead of the place of an image that is being written
_CHECKED = 64 * 2**20  # bytes that are added before the free memory is measured again


class Size(NamedTuple):
    """Height and width of a whole image, and whether it is decoded at a fraction of its size for large crops."""

    height: int
    width: int
    is_large: bool


class PixelCache:
    """
    Decoded images by their row, in one file without a name that processes map: children inherit it, and other
    processes of the machine attach to it. The memory is used as it is filled, counts against the limit of a container
    (not against its /dev/shm), and is free again when the last process ends, however it ends.

    An image that is in stays in. Each epoch needs each image once, in an order that is new each time, so that no
    image is needed sooner than another. A cache that drops the least recently used one would drop what comes next.

    A lock of the file guards the index. The system releases it if its process is killed.

    Args:
        num_rows: Rows of the source.
        max_bytes: Size of the whole cache, index included.
        reserve: Bytes of free memory below which it takes no more images.
        file: An open file of a cache that was made with the same arguments; None for a new one.

    Raises:
        OSError: if the system has no room for it.
    """

    def __init__(self, num_rows: int, max_bytes: int, reserve: int = 0, file: int | None = None):
        self.num_rows = num_rows
        self.max_bytes = max_bytes
        self.reserve = reserve
        self._map_file(_anonymous_file() if file is None else file)
        if file is None:
            self._head[_TOKEN] = int.from_bytes(os.urandom(7), "big")
            self._head[_NEXT] = self._first_byte

    @classmethod
    def attach(cls, address: tuple[int, int, int], num_rows: int, max_bytes: int, reserve: int = 0) -> "PixelCache":
        """
        The cache of another process of this machine and user, made with the same arguments.

        Raises:
            OSError: if this process cannot open it.
        """
        process, number, token = address
        file = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
        # Another namespace has processes of the same numbers.
        if os.pread(file, 8, 0) != token.to_bytes(8, "little"):
            os.close(file)
            raise FileNotFoundError(f"process {process} has no such cache")
        return cls(num_rows, max_bytes, reserve, file)

    @property
    def address(self) -> tuple[int, int, int]:
        """Where other processes find it."""
        return os.getpid(), self._file, int(self._head[_TOKEN])

    def _map_file(self, file: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)
        # A plane of places for each reduction, so that those that are not used take no memory.
        self._first_byte = 8 * (_HEAD + len(_REDUCTIONS) * self.num_rows)
        size = max(self.max_bytes, self._first_byte)
        os.ftruncate(file, size)
        self._map = mmap.mmap(file, size)
        values = np.frombuffer(self._map, dtype=np.int64, count=self._first_byte // 8)
        self._head = values[:_HEAD]
        self._places = dict(zip(_REDUCTIONS, values[_HEAD:].reshape(-1, self.num_rows)))
        self._int32 = np.frombuffer(self._map, dtype=np.int32, count=size // 4)
        self._next_check = 0

    def __reduce__(self) -> tuple:
        """For workers that are not forked: they map the same file."""
        return _restore, (self.num_rows, self.max_bytes, self.reserve, DupFd(self._file))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    @property
    def num_images(self) -> int:
        """Number of rows that are in."""
        return int(self._head[_COUNT])

    @property
    def num_bytes(self) -> int:
        """Bytes of their pixels."""
        return int(self._head[_NEXT]) - self._first_byte

    @property
    def is_full(self) -> bool:
        """Whether it had no room for an image."""
        return bool(self._head[_REFUSED])

    def get(self, row: int, reduction: int = 1) -> tuple[np.ndarray, Size] | None:
        """Pixels of a row's image, `(H, W, C)`, not to be written to, and the size of the whole; None if not in."""
        place = self._places[reduction].item(row)
        if place <= _PENDING:
            return None
        start = place // 4
        height, width, channels, dtype, is_planar, *size = self._int32[start : start + _ENTRY].tolist()
        shape = (channels, height, width) if is_planar else (height, width, channels)
        pixels = np.ndarray(shape, _DTYPES[dtype], self._map, place + 4 * _ENTRY)
        return np.moveaxis(pixels, 0, 2) if is_planar else pixels, Size(*size)

    def find(self, row: int) -> tuple[int, np.ndarray, Size] | None:
        """The reduction, and what `get` returns for it, of any pixels of a row's image; None if none are in."""
        for reduction in _REDUCTIONS:
            found = self.get(row, reduction)
            if found is not None:
                return reduction, *found
        return None

    def holds(self, row: int) -> bool:
        """Whether nothing of a row's file is needed any more."""
        place = self._places[1].item(row)
        is_large = place // 4 + _ENTRY - 1  # the last value of its `Size`
        return place > _PENDING and not self._int32[is_large]

    def put(self, row: int, reduction: int, pixels: np.ndarray, size: Size) -> None:
        """
        Add the pixels of a row's image, if there is room.

        Args:
            reduction: The one that they are decoded with.
            pixels: uint8 or float32 of shape (H, W, C).
            size: Of the whole image.
        """
        if self._head[_CLOSED]:
            return
        # In the decoder's order of memory, because the bits of a resized image may depend on it.
        is_planar = not pixels.flags.c_contiguous
        data = np.moveaxis(pixels, 2, 0) if is_planar else pixels
        entry = np.array([*pixels.shape, _DTYPES.index(pixels.dtype), is_planar, *size], dtype=np.int32)
        place = self._reserve(row, reduction, entry.nbytes + data.nbytes)
        if place is None:
            return
        try:
            # Written as to a file, because memory that is full is an error then, and no signal.
            _write(self._file, entry.tobytes() + data.tobytes(), place)
        except OSError:
            self._close()
            return
        with self._locked():
            self._head[_COUNT] += self.find(row) is None
            self._places[reduction][row] = place

    def _close(self) -> None:
        self._head[_CLOSED] = self._head[_REFUSED] = True

    def _reserve(self, row: int, reduction: int, num_bytes: int) -> int | None:
        """A place for so many bytes; None if there is no room, or another process has the image."""
        with self._locked():
            places, start = self._places[reduction], int(self._head[_NEXT])
            end = start + math.ceil(num_bytes / 16) * 16
            if places[row]:  # another process has been faster
                return None
            if end > self.max_bytes:
                self._head[_REFUSED] = True  # and no more: a smaller image may still have room
                return None
            if end > self._next_check:
                self._next_check = end + _CHECKED
                if available_memory() < self.reserve:
                    self._close()
                    return None
            places[row] = _PENDING
            self._head[_NEXT] = end
            return start


def _anonymous_file() -> int:
    """A file in memory that has no name, so that a killed process leaves nothing behind."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixel-cache")
    with tempfile.TemporaryFile() as file:  # systems other than Linux
        return os.dup(file.fileno())


def _restore(num_rows: int, max_bytes: int, reserve: int, file: Any) -> PixelCache:
    return PixelCache(num_rows, max_bytes, reserve, file.detach())


def _write(file: int, data: Any, place: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


class CachedRows(View):
    """Another source, of which rows that are in a cache are not read: they are empty."""

    def __init__(self, source: Source, cache: PixelCache):
        super().__init__(source)
        self.cache = cache
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        start, rows = int(self.starts[group]), None
        for row in range(first_row, self.group_sizes[group]):
            if self.cache.holds(start + row):
                if rows is not None:
                    next(rows, None)
                yield b""
                continue
            rows = rows or iter(self.source.read(group, row))
            image = next(rows, None)
            if image is None:  # the other source has ended early, and so does this one
                return
            yield image

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return self.source.origin(group, row)


class SharedImage(OpenImage):
    """An image that is decoded once for all its samples and, with a cache that has room for it, for all epochs."""

    def __init__(self, data: bytes | str | OpenImage, row: int, cache: PixelCache | None):
        self.data = data
        self.row = row
        self.cache = cache
        self._size: Size | None = None
        self._encoded: OpenImage | None = None
        self._pixels: dict[int, np.ndarray] = {}

    def open(self, bands: Bands) -> "SharedImage":
        """
        Find its size, from the cache or the header.

        Raises:
            DecodingError: if it is no image.
        """
        if self._size is None:
            self.bands = bands
            found = None if self.cache is None else self.cache.find(self.row)
            if found is not None:
                reduction, self._pixels[reduction], self._size = found
            else:
                image = self._encoded = open_image(self.data, bands)
                self._size = Size(image.height, image.width, image.is_large)
            self.height, self.width, self.is_large = self._size
        return self

    def values(self) -> np.ndarray:
        return open_image(self.data, self.bands).values()

    def pixels(self, reduction: int = 1) -> np.ndarray:
        if reduction not in self._pixels:
            found = None if self.cache is None else self.cache.get(self.row, reduction)
            self._pixels[reduction] = self._decode(reduction) if found is None else found[0]
        return self._pixels[reduction]

    def _decode(self, reduction: int) -> np.ndarray:
        image, self._encoded = self._encoded or open_image(self.data, self.bands), None
        pixels = image.pixels(reduction)
        if self.cache is not None:
            self.cache.put(self.row, reduction, pixels, self._size)
        return pixels
