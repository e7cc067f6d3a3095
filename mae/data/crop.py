"""Random resized crops and flips: their boxes."""

import math
from typing import NamedTuple

import torch


class Crop(NamedTuple):
    """A box of an image, and whether it is flipped."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class RandomCrop:
    """
    Draw the box of torchvision's `RandomResizedCrop`, and its `RandomHorizontalFlip`, from the same random numbers.

    torchvision takes no generator. Saving and seeding the default one, and its dispatch, take 24 of 34 us, which is
    more than a small image takes for the rest.

    Args:
        min_area: Smallest share of an image that a crop takes. The largest is 1, and sides are as 3 : 4 to 4 : 3.
    """

    RATIOS = 3 / 4, 4 / 3

    def __init__(self, min_area: float):
        self.min_area = min_area
        self.log_ratios = torch.log(torch.tensor(self.RATIOS)).tolist()

    def draw(self, height: int, width: int, generator: torch.Generator) -> Crop:
        """Draw a box for an image of this height and width."""
        box = self._draw_box(height, width, generator)
        return Crop(*box, flip=torch.rand((), generator=generator).item() < 0.5)

    def _draw_box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        number, integer = torch.empty(1), torch.empty(1, dtype=torch.int64)
        for _ in range(10):
            area = height * width * number.uniform_(self.min_area, 1, generator=generator).item()
            ratio = number.uniform_(*self.log_ratios, generator=generator).exp_().item()
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = integer.random_(0, height - crop_height + 1, generator=generator).item()
                left = integer.random_(0, width - crop_width + 1, generator=generator).item()
                return top, left, crop_height, crop_width
        # None fits, because the image is long: the middle, with sides as near to its own as may be.
        smallest, largest = self.RATIOS
        crop_width, crop_height = min(width, round(height * largest)), min(height, round(width / smallest))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
