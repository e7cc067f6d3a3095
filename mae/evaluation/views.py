"""A picture of what augmentation makes of an image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mae.data.bands import Bands
from mae.data.dataset import Transform
from mae.data.decoding import DecodingError, decode_image
from mae.data.order import sample_seed
from mae.data.sources import Source
from mae.data.stream import Sample
from mae.evaluation.reconstruction import rows_of_some_groups
from mae.evaluation.visualization import figure_style
from mae.utils.errors import UserError


NUM_VIEWS = 8
_SIDE = 3  # pictures in a row: the image, and its views
_CELL = 2.2  # inches


def save_views(
    source: Source,
    transform: Transform,
    bands: Bands,
    seed: int,
    path: Path,
    retry_minutes: float = 0,
    colour: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> None:
    """
    Draw an image of a source as it is, and eight views of it as a transform of training draws them.

    Args:
        bands: What is read of an image. Of other numbers of channels than 3 the first is drawn.
        seed: Seed of the views.
        path: The PNG file to write.
        colour: Colours a view, uint8 `(H, W, 3)`, by its mask of classes `(H, W)`, for a transform that gives one.

    Raises:
        UserError: if none of the first images can be read.
    """
    row, data, image = _first_readable(source, bands, seed, retry_minutes)
    num_channels = bands.num_channels
    seeds = [sample_seed(seed, epoch, 0, 0) for epoch in range(NUM_VIEWS)]
    samples = [Sample(epoch, 0, ("", 0), key, data, row) for epoch, key in enumerate(seeds)]
    tensors = [transform(sample)[0] for sample in samples]
    views = [tensor["pixel_values"] for tensor in tensors]
    masks = [None, *(tensor.get("labels") for tensor in tensors)]
    if num_channels == 3:
        low, high = 0.0, 255.0
    else:  # values of instruments may fill a small part of their range
        low, high = (float(value) for value in np.nanpercentile(image[0].numpy(), (1, 99)))
        high = max(high, low + 1e-6)
    height, width = views[0].shape[1:]
    with figure_style():
        # At least as high as a title needs.
        figure = Figure(figsize=(_SIDE * _CELL, max(_SIDE * _CELL * height / width, 2) + 0.6), layout="constrained")
        for axis, pixels, mask in zip(figure.subplots(_SIDE, _SIDE).flat, [image, *views], masks, strict=True):
            picture = pixels.float().permute(1, 2, 0).sub(low).div(high - low).clamp(0, 1).nan_to_num(0).numpy()
            picture = picture if num_channels == 3 else picture[..., 0]
            if colour is not None and mask is not None:
                rgb = np.broadcast_to(np.atleast_3d(picture), (*mask.shape, 3))
                picture = colour((255 * rgb).round().astype(np.uint8), mask.numpy())
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.axis("off")
        figure.axes[0].set_title(f"image, {image.shape[2]} x {image.shape[1]} pixels", fontsize=9)
        figure.axes[1].set_title(f"views, {width} x {height} pixels", fontsize=9)
        if num_channels not in (1, 3):
            figure.axes[2].set_title(f"channel 1 of {num_channels}", fontsize=9)
        figure.savefig(path, dpi=120)


def _first_readable(source: Source, bands: Bands, seed: int, retry_minutes: float) -> tuple[int, bytes | str, Tensor]:
    """The first image that can be decoded: its row, as it is stored, and decoded `(C, H, W)`."""
    reason = ""
    for row, data in rows_of_some_groups(source, 10, seed, retry_minutes):
        try:
            return row, data, torch.as_tensor(decode_image(data, bands))
        except DecodingError as error:
            reason = str(error)
    raise UserError(f"--preview_augmentation: none of the first images can be read ({reason}).")
