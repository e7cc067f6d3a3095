"""
Decode an image file or array file to a tensor.

torchvision decodes JPEG files, and Pillow very large ones at a fraction of their size. Pillow decodes other image
files. NumPy decodes `.npy` files. tifffile decodes TIFF files if their values are asked for, see [`Bands`].
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from mae.data.bands import Bands, find_channels, is_planar, tiff_names, to_pixels
from mae.utils.errors import UserError, first_line


try:
    # The same pixels as Pillow's in two thirds of the time, but deprecated since torchvision 0.29.
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None
Result = TypeVar("Result")
# JPEGs with at least so many pixels are decoded at a fraction of their size if the crop allows it.
LARGE_PIXELS = 12_000_000
TILES_ADVICE = "Pass --tile_size 512 to use tiles of it."
_NPY = b"\x93NUMPY"
# TIFF and BigTIFF, in both byte orders.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


class DecodingError(ValueError):
    """An image that cannot be decoded; the message starts with the kind of the decoder's own error."""


def explained(function: Callable[..., Result]) -> Callable[..., Result]:
    """Turn any error of a decoder into a `DecodingError`: broken files end in errors of many kinds."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Result:
        try:
            return function(*args, **kwargs)
        except (DecodingError, UserError):  # a missing package is no fault of the image
            raise
        except UnidentifiedImageError as error:  # whose message has the address of a buffer
            raise DecodingError("it is no image of a known format") from error
        except Image.DecompressionBombError as error:
            raise DecodingError(f"{type(error).__name__}: {first_line(error)} {TILES_ADVICE}") from error
        except Exception as error:
            raise DecodingError(f"{type(error).__name__}: {first_line(error)}") from error

    return call


class OpenImage(ABC):
    """
    An image whose size is known, and that can be decoded.

    Args:
        height, width: Pixels of the decoded image.
        is_large: Whether it is a JPEG that is decoded at a fraction of its size if the crop allows it.
    """

    height: int
    width: int
    is_large: bool

    def open(self, bands: Bands) -> "OpenImage":
        """Read what is needed to know the size. Opening an image again is free."""
        return self

    @abstractmethod
    def values(self) -> np.ndarray:
        """
        The values `(H, W, C)` as they are in the file, of the channels that are asked for. Do not write to it.

        Raises:
            DecodingError: if it cannot be decoded.
        """

    @abstractmethod
    def pixels(self, reduction: int = 1) -> np.ndarray:
        """
        The image as `(H, W, C)`, in the range of 8 bits: uint8, or float32 from arrays of more bits, in which NaN
        stands for missing data. Do not write to it.

        With a reduction, H and W are divided by it and rounded up.

        Raises:
            DecodingError: if it cannot be decoded.
        """

    def decode(self) -> Tensor:
        """The whole image as `(C, H, W)`, see `pixels`."""
        return torch.from_numpy(self.pixels()).permute(2, 0, 1)

    def decode_crop(self, top: int, left: int, height: int, width: int, size: list[int]) -> Tensor:
        """
        A crop of the image, in its own pixels, resized to `size` (height, width): bicubic, with antialiasing.

        A large JPEG is decoded at 1/2, 1/4 or 1/8 of its sides, which its decoder can do quickly, if the crop then
        still has twice the pixels of `size` along each side.
        """
        reduction = 1
        if self.is_large:
            allowed = min(height // (2 * size[0]), width // (2 * size[1]))
            reduction = next((factor for factor in (8, 4, 2) if factor <= allowed), 1)
        bottom, right = (top + height) // reduction, (left + width) // reduction
        top, left = top // reduction, left // reduction
        # A copy of the crop in the decoder's order of memory is resized a third faster than a view of the image. NumPy
        # makes it in half of torch's time for a small image.
        crop = np.ascontiguousarray(self.pixels(reduction)[None, top:bottom, left:right])
        # The same as torchvision's resize, without its dispatch, which takes 45 us.
        pixels = torch.from_numpy(crop).permute(0, 3, 1, 2)
        pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)[0]
        return pixels.clamp_(0, 255) if pixels.is_floating_point() else pixels


class EncodedImage(OpenImage):
    """
    An image of which only the header is read. It can be decoded once.

    Args:
        data: The bytes of the file, or its path.
        bands: What is read of it. A number of channels stands for all of them.

    Raises:
        DecodingError: if it is no image, or beyond Pillow's limit (decompression bombs).
        UserError: if the package that reads it is not installed.
    """

    @explained
    def __init__(self, data: bytes | str | None, bands: int | Bands = 3):
        if not data:
            raise DecodingError("there is no image, only 0 bytes")
        if isinstance(data, str):
            _check_npy_file(data)
            with open(data, "rb") as file:
                data = file.read()
        self.data = data
        self.bands = bands = Bands.of(bands)
        self.array: np.ndarray | None = None
        self.picture: Image.Image | None = None
        self.is_large = False
        if data.startswith(_NPY) or (bands.are_arrays and data.startswith(_TIFF)):
            self.array = _read_array(data, bands)
            self.height, self.width = self.array.shape[:2]
            return
        if not bands.are_arrays and decode_jpeg is not None and (size := plain_jpeg_size(data)):
            self.height, self.width = size
            return
        self.picture = _open_picture(data)  # limited to about 179 megapixels
        self.width, self.height = self.picture.size
        self.orientation = _orientation(self.picture)
        if self.orientation >= 5:  # turned by 90 degrees
            self.height, self.width = self.picture.size
        if bands.are_arrays:
            self.array = _picture_values(self.picture, bands)
            return
        self.is_large = self.picture.format == "JPEG" and self.height * self.width >= LARGE_PIXELS

    def values(self) -> np.ndarray:
        return self.pixels() if self.array is None else self.array

    @explained
    def pixels(self, reduction: int = 1) -> np.ndarray:
        """
        Decode it, see [`OpenImage`]. The EXIF orientation is applied, transparent pixels are on white, and an
        animation gives its first frame.
        """
        if self.array is not None:
            return to_pixels(self.array, self.bands)
        if self.data.startswith(_JPEG) and decode_jpeg is not None and reduction == 1:
            mode = ImageReadMode.GRAY if self.bands.num_channels == 1 else ImageReadMode.RGB
            data = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
            return decode_jpeg(data, mode=mode, apply_exif_orientation=True).permute(1, 2, 0).numpy()
        picture = self.picture
        if reduction > 1:
            picture.draft(picture.mode, (picture.width // reduction, picture.height // reduction))
        if self.orientation > 1:
            picture = ImageOps.exif_transpose(picture)
        # First, because Pillow cuts values of 16 bits off in all that it does with them.
        picture = _to_8_bits(picture, self.picture.format)
        if picture.has_transparency_data:
            picture = on_white(picture)
        return np.atleast_3d(np.array(picture.convert("L" if self.bands.num_channels == 1 else "RGB")))


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """
    (height, width) of a JPEG of an ordinary size without EXIF data, from its markers. None for anything
    else, which Pillow opens in three times as long.
    """
    if not data.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1:  # EXIF may say that the image is turned
            return None
        if 0xC0 <= marker <= 0xC3:  # the start of a frame
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (height, width) if 0 < height * width < LARGE_PIXELS else None
        at += 2 + length
    return None


def open_image(image: bytes | str | OpenImage, bands: Bands) -> OpenImage:
    """Open an image, given as the bytes of its file, as a path, or as an image that several samples share."""
    return image.open(bands) if isinstance(image, OpenImage) else EncodedImage(image, bands)


def decode_image(data: bytes | str, bands: int | Bands = 3) -> Tensor:
    """Decode a whole image, see [`EncodedImage`]."""
    return EncodedImage(data, bands).decode()


def on_white(picture: Image.Image) -> Image.Image:
    """A transparent picture on white."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _open_picture(data: bytes) -> Image.Image:
    """Open an image file by Pillow. A PNG may have long texts or colour profiles, which do not count."""
    try:
        return Image.open(io.BytesIO(data))
    except ValueError:
        if not data.startswith(_PNG):
            raise
        return Image.open(io.BytesIO(_without_texts(data)))


