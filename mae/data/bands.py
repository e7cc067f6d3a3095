"""Which channels of a file are read, and how their values become pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from configuration_mae import MAEConfig


_GDAL_METADATA = 42112


class Bands(NamedTuple):
    """
    Which channels of a file are read, and how their values become pixels.

    Args:
        num_channels: Channels of the model's images: 1 (grey), 3 (RGB), or any other number for arrays.
        channels: Channels of a file by number, counted from 1, or by name; None for all, in their order.
        value_range: The values that become 0 and 255, for each of the model's channels. What lies beyond is cut off.
            None for uint8, uint16 and floats in [0, 1], which are scaled by the range of their type.
        nodata: The value that stands for missing data, beside those that are not finite; None for no such value.
    """

    num_channels: int = 3
    channels: tuple[int | str, ...] | None = None
    value_range: tuple[tuple[float, float], ...] | None = None
    nodata: float | None = None

    @classmethod
    def of(cls, bands: "int | Bands") -> "Bands":
        """A number of channels stands for all channels of files that have so many."""
        return cls(bands) if isinstance(bands, int) else bands

    @property
    def are_arrays(self) -> bool:
        """Whether files are read as arrays of their values, and not as pictures of 8 bits that are grey or RGB."""
        return self.num_channels not in (1, 3) or any(value is not None for value in self[1:])


def bands_of(config: MAEConfig) -> Bands:
    """The bands that a model takes."""
    channels, ranges = config.input_channels, config.value_range
    return Bands(
        config.num_channels,
        None if channels is None else tuple(channels),
        None if ranges is None else tuple(map(tuple, ranges)),
        config.nodata,
    )


def is_planar(shape: Sequence[int], bands: Bands) -> bool:
    """Whether an array has the shape (C, H, W), and not (H, W, C) or (H, W)."""
    if len(shape) != 3:
        return False
    if bands.channels is not None:  # a file may have any number of channels, but fewer than pixels along a side
        return shape[0] < shape[2]
    return shape[2] != bands.num_channels and shape[0] == bands.num_channels


def find_channels(bands: Bands, shape: Sequence[int], names: Callable[[], list[str]]) -> list[int] | None:
    """
    The indices of the channels to read from an array; None for all.

    Args:
        shape: (H, W, C).
        names: Reads the names of the channels.

    Raises:
        ValueError: if the array has other channels than are asked for.
    """
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"an array of shape {tuple(shape)} is no image")
    count = shape[2]
    if bands.channels is None:
        if count != bands.num_channels:
            raise ValueError(
                f"it has {_channels(count)} ({shape[0]} x {shape[1]} pixels), but the model takes {bands.num_channels}"
            )
        return None
    found, known = [], None
    for channel in bands.channels:
        if isinstance(channel, str):
            known = names() if known is None else known
            if channel not in known:
                listed = f"its channels are {', '.join(known)}" if known else "its channels have no names"
                raise ValueError(f"it has no channel {channel}: {listed}")
            found.append(known.index(channel))
        elif channel > count:
            raise ValueError(f"it has no channel {channel}, only {_channels(count)}")
        else:
            found.append(channel - 1)
    return found


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"


def tiff_names(tiff) -> list[str]:
    """The names of the channels of an open `tifffile.TiffFile`, from GDAL, OME or ImageJ; empty if there are none."""
    try:
        tag = tiff.pages[0].tags.get(_GDAL_METADATA)
        if tag is not None:
            items = ElementTree.fromstring(tag.value.strip("\0 ")).iter("Item")
            named = {int(item.get("sample", 0)): item.text for item in items if item.get("role") == "description"}
            if named:
                return [named.get(index) or "" for index in range(max(named) + 1)]
        if tiff.ome_metadata:
            elements = ElementTree.fromstring(tiff.ome_metadata).iter()
            return [element.get("Name") or "" for element in elements if element.tag.rpartition("}")[2] == "Channel"]
    except (ElementTree.ParseError, ValueError):  # names are a nicety unless they are asked for
        return []
    return list((tiff.imagej_metadata or {}).get("Labels", []))


def find_missing(array: np.ndarray, bands: Bands) -> np.ndarray | None:
    """Where an array has missing data: `bands.nodata`, or a value that is not finite. None if it has none."""
    missing = None if bands.nodata is None else array == bands.nodata
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            missing = ~finite if missing is None else missing | ~finite
    return missing


def to_pixels(array: np.ndarray, bands: Bands) -> np.ndarray:
    """
    Scale values (H, W, C) to the range of 8 bits, with a plane per channel: uint8, or float32 in which NaN stands for
    missing data.

    Raises:
        ValueError: if the values have no range.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind not in "uif":
        raise ValueError(f"pixels of type {array.dtype} are no numbers")
    missing = find_missing(array, bands)
    if bands.value_range is not None:
        low, high = np.array(bands.value_range, dtype=np.float32).T
        with np.errstate(invalid="ignore", over="ignore"):
            array = ((array.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
    elif array.dtype == np.uint16:
        array = array.astype(np.float32) / 257
    elif array.dtype.kind == "f":
        array = array.astype(np.float32) * 255
        valid = array if missing is None else array[~missing]
        if valid.size and not (valid.min() >= 0 and valid.max() <= 255):
            raise ValueError("floating point pixels must be in [0, 1]. --value_range auto measures another range")
    elif array.dtype != np.uint8:
        raise ValueError(
            f"pixels of type {array.dtype} have no range. Pass --value_range LOW HIGH, or auto to measure it"
        )
    elif bands.nodata is not None:  # all images of a batch have one type
        array = array.astype(np.float32)
    if missing is not None:
        array[missing] = np.nan
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 2, 0)), 0, 2)
