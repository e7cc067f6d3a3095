"""Crops, flips and turns: drawn as boxes, and applied to pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropOptions:
    """
    How images are cropped, flipped and turned. The defaults are the paper's for pre-training, beside `min_crop_area`.

    Args:
        crop: "random_resized", torchvision's `RandomResizedCrop`; "random", a box of the model's size, without a
            change of scale; "center", the largest box of the model's shape in the middle; "none", the whole image.
        min_crop_area, max_crop_area: Share of an image that a random resized crop takes.
        min_crop_ratio, max_crop_ratio: Its width / height.
        horizontal_flip, vertical_flip: Probabilities.
        rot90: Whether crops are turned by a multiple of 90 degrees.
    """

    crop: str = "random_resized"
    min_crop_area: float = 0.2
    max_crop_area: float = 1.0
    min_crop_ratio: float = 3 / 4
    max_crop_ratio: float = 4 / 3
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rot90: bool = False


class Crop(NamedTuple):
    """A box of an image, by how many times 90 degrees it is turned to the left, and whether it is flipped then."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    turns: int = 0

    def drawn(self) -> tuple:
        """What the digest of a sample holds. It is the same as before there were turns if there is none."""
        return self if self.turns else self[:5]


class RandomCrop:
    """
    Draw the box of torchvision's `RandomResizedCrop`, and its `RandomHorizontalFlip`, from the same random numbers.

    torchvision takes no generator. Saving and seeding the default one, and its dispatch, take 24 of 34 us, which is
    more than a small image takes for the rest.

    Args:
        size: (height, width) of the model's images.
    """

    def __init__(self, options: CropOptions, size: Sequence[int]):
        self.size = list(size)
        # Plain attributes, because this runs for every sample.
        self.horizontal_flip = options.horizontal_flip
        self.vertical_flip = options.vertical_flip
        self.rot90 = options.rot90
        self.keeps_scale = options.crop == "random"
        # For the digest: what is drawn means other pixels with another kind of crop.
        self.kind = () if options.crop == "random_resized" else (options.crop,)
        self.area = options.min_crop_area, options.max_crop_area
        self.ratios = options.min_crop_ratio, options.max_crop_ratio
        self.log_ratios = torch.log(torch.tensor(self.ratios)).tolist()
        self.draw_box = {
            "random_resized": self._random_resized,
            "random": self._random,
            "center": self._center,
            "none": self._whole,
        }[options.crop]

    def draw(self, height: int, width: int, generator: torch.Generator) -> Crop:
        """Draw a box for an image of this height and width."""
        turns = int(torch.randint(4, (), generator=generator)) if self.rot90 else 0
        box = self.draw_box(height, width, turns, generator)
        flip = torch.rand((), generator=generator).item() < self.horizontal_flip
        if self.vertical_flip and torch.rand((), generator=generator).item() < self.vertical_flip:
            flip, turns = not flip, (turns + 2) % 4  # upside down is a half turn and a horizontal flip
        return Crop(*box, flip, turns)

    def _random_resized(
        self, height: int, width: int, turns: int, generator: torch.Generator
    ) -> tuple[int, int, int, int]:
        number, integer = torch.empty(1), torch.empty(1, dtype=torch.int64)
        for _ in range(10):
            area = height * width * number.uniform_(*self.area, generator=generator).item()
            ratio = number.uniform_(*self.log_ratios, generator=generator).exp_().item()
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = integer.random_(0, height - crop_height + 1, generator=generator).item()
                left = integer.random_(0, width - crop_width + 1, generator=generator).item()
                return top, left, crop_height, crop_width
        # None fits, because the image is long: the middle, with sides as near to its own as may be.
        smallest, largest = self.ratios
        crop_width = max(min(width, round(height * largest)), 1)
        crop_height = max(min(height, round(width / smallest)), 1)
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def _random(self, height: int, width: int, turns: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        rows, columns = (min(sides) for sides in zip((height, width), turned(self.size, turns)))
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        return top, left, rows, columns

    def _center(self, height: int, width: int, turns: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        rows, columns = turned(self.size, turns)
        scale = min(height / rows, width / columns)
        crop_height, crop_width = max(round(scale * rows), 1), max(round(scale * columns), 1)
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def _whole(self, height: int, width: int, turns: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        return 0, 0, height, width


def turned(size: Sequence[int], turns: int) -> list[int]:
    """(height, width) before an image is turned by a number of 90 degrees, of its size afterwards."""
    return list(size) if turns % 2 == 0 else list(size)[::-1]


def place(
    pixels: Tensor, size: Sequence[int], fill: Tensor, offset: tuple[int, int], turns: int = 0, flip: bool = False
) -> Tensor:
    """
    Put pixels `(C, h, w)` into an image of a size, filled up by `(C, 1, 1)`, then turn and flip it.

    Args:
        size: (height, width) of the result.
        offset: (top, left) of the pixels before it is turned.
    """
    size, shape = turned(size, turns), list(pixels.shape[1:])
    if shape != size:
        whole = fill.to(pixels.dtype).repeat(1, *size)
        (top, left), (height, width) = offset, shape
        whole[:, top : top + height, left : left + width] = pixels
        pixels = whole
    pixels = torch.rot90(pixels, turns, (1, 2)) if turns else pixels
    return (pixels.flip(-1) if flip else pixels).contiguous()
