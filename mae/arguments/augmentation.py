"""Flags of augmentation, which training scripts share. A sample's draws follow from its key and these."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.flags import (
    ABOVE_0,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    REGULARISATION,
    Arguments,
    differs_from_default,
    flag,
    flags_of,
    one_of,
)
from mae.utils.errors import UserError


# Runs that were started before there were these flags can be resumed.
_augmentation = partial(flag, only_if_set=True, group=REGULARISATION)

CROPS = ("random_resized", "random", "center", "none")


@dataclass
class FlipArguments(Arguments):
    """Flips, turns and grey images."""

    horizontal_flip: float = _augmentation(
        0.5, "Probability that a crop is flipped left to right.", aliases=("--hflip",), rule=FRACTION
    )
    vertical_flip: float = _augmentation(
        0.0, "Probability that a crop is flipped upside down.", aliases=("--vflip",), rule=FRACTION
    )
    rot90: bool = _augmentation(
        False, "Turn crops by multiples of 90 degrees, for images without an upright direction."
    )
    grayscale_prob: float = _augmentation(
        0.0, "Probability that the colours of an RGB image are removed.", rule=FRACTION
    )


@dataclass
class CropArguments(FlipArguments):
    """Crops and colours, beside `min_crop_area`, whose default differs."""

    crop: str = _augmentation(
        "random_resized",
        "Crop: random_resized for a random box that is resized to the model's size; random for a random box of the "
        "model's size, without a change of scale (smaller images are filled up with the mean colour); center for the "
        "largest box of the model's shape in the middle; none for the whole image.",
        rule=one_of(*CROPS),
    )
    max_crop_area: float = _augmentation(1.0, "Largest share of an image that a random crop takes.", rule=ABOVE_0)
    min_crop_ratio: float = _augmentation(
        3 / 4, "Smallest width / height of a random crop.", default_words="3/4", rule=POSITIVE
    )
    max_crop_ratio: float = _augmentation(
        4 / 3, "Largest width / height of a random crop.", default_words="4/3", rule=POSITIVE
    )
    color_jitter: float = _augmentation(
        0.0,
        "Strength of random changes of brightness, contrast, saturation and hue, for half of the images. 1 is that of "
        "the segmentation recipe for ADE20K.",
        default_words="0, which is off",
        rule=NOT_NEGATIVE,
    )

    def check(self) -> None:
        super().check()
        area = getattr(self, "min_crop_area", None)
        if area is not None and area > self.max_crop_area:
            raise UserError(f"--min_crop_area {area:g} must not exceed --max_crop_area {self.max_crop_area:g}.")
        if self.min_crop_ratio > self.max_crop_ratio:
            raise UserError(
                f"--min_crop_ratio {self.min_crop_ratio:g} must not exceed --max_crop_ratio {self.max_crop_ratio:g}."
            )
        if self.crop != "random_resized":
            for name in ("min_crop_area", "max_crop_area", "min_crop_ratio", "max_crop_ratio"):
                if name in flags_of(self) and differs_from_default(self, name):
                    value = getattr(self, name)
                    raise UserError(f"--{name} {value:g} is for --crop random_resized, not for --crop {self.crop}.")

    def augmentation_set(self) -> list[str]:
        """The flags of this class that differ from their defaults."""
        return [name for name in flags_of(CropArguments) if differs_from_default(self, name)]
