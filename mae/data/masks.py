"""
Masks of semantic segmentation: the values or colours in a file become class numbers.

A mask is a PNG or another lossless file with one value per pixel (modes 1, L, P, I and I;16), one with colours (RGB),
or an array of whole numbers (`.npy`).
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae.data.decoding import DecodingError
from mae.utils.errors import UserError, first_line
from mae.utils.hashing import hash_key
from mae.utils.text import encodable, listed


# The class number of pixels that do not count, whatever they are in files. It is the default of transformers too.
IGNORED = 255
MAX_CLASSES = 254
_UNKNOWN = 254  # in tables only
_NUM_VALUES = 2**16  # of masks of 16 bits
_VALUE_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class RawMask:
    """
    The content of a mask file.

    Args:
        values: Whole numbers `(H, W)`. Colours are `red * 65536 + green * 256 + blue`.
        is_colour: Whether they are colours.
    """

    values: np.ndarray
    is_colour: bool = False


def read_mask(data: bytes | str, name: str) -> RawMask:
    """
    Read the values or colours of a mask.

    Args:
        data: The bytes of the file, or its path.
        name: What errors call it.

    Raises:
        DecodingError: if the file is damaged.
        UserError: if it is of a kind that masks cannot have.
    """
    if isinstance(data, str):
        data = Path(data).read_bytes()
    try:
        if data.startswith(b"\x93NUMPY"):
            return check_array(np.load(io.BytesIO(data), allow_pickle=False), name)
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except UserError:
        raise
    except Exception as error:  # broken files end in errors of many kinds
        raise DecodingError(f"mask {name}: {type(error).__name__}: {first_line(error)}") from error
    if picture.format == "JPEG":
        raise UserError(f"The mask {name} is a JPEG file, which changes values. Save masks as PNG files.")
    if picture.mode in ("RGBA", "LA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"The mask {name} is transparent in places. Save masks without an alpha channel.")
        picture = picture.convert(picture.mode[:-1])
    if picture.mode == "RGB":
        red, green, blue = np.moveaxis(np.asarray(picture).astype(np.int32), 2, 0)
        return RawMask(red << 16 | green << 8 | blue, is_colour=True)
    if picture.mode not in _VALUE_MODES:
        raise UserError(
            f"The mask {name} has pixels of Pillow's mode {picture.mode}. Masks have one whole number per pixel "
            "(modes 1, L, P, I and I;16), or colours (RGB)."
        )
    return check_array(np.asarray(picture), name)


def check_array(array: np.ndarray, name: str) -> RawMask:
    """Raw values of an array `(H, W)` or `(H, W, 1)` of whole numbers from 0 to 65535, or colours `(H, W, 3)`."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[..., 0] if array.shape[2] == 1 else array[0]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        red, green, blue = np.moveaxis(array.astype(np.int32), 2, 0)
        return RawMask(red << 16 | green << 8 | blue, is_colour=True)
    if array.ndim != 2 or not array.size:
        raise UserError(f"The mask {name} has shape {array.shape}. Masks have shape (height, width).")
    if array.dtype in (np.uint8, np.uint16, np.bool_):
        return RawMask(array.astype(np.uint8) if array.dtype == np.bool_ else array)
    whole = array.astype(np.int64) if np.isfinite(array).all() else np.full(array.shape, -1)
    wrong = array[(whole != array) | (whole < 0) | (whole >= _NUM_VALUES)]
    if wrong.size:
        raise UserError(
            f"The mask {name} has the value {wrong[0].item()}. Masks hold whole numbers from 0 to {_NUM_VALUES - 1}."
        )
    return RawMask(whole.astype(np.uint16))


@dataclass(frozen=True)
class ClassTable:
    """
    Names of classes, as a file or the masks themselves have them.

    Args:
        names: Name of each class, by its number in masks (after `--reduce_labels`).
        colours: Colour of a class, for those that have one: red * 65536 + green * 256 + blue.
        origin: Where the names come from, for errors.
    """

    names: dict[int, str]
    colours: dict[int, int] = field(default_factory=dict)
    origin: str = "the training masks"


