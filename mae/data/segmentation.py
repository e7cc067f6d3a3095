"""From an undecoded image and its mask to tensors: augmentation of both together, and the whole image."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from configuration_mae import MAEConfig
from mae.data.colors import ColorChanges
from mae.data.crop import place, turned
from mae.data.decoding import OpenImage, open_image
from mae.data.mask_rows import Masks
from mae.data.masks import IGNORED, MaskCoding
from mae.data.stream import Sample
from mae.data.transforms import ImageTransform, seeded
from mae.utils.errors import UserError


# As in the recipe for ADE20K: a crop with more of one class is drawn again, up to so many times.
MAX_CLASS_SHARE = 0.75
_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """
    Augmentation of images with masks. The defaults are those of the recipe for ADE20K.

    Args:
        min_scale, max_scale: Range of the factor by which an image is resized before it is cropped.
        horizontal_flip, vertical_flip: Probabilities that a crop is flipped.
        rot90: Whether crops are turned by a multiple of 90 degrees.
        color_jitter, grayscale_prob: See [`ColorChanges`].
    """

    min_scale: float = 0.5
    max_scale: float = 2.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rot90: bool = False
    color_jitter: float = 1.0
    grayscale_prob: float = 0.0


@dataclass(frozen=True)
class MaskedCrop:
    """
    What is cut out of an image, in its own pixels, and where it is put.

    Args:
        top, left, height, width: The box.
        size: (height, width) that the box is resized to.
        offset: (top, left) of the resized box in the output, which is larger if the image is smaller than the crop.
        turns: Number of turns by 90 degrees.
        flip: Whether it is flipped horizontally, last.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    offset: tuple[int, int]
    turns: int
    flip: bool


class MaskedImageTransform(ImageTransform):
    """A whole image, and its mask as class numbers, both in their own size."""

    def __init__(self, config: MAEConfig, masks: Masks, coding: MaskCoding):
        super().__init__(config)
        self.masks = masks
        self.coding = coding

    def blank(self) -> dict[str, Tensor]:
        return super().blank() | {"labels": torch.full(self.size, IGNORED, dtype=torch.uint8)}

    def open(self, sample: Sample) -> tuple[OpenImage, np.ndarray]:
        """
        The image and its mask.

        Raises:
            DecodingError: if one of them is damaged.
            UserError: if they differ in size, or the mask has a value that is no class.
        """
        image = open_image(sample.image, self.bands)
        name = self.masks.name(sample.index)
        mask = self.coding.encode(self.masks.read(sample.index), name)
        if mask.shape != (image.height, image.width):
            (height, width), file = mask.shape, sample.origin[0]
            raise UserError(
                f"The mask {name} has {width} x {height} pixels, but its image {file} has {image.width} x "
                f"{image.height}. They must have the same size."
            )
        return image, mask

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        image, mask = self.open(sample)
        return {"pixel_values": image.decode(), "labels": torch.from_numpy(mask)}, ()


class SegmentationTransform(MaskedImageTransform):
    """
    Transform of training a segmenter: image and mask are resized by a random factor, cropped to the model's size,
    flipped and turned together, and the image's colours are changed. Where an image is smaller than the crop, the rest
    has the mean colour and does not count. Images are resized bicubically with antialiasing, masks to the nearest
    pixel.
    """

    def __init__(self, config: MAEConfig, masks: Masks, coding: MaskCoding, augmentation: Augmentation):
        super().__init__(config, masks, coding)
        self.augmentation = augmentation
        mean = config.image_mean or [0.5] * config.num_channels
        self.fill = 255 * torch.tensor(mean).view(-1, 1, 1)
        self.colors = ColorChanges(augmentation.color_jitter, augmentation.grayscale_prob, config.num_channels)

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        image, mask = self.open(sample)
        with seeded(sample.seed):
            crop = self.draw(mask)
            pixels = image.decode_crop(crop.top, crop.left, crop.height, crop.width, list(crop.size))
            pixels, changes = self.colors(pixels)
        placed = crop.offset, crop.turns, crop.flip
        labels = place(cut_mask(mask, crop)[None], self.size, torch.full((1, 1, 1), IGNORED), *placed)[0]
        fill = self.fill if pixels.is_floating_point() else self.fill.round()
        return {"pixel_values": place(pixels, self.size, fill, *placed), "labels": labels}, (repr(crop), *changes)

    def draw(self, mask: np.ndarray) -> MaskedCrop:
        """Draw a crop; again if one class covers most of it."""
        for _ in range(_ATTEMPTS):
            crop = self._draw_once(*mask.shape)
            counts = np.bincount(mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].ravel())
            counts = counts[:IGNORED]
            if counts.any() and counts.max() < MAX_CLASS_SHARE * counts.sum():
                break
        return crop

    def _draw_once(self, height: int, width: int) -> MaskedCrop:
        options = self.augmentation
        drawn = torch.rand(6).tolist()
        scale = options.min_scale + (options.max_scale - options.min_scale) * drawn[0]
        turns = int(4 * drawn[1]) if options.rot90 else 0
        rows, columns = turned(self.size, turns)
        top, box_height, out_height, row = _cut_side(height, rows, scale, drawn[2])
        left, box_width, out_width, column = _cut_side(width, columns, scale, drawn[3])
        flip = drawn[4] < options.horizontal_flip
        if drawn[5] < options.vertical_flip:  # upside down is a half turn and a horizontal flip
            flip, turns = not flip, (turns + 2) % 4
        return MaskedCrop(top, left, box_height, box_width, (out_height, out_width), (row, column), turns, flip)


def _cut_side(length: int, out: int, scale: float, share: float) -> tuple[int, int, int, int]:
    """
    Cut one side of an image of `length` pixels for an output of `out` pixels at a scale.

    Args:
        share: Where the cut is, from 0 for the start to 1 for the end.

    Returns:
        Start and length of the cut, its resized length, and its start in the output.
    """
    size = min(max(round(out / scale), 1), length)
    resized = out if size < length else min(max(round(length * scale), 1), out)
    return int(share * (length - size + 1)), size, resized, int(share * (out - resized + 1))


def cut_mask(mask: np.ndarray, crop: MaskedCrop) -> Tensor:
    """The box of a mask, resized to the nearest pixel: uint8 of the crop's size."""
    box = torch.from_numpy(mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])
    # torchvision resizes a tv_tensors.Mask by "nearest", half a pixel away from the image.
    return F.interpolate(box[None, None], crop.size, mode="nearest-exact")[0, 0]
