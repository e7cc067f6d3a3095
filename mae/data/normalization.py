"""Pixel normalisation, and the statistics that it uses."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from configuration_mae import MAEConfig
from mae.data.bands import find_missing
from mae.data.dataset import SampleDataset
from mae.data.decoding import open_image
from mae.data.loader import make_loader
from mae.data.mixture import make_order
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import Sample, SampleStream
from mae.data.transforms import ImageTransform, PreTrainingTransform
from mae.utils.errors import UserError
from patches_mae import channel_values, normalize, patchify


# Of --value_range auto: percentiles, and values of an image along each side.
_PERCENTILES = 0.5, 99.5
_GRID = 64


def model_inputs(images: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """
    Return images `(..., C, H, W)` as models take them. The models normalise uint8 images themselves, after they have
    selected the patches that they need. Images of more than 8 bits, float32 between 0 and 255, are normalised here.
    """
    return images if images.dtype == torch.uint8 else normalize_images(images, config)


def normalize_images(images: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """Normalise images `(..., C, H, W)` in the range of 8 bits, as float32. Missing data (NaN) becomes the mean."""
    pixels = normalize(images, config)
    return pixels.nan_to_num_(0) if images.is_floating_point() else pixels


def patch_weights(images: torch.Tensor, config: MAEConfig, max_missing: float) -> torch.Tensor | None:
    """
    Weights of patches in the loss, `(B, L)`: 0 for those in which missing data takes a larger share of the values than
    `max_missing`. None for images that have no missing data by their type.
    """
    if images.dtype == torch.uint8:
        return None
    missing = patchify(images.isnan().float(), config.patch_size).mean(dim=-1)
    return (missing <= max_missing).float()


def denormalize(pixel_values: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """The inverse of [`normalize`], as float32 in [0, 1]."""
    if config.image_mean is not None:
        mean, std = channel_values(pixel_values, config)
        pixel_values = pixel_values * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return pixel_values.float().clamp(0, 1)


class Statistics(NamedTuple):
    """
    What images are like.

    Args:
        mean, std: Of each channel, in [0, 1].
        num_images: Images that were measured.
        missing: Share of their values that are missing data.
    """

    mean: list[float]
    std: list[float]
    num_images: int
    missing: float


def measure_statistics(
    source: Source, order: SampleOrder, config: MAEConfig, count: int, retry_minutes: float = 0
) -> Statistics:
    """
    Mean and standard deviation of the pixels of at most `count` images, from all lanes, without missing data.

    Raises:
        UserError: if no image can be read, or a channel has a single value.
    """
    total = squares = torch.zeros(config.num_channels, dtype=torch.float64)
    weights, missing, num_images = torch.zeros_like(total), 0.0, 0
    transform = PreTrainingTransform(config)
    for pixels in _read_some(source, order, transform, count, retry_minutes, "--image_mean auto"):
        pixels = pixels.double() / 255
        present = pixels.isfinite().double().mean(dim=(0, 2, 3))  # an image counts by its share of values
        pixels = pixels.nan_to_num_(0)
        num_images, weights, missing = num_images + 1, weights + present, missing + 1 - present.mean().item()
        total = total + pixels.mean(dim=(0, 2, 3))
        squares = squares + pixels.square().mean(dim=(0, 2, 3))
    if not (weights > 0).all():
        raise UserError(f"--image_mean auto: a channel of the first {num_images} images holds missing data alone.")
    mean, variance = total / weights, squares / weights - (total / weights) ** 2
    std = variance.clamp(min=0).sqrt()
    if not std.all():
        raise UserError(f"--image_mean auto: a channel of the first {num_images} images has a single value.")
    return Statistics(mean.tolist(), std.tolist(), num_images, missing / num_images)


class _ValuesTransform(ImageTransform):
    """Values of an image as they are in the file, at the points of a grid."""

    def __call__(self, sample: Sample) -> tuple[dict[str, torch.Tensor], tuple]:
        values = open_image(sample.image, self.bands).values()
        rows, columns = (np.linspace(0, side - 1, _GRID).round().astype(int) for side in values.shape[:2])
        values = values[rows[:, None], columns].astype(np.float64)
        missing = find_missing(values, self.bands)
        if missing is not None:
            values[missing] = np.nan
        return {"pixel_values": torch.from_numpy(values).permute(2, 0, 1)}, ()


def measure_range(
    source: Source, order: SampleOrder, config: MAEConfig, count: int, retry_minutes: float = 0
) -> tuple[list[list[float]], int]:
    """
    The percentiles 0.5 and 99.5 of each channel, as nnU-Net has them, of the values of at most `count` images, from
    all lanes and without missing data; and the number of these images. Each image gives 64 x 64 values.

    Raises:
        UserError: if no image can be read, or a channel has a single value.
    """
    images = list(_read_some(source, order, _ValuesTransform(config), count, retry_minutes, "--value_range auto"))
    values = torch.cat(images).numpy().swapaxes(0, 1).reshape(config.num_channels, -1)
    ranges = []
    for channel, found in enumerate(values, start=1):
        found = found[np.isfinite(found)]
        low, high = np.percentile(found, _PERCENTILES) if found.size else (0.0, 0.0)
        if not low < high:
            raise UserError(
                f"--value_range auto: channel {channel} of the first {len(images)} images has a single value. Pass "
                "--value_range LOW HIGH."
            )
        ranges.append([float(low), float(high)])
    return ranges, len(images)


def _read_some(
    source: Source, order: SampleOrder, transform: ImageTransform, count: int, retry_minutes: float, flag: str
) -> Iterator[torch.Tensor]:
    """
    The first images of an order, each as a batch of one.

    Raises:
        UserError: if no image can be read.
    """
    # With windows of one row, because windows are read whole.
    order = make_order(source, order.seed, order.lanes, shuffle_buffer_size=order.lanes)
    size = min(count, order.epoch_length)
    stream = SampleStream(source, order, batch_size=1, stop=size, retry_minutes=retry_minutes)
    num_images, skipped = 0, []
    for batch in make_loader(stream, SampleDataset(transform)):
        skipped += batch.skipped
        if batch.weight:
            num_images += 1
            yield batch.pixel_values
    if not num_images:
        (file, row), reason = skipped[0]
        raise UserError(
            f"{flag} has nothing to measure: none of the first {size} images can be read ({file} row {row}: {reason})."
        )