def read_class_table(path: str) -> ClassTable:
    """
    Read a file of class names: `{"0": "background", "1": "road"}` as on the Hub, or with the colours that masks have,
    `{"0": {"name": "background", "color": "#000000"}, "1": {"name": "road", "color": [128, 64, 128]}}`.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    flag = f"--id2label {path}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise UserError(f"{flag} is no JSON file: {first_line(error)}.") from None
    example = 'It must be like {"0": "background", "1": "road"}'
    if not isinstance(content, dict) or not content:
        raise UserError(f"{flag} holds no names. {example}.")
    names, colours = {}, {}
    for key, value in content.items():
        entry = value if isinstance(value, dict) else {"name": value}
        if not key.isdigit() or not isinstance(entry.get("name"), str) or int(key) >= _NUM_VALUES:
            raise UserError(f"{flag}: {key!r}: {value!r} is no class. {example}.")
        names[int(key)] = encodable(entry["name"])
        if "color" in entry:
            colours[int(key)] = _parse_colour(entry["color"], f"{flag}: class {key}")
    if colours and len(colours) < len(names):
        missing = next(number for number in names if number not in colours)
        raise UserError(f"{flag}: class {missing} has no color, but others have. Give all of them colors, or none.")
    if len(set(colours.values())) < len(colours):
        raise UserError(f"{flag}: two classes have the same color. Masks must tell them apart.")
    return ClassTable(dict(sorted(names.items())), colours, flag)


def _parse_colour(value: Any, where: str) -> int:
    if isinstance(value, str) and _COLOUR.fullmatch(value):
        return int(value[1:], 16)
    if isinstance(value, list) and len(value) == 3 and all(isinstance(x, int) and 0 <= x < 256 for x in value):
        return value[0] << 16 | value[1] << 8 | value[2]
    raise UserError(f'{where}: color {value!r} must be like "#804080" or [128, 64, 128].')


def show_value(value: int, is_colour: bool) -> str:
    """A raw value as errors show it."""
    return f"colour #{value:06x}" if is_colour else f"value {value}"


@dataclass(frozen=True)
class MaskCoding:
    """
    Turns raw masks into class numbers from 0 on, and [`IGNORED`].

    Args:
        values: The raw value of each class.
        names: The name of each class.
        ignored: Raw values of pixels that do not count.
        is_colour: Whether raw values are colours.
        palette: A colour for each class, if the classes have colours.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: tuple[int, ...] = ()
    is_colour: bool = False
    palette: tuple[int, ...] | None = None

    @property
    def fingerprint(self) -> str:
        return hash_key(self.values, self.names, self.ignored, self.is_colour).hex()

    @property
    def known(self) -> set[int]:
        """All raw values that masks may have."""
        return {*self.values, *self.ignored}

    @cached_property
    def _table(self) -> np.ndarray:
        """The class number of each raw value that is no colour."""
        table = np.full(_NUM_VALUES, _UNKNOWN, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[[value for value in self.ignored if value < _NUM_VALUES]] = IGNORED
        return table

    def encode(self, mask: RawMask, name: str) -> np.ndarray:
        """
        Class numbers `(H, W)`, uint8.

        Args:
            name: What errors call the mask.

        Raises:
            UserError: for a value that is no class.
        """
        if mask.is_colour != self.is_colour:
            raise UserError(f"The mask {name} has {_KINDS[mask.is_colour]}, but others have {_KINDS[self.is_colour]}.")
        if not self.is_colour:
            classes = self._table[mask.values]
        else:
            colours = np.array([*self.values, *self.ignored])
            numbers = np.array([*range(len(self.values)), *(IGNORED for _ in self.ignored)], dtype=np.uint8)
            order = np.argsort(colours)
            places = np.minimum(np.searchsorted(colours[order], mask.values), len(colours) - 1)
            classes = np.where(colours[order][places] == mask.values, numbers[order][places], np.uint8(_UNKNOWN))
        if (unknown := classes == _UNKNOWN).any():
            value = show_value(int(mask.values[unknown][0]), self.is_colour)
            raise UserError(f"The mask {name} has the {value}, which is no class.")
        return classes


_KINDS = {False: "values", True: "colours"}


def make_coding(
    table: ClassTable, ignore_value: int | None, reduce_labels: bool, is_colour: bool, what: str
) -> MaskCoding:
    """
    The coding of masks by a table of classes.

    Args:
        ignore_value: The number of pixels that do not count; None if there is none.
        reduce_labels: Whether 0 does not count either, and other values are one larger than the numbers of classes.
        what: The flag that names the masks, for errors.

    Raises:
        UserError: if the table does not fit, or there are fewer than two classes, or too many.
    """
    numbers = [number for number in table.names if number != ignore_value]
    if len(numbers) < 2:
        found = f"a single class ({table.names[numbers[0]]})" if numbers else "no class"
        if ignore_value in table.names:
            found += f" besides the ignored value {ignore_value}"
        advice = " Pass --ignore_value -1 if that is a class." if ignore_value in table.names else ""
        raise UserError(f"{what}: {table.origin} has {found}, but a segmenter needs two.{advice}")
    if len(numbers) > MAX_CLASSES:
        raise UserError(
            f"{what}: {table.origin} has {len(numbers):,} classes, and {MAX_CLASSES} are possible. Masks that number "
            "objects one by one must be turned into masks of classes first."
        )
    names = tuple(table.names[number] for number in numbers)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UserError(f"{what}: {table.origin} has several classes of the name {listed(duplicates)}.")
    palette = tuple(table.colours[number] for number in numbers) if table.colours else None
    if is_colour:
        if palette is None:
            raise UserError(
                f"{what}: the masks have colours, but their classes are not known. Pass --id2label with a file that "
                'holds the color of each class: {"0": {"name": "road", "color": "#804080"}, ...}.'
            )
        if reduce_labels:
            raise UserError(f"{what}: --reduce_labels is for masks with values, but these have colours. Leave it out.")
        ignored = (table.colours[ignore_value],) if ignore_value in table.colours else ()
        return MaskCoding(palette, names, ignored, True, palette)
    values = tuple(number + reduce_labels for number in numbers)
    ignored = {0} if reduce_labels else set()
    if ignore_value is not None:
        ignored.add(ignore_value)
    return MaskCoding(values, names, tuple(sorted(ignored - set(values))), False, palette)


def to_rgb(colours: Sequence[int]) -> np.ndarray:
    """Colours as uint8 `(n, 3)`."""
    packed = np.asarray(colours, dtype=np.int64)
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
