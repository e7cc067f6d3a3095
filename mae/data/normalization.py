"""Pixel normalisation, and the statistics that it uses."""

import torch

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.loader import make_loader
from mae.data.mixture import make_order
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils.errors import UserError
from patches_mae import channel_values, normalize


def model_inputs(images: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """
    Return images `(B, C, H, W)` as models take them. The models normalise uint8 images themselves, after they have
    selected the patches that they need. Images of more than 8 bits, float32 between 0 and 255, are normalised here.
    """
    return images if images.dtype == torch.uint8 else normalize(images, config)


def denormalize(pixel_values: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """The inverse of [`normalize`], as float32 in [0, 1]."""
    if config.image_mean is not None:
        mean, std = channel_values(pixel_values, config)
        pixel_values = pixel_values * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return pixel_values.float().clamp(0, 1)


def measure_statistics(
    source: Source, order: SampleOrder, config: MAEConfig, count: int, retry_minutes: float = 0
) -> tuple[list[float], list[float], int]:
    """
    Mean and standard deviation of each channel, in [0, 1], over the pixels of images from all lanes, and the number of
    these images, at most `count`.

    Raises:
        UserError: if no image can be read, or a channel has a single value.
    """
    # With windows of one row, because windows are read whole.
    order = make_order(source, order.seed, order.lanes, shuffle_buffer_size=order.lanes)
    size = min(count, order.epoch_length)
    stream = SampleStream(source, order, batch_size=1, stop=size, retry_minutes=retry_minutes)
    total = squares = torch.zeros(config.num_channels, dtype=torch.float64)
    num_images, skipped = 0, []
    for batch in make_loader(stream, SampleDataset(PreTrainingTransform(config))):
        if batch.weight:
            pixels = batch.pixel_values.double() / 255
            total = total + pixels.mean(dim=(0, 2, 3))
            squares = squares + pixels.square().mean(dim=(0, 2, 3))
            num_images += 1
        skipped += batch.skipped
    if not num_images:
        (file, row), reason = skipped[0]
        raise UserError(
            f"--image_mean auto has nothing to measure: none of the first {size} images can be read "
            f"({file} row {row}: {reason})."
        )
    mean, variance = total / num_images, squares / num_images - (total / num_images) ** 2
    std = variance.clamp(min=0).sqrt()
    if not std.all():
        raise UserError(f"--image_mean auto: a channel of the first {num_images} images has a single value.")
    return mean.tolist(), std.tolist(), num_images
