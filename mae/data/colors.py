"""Random changes of the colours of images."""

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mae.utils.errors import UserError


def make_color_changes(color_jitter: float, grayscale_prob: float, num_channels: int) -> "ColorChanges | None":
    """Changes of colours, or None if there are none."""
    return ColorChanges(color_jitter, grayscale_prob, num_channels) if color_jitter or grayscale_prob else None


class ColorChanges:
    """
    Change the colours of half of the images, and remove those of some. It draws from torch's default generator.

    Args:
        color_jitter: Strength of changes of brightness, contrast, saturation and hue. 1 is that of mmsegmentation's
            PhotoMetricDistortion, 0 disables them.
        grayscale_prob: Probability that an image becomes grey.

    Raises:
        UserError: if images have no colours.
    """

    def __init__(self, color_jitter: float, grayscale_prob: float, num_channels: int):
        self.grayscale_prob = grayscale_prob
        self.jitter = None
        if color_jitter:
            if num_channels not in (1, 3):
                raise UserError(
                    f"--color_jitter needs images of 1 or 3 channels, not {num_channels}. Use --color_jitter 0."
                )
            self.jitter = v2.ColorJitter(
                brightness=min(color_jitter * 32 / 255, 1),
                contrast=min(0.5 * color_jitter, 1),
                saturation=min(0.5 * color_jitter, 1),
                hue=min(color_jitter * 18 / 360, 0.5),
            )
        if grayscale_prob and num_channels != 3:
            raise UserError(
                f"--grayscale_prob needs images of 3 channels, not {num_channels}. Use --grayscale_prob 0."
            )

    def __call__(self, pixels: Tensor) -> tuple[Tensor, tuple]:
        """An image `(C, H, W)` between 0 and 255 with other colours, and what was drawn, for the digest."""
        is_jittered = self.jitter is not None and bool(torch.rand(()) < 0.5)
        if is_jittered:
            pixels = self._jitter_floats(pixels) if pixels.is_floating_point() else self.jitter(pixels)
        if not self.grayscale_prob:
            return pixels, (is_jittered,)
        is_gray = bool(torch.rand(()) < self.grayscale_prob)
        return TF.rgb_to_grayscale(pixels, 3) if is_gray else pixels, (is_jittered, is_gray)

    def _jitter_floats(self, pixels: Tensor) -> Tensor:
        # torchvision takes floats in [0, 1]. Contrast needs the mean of the image, which missing data must not enter.
        missing = pixels.isnan()
        mean = pixels.nanmean(dim=(1, 2), keepdim=True).nan_to_num(0)
        return (self.jitter(torch.where(missing, mean, pixels) / 255) * 255).masked_fill(missing, torch.nan)
