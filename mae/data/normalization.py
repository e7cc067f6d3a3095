"""Pixel normalisation, and the statistics that it uses."""

from functools import lru_cache

import torch

from configuration_mae import MAEConfig
from mae.data.loader import make_loader
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils.errors import UserError


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A value of each channel; kept, because a copy to a GPU is waited for."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalize(images: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """uint8 images `(B, C, H, W)` as the model takes them: float32, by the configuration's mean and std."""
    pixel_values = images.float() / 255
    if config.image_mean is not None:
        mean, std = (_channels(tuple(values), images.device) for values in (config.image_mean, config.image_std))
        pixel_values = (pixel_values - mean) / std
    return pixel_values


def denormalize(pixel_values: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """The inverse of [`normalize`], as float32 in [0, 1]."""
    if config.image_mean is not None:
        device = pixel_values.device
        mean, std = (_channels(tuple(values), device) for values in (config.image_mean, config.image_std))
        pixel_values = pixel_values * std + mean
    return pixel_values.float().clamp(0, 1)


def measure_statistics(
    source: Source, order: SampleOrder, config: MAEConfig, count: int, retry_minutes: float = 0
) -> tuple[list[float], list[float], int]:
    """
    Mean and standard deviation of each channel, in [0, 1], over the pixels of images from all lanes; and how many
    these were, at most `count`.
    """
    # Without windows to shuffle in, which would be read whole.
    order = SampleOrder(order.group_sizes, order.seed, order.lanes, shuffle_buffer_size=order.lanes)
    size = min(count, order.epoch_length)
    stream = SampleStream(source, order, batch_size=1, stop=size, retry_minutes=retry_minutes)
    total = squares = torch.zeros(config.num_channels, dtype=torch.float64)
    num_images = 0
    for batch in make_loader(stream, PreTrainingTransform(config)):
        if batch.weight:
            pixels = batch.pixel_values.double() / 255
            total = total + pixels.mean(dim=(0, 2, 3))
            squares = squares + pixels.square().mean(dim=(0, 2, 3))
            num_images += 1
    if not num_images:
        raise UserError(f"None of the first {size} images can be read: --image_mean auto has nothing to measure.")
    mean, variance = total / num_images, squares / num_images - (total / num_images) ** 2
    std = variance.clamp(min=0).sqrt()
    if not std.all():
        raise UserError(f"A channel of the first {num_images} images has the same value everywhere: no --image_std.")
    return mean.tolist(), std.tolist(), num_images
