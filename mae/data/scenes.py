"""
Large images that are read by window.

    NpyScene      a memory-mapped `.npy` file
    TiffScene     a TIFF file: the tiles or strips that a window touches
    WholeScene    any other image, which is decoded whole and kept for its next window
"""

import os
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import lru_cache
from math import prod

import numpy as np
from PIL import Image

from mae.data.bands import Bands, find_channels, is_planar, tiff_names, to_pixels
from mae.data.decoding import EncodedImage, max_pixels, on_white
from mae.utils.errors import UserError


# Pixels of whole scenes that a process keeps. Tiles of a scene are near each other in the order of an epoch.
MAX_DECODED_BYTES = 512 * 2**20
_RGB, _BLACK_IS_0 = 2, 1
_ORIENTATION = 274
_ALPHA = 2  # not multiplied into the colours


class Scene(ABC):
    """
    An image whose size is known from its header.

    Args:
        height, width: Its pixels.
        bands: What is read of it.
    """

    height: int
    width: int
    bands: Bands

    @abstractmethod
    def values(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The values of a window, `(height, width, C)`, as [`OpenImage.values`] has those of a whole image."""

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A window in the range of 8 bits, `(height, width, C)`, as [`OpenImage.pixels`] has a whole image."""
        return to_pixels(self.values(top, left, height, width), self.bands)


class NpyScene(Scene):
    """An array of shape (H, W), (H, W, C) or (C, H, W) in a `.npy` file."""

    def __init__(self, path: str, bands: Bands):
        # The map is opened for each window, because pages of an open one count as memory of this process.
        self.path, self.bands = path, bands
        shape = self._map().shape
        self.channels = find_channels(bands, shape, list)
        self.height, self.width = shape[:2]

    def _map(self) -> np.ndarray:
        array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        array = np.moveaxis(array, 0, 2) if is_planar(array.shape, self.bands) else array
        return array[..., None] if array.ndim == 2 else array

    def values(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        window = self._map()[top : top + height, left : left + width]
        return np.array(window if self.channels is None else window[..., self.channels])


class TiffScene(Scene):
    """
    A TIFF file of which a window's tiles or strips are read. Its pages are the channels if there are as many, or if
    channels are chosen and a page has only one.

    Raises:
        LookupError: if its values are not its pixels (a palette, for example), or if it is compressed in one piece
            or by a method that needs a missing package. Such a file is decoded whole.
    """

    def __init__(self, path: str, bands: Bands):
        import tifffile

        self.path, self.bands = path, bands
        num_channels = bands.num_channels
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            samples = page.samplesperpixel
            is_stack = samples == 1 and (bands.channels is not None or len(tiff.pages) == num_channels)
            self.channels = None
            if bands.are_arrays:
                count = samples * len(tiff.pages) if is_stack else samples
                shape = page.imagelength, page.imagewidth, count
                self.channels = find_channels(bands, shape, lambda: tiff_names(tiff))
            pages = [page]
            if bands.are_arrays and is_stack:  # only those that are read
                indices = range(len(tiff.pages)) if self.channels is None else self.channels
                pages, self.channels = [tiff.pages.get(index, aspage=True) for index in indices], None
            # A plane for each channel, or one that holds them all.
            self.planes = range(samples if page.planarconfig == 2 else 1)
            if len(self.planes) > 1 and self.channels is not None:
                self.planes, self.channels = self.channels, None
            self._check(pages, samples)
            # A KeyError if they need imagecodecs and it is not installed.
            tifffile.TIFF.DECOMPRESSORS[page.compression], tifffile.TIFF.UNPREDICTORS[page.predictor]
            self.pages = pages
            self.decoders = [page.decode for page in pages]
            # A file without compression needs no pieces.
            self.maps = [self._place(page, tiff.byteorder) for page in pages] if page.is_contiguous else None
        self.height, self.width = page.imagelength, page.imagewidth

    def _check(self, pages: list, samples: int) -> None:
        page, dtype = pages[0], pages[0].dtype
        plain = same = all((other.shape, other.dtype) == (page.shape, dtype) for other in pages)
        if not self.bands.are_arrays:  # the pixels that Pillow would decode
            alpha = samples == 4 and page.extrasamples == (_ALPHA,)
            colour = self.bands.num_channels == 3 and dtype == np.uint8 and page.photometric == _RGB
            grey = samples == 1 and page.photometric == _BLACK_IS_0 and dtype in (np.uint8, np.uint16)
            plain = grey or (colour and (samples == 3 or alpha))
            orientation = page.tags.get(_ORIENTATION)
            plain = plain and (orientation is None or orientation.value == 1)
        one_piece = not page.is_contiguous and not page.is_tiled and page.rowsperstrip >= page.imagelength
        if not (plain and same and page.imagedepth == 1) or one_piece:
            raise LookupError("not to be read by window")

    def _place(self, page, byteorder: str) -> tuple[int, np.dtype, tuple[int, ...]]:
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        shape = planes, page.imagelength, page.imagewidth, page.samplesperpixel // planes
        return page.dataoffsets[0], page.dtype.newbyteorder(byteorder), shape

    def values(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        read = self._read_pieces if self.maps is None else self._read_map
        window = np.concatenate([read(number, top, left, height, width) for number in range(len(self.pages))], -1)
        if self.bands.are_arrays:
            return window if self.channels is None else window[..., self.channels]
        if window.dtype == np.uint16:  # as the decoder scales a whole image of 16 bits
            window = ((window.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if window.shape[2] == 4:
            return np.array(on_white(Image.fromarray(window)).convert("RGB"))
        return np.repeat(window, 3, -1) if window.shape[2] < self.bands.num_channels else window

    def _read_map(self, number: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        offset, dtype, shape = self.maps[number]
        array = np.memmap(self.path, dtype, "r", offset, shape)[:, top : top + height, left : left + width]
        return _channels_last(array[list(self.planes)].astype(dtype.newbyteorder("=")))

    def _read_pieces(self, number: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        page = self.pages[number]
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        down, across = -(-self.height // rows), -(-self.width // columns)
        samples = 1 if page.planarconfig == 2 else page.samplesperpixel
        window = np.full((len(self.planes), height, width, samples), page.nodata, page.dtype)
        # A descriptor of its own: workers would share the place in a file that was open before they were forked.
        file = os.open(self.path, os.O_RDONLY)
        try:
            for part, plane in zip(window, self.planes):
                for row in range(top // rows, (top + height - 1) // rows + 1):
                    for column in range(left // columns, (left + width - 1) // columns + 1):
                        self._read_piece(file, number, (plane * down + row) * across + column, part, top, left)
        finally:
            os.close(file)
        return _channels_last(window)

    def _read_piece(self, file: int, number: int, index: int, window: np.ndarray, top: int, left: int) -> None:
        """Copy into a window what a piece of the file has of it."""
        page = self.pages[number]
        count = page.databytecounts[index]
        if not count:  # a hole of a sparse file
            return
        data = os.pread(file, count, page.dataoffsets[index])
        if len(data) < count:
            raise ValueError(f"the file ends within piece {index}")
        tables = {"jpegtables": page.jpegtables} if page.compression == 7 else {}
        piece, (_, _, y, x, _), (_, rows, columns, _) = self.decoders[number](data, index, **tables)
        if piece is None:
            return
        height, width = window.shape[:2]
        first_y, last_y = max(y, top), min(y + rows, top + height)
        first_x, last_x = max(x, left), min(x + columns, left + width)
        part = piece[0, first_y - y : last_y - y, first_x - x : last_x - x]
        window[first_y - top : last_y - top, first_x - left : last_x - left] = part


class WholeScene(Scene):
    """An image that can only be decoded whole. Its pixels are kept, up to `MAX_DECODED_BYTES` in a process."""

    kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def __init__(self, path: str, bands: Bands):
        image = EncodedImage(path, bands)
        self.path, self.bands = path, bands
        self.height, self.width = image.height, image.width

    def values(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        whole = self.kept.pop(self.path, None)
        if whole is None:
            whole = EncodedImage(self.path, self.bands).values()
        self.kept[self.path] = whole  # the last is never dropped
        while len(self.kept) > 1 and sum(array.nbytes for array in self.kept.values()) > MAX_DECODED_BYTES:
            self.kept.popitem(last=False)
        return whole[top : top + height, left : left + width]

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        # Pictures are decoded to pixels. Another pass over them would be slow.
        read = super().pixels if self.bands.are_arrays else self.values
        return read(top, left, height, width)


@lru_cache(maxsize=64)
def open_scene(path: str, bands: int | Bands) -> Scene:
    """
    Open a large image in the way that reads least. Headers of the last ones are kept.

    Raises:
        UserError: if it is beyond the limit of pixels and has to be decoded whole.
    """
    bands = Bands.of(bands)
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        return NpyScene(path, bands)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            return TiffScene(path, bands)
        except (ImportError, LookupError):
            pass
    limit = max_pixels()
    if limit is not None and (size := _picture_size(path)) and prod(size) > limit:
        raise UserError(
            f"{path} has {size[0]:,} x {size[1]:,} pixels and cannot be read by window. Convert it to a tiled TIFF of "
            "8 bits, RGB or grey (gdal_translate -co TILED=YES -co COMPRESS=DEFLATE), and install tifffile; other "
            "compressions also need imagecodecs."
        )
    return WholeScene(path, bands)


def _picture_size(path: str) -> tuple[int, int] | None:
    """(width, height) from the header, of an image of any size; None if Pillow does not know it."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, struct.error):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(planes, H, W, samples) as (H, W, channels)."""
    return np.moveaxis(array, 0, 2).reshape(*array.shape[1:3], -1)