def _without_texts(png: bytes) -> bytes:
    """A PNG file without its texts and colour profile, which Pillow refuses if they are longer than 1 MB."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 if the EXIF data is broken: orientation is a nicety, and the pixels are fine."""
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # of many kinds
        return 1
    return orientation if orientation in range(1, 9) else 1


def _to_8_bits(picture: Image.Image, format: str) -> Image.Image:
    """Scale 16 bits to 8; Pillow's own conversion would cut values off at 255. A transparent value becomes white."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and format in ("PNG", "PPM")):
        values = np.asarray(picture)
        scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if "transparency" in picture.info:
            scaled[values == picture.info["transparency"]] = 255
        return Image.fromarray(scaled)
    if picture.mode in ("I", "F"):
        raise ValueError(f"{format} with pixels of mode {picture.mode}, whose range is not known")
    return picture


def max_pixels() -> int | None:
    """Pillow's limit, which also holds for arrays; None if a program has removed it."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _check_npy_file(path: str) -> None:
    """Refuse an array that is too large from its header, before it is read."""
    with open(path, "rb") as file:
        if file.read(len(_NPY)) != _NPY:
            return
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    _check_pixels(*sorted(shape)[-2:])  # the channels are fewer than the sides


def _check_pixels(*sides: int) -> None:
    limit = max_pixels()
    if limit is not None and math.prod(sides) > limit:
        size = " x ".join(f"{side:,}" for side in sides)
        raise DecodingError(f"An array of {size} pixels is above the limit of {limit:,}. {TILES_ADVICE}")


def _picture_values(picture: Image.Image, bands: Bands) -> np.ndarray:
    """The values of a picture as (H, W, C)."""
    picture = ImageOps.exif_transpose(picture) if _orientation(picture) > 1 else picture
    if picture.mode in ("1", "P", "PA"):  # whose values are no colours
        picture = picture.convert("L" if picture.mode == "1" else "RGBA" if picture.has_transparency_data else "RGB")
    return _channels_of(np.atleast_3d(np.array(picture)), bands, lambda: list(picture.getbands()))


def _channels_of(array: np.ndarray, bands: Bands, names: Callable[[], list[str]]) -> np.ndarray:
    """The channels that are asked for, as (H, W, C)."""
    found = find_channels(bands, array.shape, names)
    return array if found is None else array[..., found]


def _read_array(data: bytes, bands: Bands) -> np.ndarray:
    """Read an array file as (H, W, C)."""
    names: list[str] = []
    if data.startswith(_NPY):
        array = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        try:
            import tifffile
        except ImportError:
            raise UserError("The values of TIFF files are read by tifffile: pip install tifffile") from None
        try:
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                _check_pixels(tiff.pages[0].imagelength, tiff.pages[0].imagewidth)
                array = tiff.asarray()
                if any(isinstance(channel, str) for channel in bands.channels or ()):
                    names = tiff_names(tiff)
        except (ValueError, KeyError) as error:  # by version
            if "imagecodecs" in str(error):
                raise UserError(
                    f"A TIFF file needs another package ({first_line(error)}): pip install imagecodecs"
                ) from None
            raise
    if is_planar(array.shape, bands):
        array = np.moveaxis(array, 0, 2)
    return _channels_of(array[..., None] if array.ndim == 2 else array, bands, lambda: names)
