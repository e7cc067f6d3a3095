"""Flags that say which channels of a file are read, and how their values become pixels."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.flags import MODEL, Arguments, flag
from mae.utils.errors import UserError


# The identity of a run holds the configuration that these lead to.
_bands = partial(flag, changes_results=False, group=MODEL)


@dataclass
class BandArguments(Arguments):
    """Flags that say which channels of a file are read, and how their values become pixels."""

    channels: list[str] | None = _bands(
        None,
        "Channels of the image files, in the order of the model's channels: numbers from 1, as in GDAL, or names in a "
        "TIFF file, for example 4,3,2.",
        default_words="the model's, which are all channels from scratch",
    )
    value_range: list[str] | None = _bands(
        None,
        "The low and the high value of image files that become 0 and 1, for all channels or for each in turn. Values "
        "beyond are cut off. auto measures the percentiles 0.5 and 99.5 of each channel on 200 images.",
        default_words="the model's, which is the range of 8 or 16 bits, or [0, 1] for floats",
    )
    nodata: float | None = _bands(
        None,
        "Value of image files that stands for missing data, as NaN always does. It is replaced by --image_mean.",
        default_words="the model's, which is none from scratch",
    )

    def check(self) -> None:
        super().check()
        if self.channels is not None:
            names = [name.strip() for words in self.channels for name in words.split(",")]
            if not all(names) or any(name.isdecimal() and int(name) < 1 for name in names):
                raise UserError(f"--channels {' '.join(self.channels)} must be numbers from 1, or names.")
            self.channels = names
        numbers = self.range_values()
        if numbers is not None and (
            len(numbers) % 2 or any(not low < high for low, high in numbers_in_pairs(numbers))
        ):
            raise UserError(
                f"--value_range {' '.join(self.value_range)} must be a low and a higher number, such a pair for each "
                "channel, or auto."
            )

    def range_values(self) -> list[float] | None:
        """The numbers of --value_range; None if it is measured, or the model's."""
        if self.value_range in (None, ["auto"]):
            return None
        try:
            return [float(value) for value in self.value_range]
        except ValueError:
            raise UserError(f"--value_range {' '.join(self.value_range)} must be numbers, or auto.") from None

    def file_fields(self) -> dict[str, object]:
        """The fields of the configuration that these flags set."""
        fields: dict[str, object] = {}
        if self.channels is not None:
            fields["input_channels"] = [int(name) if name.isdecimal() else name for name in self.channels]
        numbers = self.range_values()
        if numbers is not None:
            fields["value_range"] = numbers_in_pairs(numbers)
        elif (
            self.value_range is not None
        ):  # until it is measured: the values of files are read, and not 8 bits of them
            fields["value_range"] = (0.0, 1.0)
        if self.nodata is not None:
            fields["nodata"] = self.nodata
        return fields


def numbers_in_pairs(numbers: list[float]) -> list[tuple[float, float]]:
    """(low, high) of each channel."""
    return list(zip(numbers[::2], numbers[1::2]))
