# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
Patches and masks for `modeling_mae.py`.

In the docstrings B is the batch size, C the number of channels, H and W the image size in pixels, L the number of
patches in an image and P the number of values in a patch.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.utils import logging


try:
    from .configuration_mae import to_pair
except ImportError:
    if __package__:
        raise
    from configuration_mae import to_pair

logger = logging.get_logger(__name__)


class MaskedPatches(NamedTuple):
    """
    The patches of a batch in the order [visible, removed], and where they belong. They are cut and ordered once, as
    uint8 if the images are. Encoder and loss then compute on the patches that they need.

    Args:
        patches: Of shape `(B, L, P)`, channels last, uint8 or normalised.
        num_visible: Number of visible patches.
        ids_shuffle: Of shape `(B, L)`: the raster index of each patch.
        ids_restore: Of shape `(B, L)`, the inverse of `ids_shuffle`.
        mask: Of shape `(B, L)`, in raster order: 1 = removed, 0 = visible.
        grid_size: Patches in a column and in a row of the image.
    """

    patches: Tensor
    num_visible: int
    ids_shuffle: Tensor
    ids_restore: Tensor
    mask: Tensor
    grid_size: tuple[int, int]

    @property
    def visible(self) -> Tensor:
        return self.patches[:, : self.num_visible]

    @property
    def removed(self) -> Tensor:
        return self.patches[:, self.num_visible :]


# Pixels


def check_pixel_values(pixel_values: Tensor, config: PreTrainedConfig, any_size: bool = False) -> tuple[int, int]:
    """Return the patch grid (rows, columns) of a batch of images, or raise a `ValueError` if they do not fit."""
    if pixel_values.ndim != 4:
        shape = tuple(pixel_values.shape)
        raise ValueError(f"pixel_values must have shape (batch, channels, height, width), not {shape}.")
    channels, height, width = pixel_values.shape[1:]
    if channels != config.num_channels:
        raise ValueError(f"pixel_values has {channels} channels, but this model takes {config.num_channels}.")
    patch_height, patch_width = to_pair(config.patch_size)
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"Images of {height} x {width} pixels cannot be cut into patches of {patch_height} x {patch_width}. "
            "Resize or crop them to a multiple of the patch size."
        )
    expected_height, expected_width = to_pair(config.image_size)
    if not any_size and (height, width) != (expected_height, expected_width):
        raise ValueError(
            f"Images of {height} x {width} pixels do not fit this model for {expected_height} x {expected_width}. "
            "Resize them, or pass interpolate_pos_encoding=True to resample the position tables."
        )
    return height // patch_height, width // patch_width


@lru_cache
def _cached_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the tensor outlives the caller
        return torch.tensor(values, device=device, dtype=torch.float32)


def constant(values: Iterable[float], like: Tensor) -> Tensor:
    """Return a float32 tensor of these values on the device of `like`."""
    # Cached, because the host would wait for a copy to a GPU. A tensor of a tracer must not get into the cache.
    is_plain = type(like) is Tensor and not torch.compiler.is_compiling()
    make = _cached_tensor if is_plain else _cached_tensor.__wrapped__
    return make(tuple(values), like.device)


def channel_values(pixels: Tensor, config: PreTrainedConfig) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel, of shape `(C,)` on the device of `pixels`."""
    return constant(config.image_mean, pixels), constant(config.image_std, pixels)


def normalize(pixels: Tensor, config: PreTrainedConfig, patches: bool = False) -> Tensor:
    """
    Turn pixels between 0 and 255 into float32 with the configuration's mean and std. They are images
    `(..., C, H, W)`, or with `patches=True` patches `(..., P)` with channels last.
    """
    pixels = pixels.to(torch.float32, copy=True).div_(255)
    if config.image_mean is None:
        return pixels
    mean, std = channel_values(pixels, config)
    if patches:
        repeats = pixels.shape[-1] // config.num_channels
        return pixels.sub_(mean.repeat(repeats)).div_(std.repeat(repeats))
    return pixels.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def image_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each image `(B, C, H, W)`, float32 of shape `(B, C, 1, 1)`."""
    images = images.float()
    variance = images.var(dim=(2, 3), correction=0, keepdim=True)
    return images.mean(dim=(2, 3), keepdim=True), (variance + 1e-6).sqrt()


def standardize(images: Tensor, config: PreTrainedConfig) -> Tensor:
    """
    Give each channel of each image `(B, C, H, W)` mean 0 and variance 1 if `config.standardize_images` is set. That is
    the instance norm before OpenPhenom's encoder. The mean and std of the data then cancel out.
    """
    if not config.standardize_images:
        return images
    mean, std = image_statistics(images)
    return ((images - mean) / std).to(images.dtype)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, `(B, L, 1)` each, unbiased as in the official code."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def target_patches(patches: Tensor, config: PreTrainedConfig) -> Tensor:
    """What is predicted of patches `(B, N, P)`, which are normalised pixels or uint8, in float32."""
    target = normalize(patches, config, patches=True) if patches.dtype == torch.uint8 else patches.float()
    if not config.norm_pix_loss:
        return target
    # Layer norm divides by the biased std, and takes a tenth of the time of `Tensor.var` on a CPU.
    size = target.shape[-1]
    bias = (size - 1) / size
    return F.layer_norm(target, (size,), eps=1e-6 * bias) * math.sqrt(bias)


def patchify(pixel_values: Tensor, patch_size: int | list[int] | tuple[int, int]) -> Tensor:
    """Cut images `(B, C, H, W)` into patches `(B, L, P)`, in raster order and channels last ("nchpwq->nhwpqc")."""
    height, width = to_pair(patch_size)
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def take_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """Select patches `(B, N, P)` of `(B, L, P)` by their indices `(B, N)`."""
    batch_size, num_patches, _ = patches.shape
    starts = num_patches * torch.arange(batch_size, device=ids.device)[:, None]
    # Whole rows are copied. A gather needs an index for every value, and is four to ten times as slow.
    return patches.flatten(0, 1).index_select(0, (starts + ids).flatten()).unflatten(0, ids.shape)


class SquaredNorms(torch.autograd.Function):
    """
    Sum of squares of each patch, `(B, L, P)` -> `(B, L)`. Forward and backward pass over the memory once each, where
    `F.mse_loss` needs four passes and `Tensor.square` five. That is a tenth of the step of a small model on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor) -> Tensor:
        return torch.linalg.vector_norm(patches, dim=-1).square()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> Tensor:
        (patches,) = ctx.saved_tensors
        return patches * (2 * grad_output)[..., None]


# Masks


def invert(order: Tensor) -> Tensor:
    """Invert the permutation in each row of `(B, L)`."""
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks)


def num_visible_patches(num_patches: int, mask_ratio: float) -> int:
    """Number of patches that a mask keeps, rounded as in the official code with its float error (100, 0.9 -> 9)."""
    return int(num_patches * (1 - mask_ratio))


def block_scores(noise: Tensor, grid_size: tuple[int, int], num_visible: int) -> Tensor:
    """
    Scores `(B, L)` for block-wise masking (Table 1f, from BEiT). The lowest are kept: rectangles of random size,
    aspect ratio and position are removed one after another, and the last is cut to the exact count. The noise
    `(B, L)`, uniform in [0, 1), is the only source of randomness.
    """
    height, width = grid_size
    num_patches = height * width
    if num_patches < 4:  # too few for a block
        return noise
    num_removed = num_patches - num_visible
    num_blocks = num_patches // 4  # each block takes four numbers from the noise
    area, aspect, top, left = noise[:, : 4 * num_blocks].float().clamp(0, 1).unflatten(1, (4, num_blocks)).unbind(1)

    # BEiT: at least 16 of 196 patches, and a log-uniform aspect ratio between 0.3 and 1 / 0.3.
    min_area = 16 / 196 * num_patches
    area = min_area + area * max(num_removed - min_area, 0)
    aspect = torch.exp((2 * aspect - 1) * math.log(1 / 0.3))
    block_height = (area * aspect).sqrt().round().clamp(1, height)
    block_width = (area / aspect).sqrt().round().clamp(1, width)
    top = (top * (height - block_height + 1)).floor().minimum(height - block_height)
    left = (left * (width - block_width + 1)).floor().minimum(width - block_width)

    rows, columns = (torch.arange(side, device=noise.device) for side in grid_size)
    in_rows = (rows >= top[..., None]) & (rows < (top + block_height)[..., None])
    in_columns = (columns >= left[..., None]) & (columns < (left + block_width)[..., None])
    covered = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)  # (B, blocks, L)
    # The first block that covers a patch removes it. Patches that no block covers are the last to be removed.
    first_block = torch.where(covered.any(1), covered.int().argmax(1), num_blocks)
    return -first_block


def mask_from_noise(
    noise: Tensor, grid_size: tuple[int, int], num_visible: int, masking: str = "random"
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Compute the mask for a noise `(B, L)`, uniform in [0, 1): keep the `num_visible` patches with the smallest noise
    (Section 3, "Masking"). `masking` is "random", "block" or "grid" (Table 1f). "grid" ignores the noise, keeps the
    first patch of every 2 x 2 and raises a `ValueError` if the grid or `num_visible` does not allow it.

    Returns `ids_keep` of shape `(B, num_visible)`, `mask` of shape `(B, L)` with 1 = removed, and `ids_restore` of
    shape `(B, L)`, the inverse of the order [kept, removed].
    """
    height, width = grid_size
    if masking == "grid":
        if height % 2 or width % 2 or 4 * num_visible != height * width:
            raise ValueError(
                f"masking='grid' keeps 1 of 2 x 2 patches and cannot keep {num_visible} of {height} x {width}. Use "
                "mask_ratio=0.75 and an image with an even number of patches along each side."
            )
        rows, columns = (torch.arange(side, device=noise.device) % 2 for side in grid_size)
        scores = (rows[:, None] | columns).flatten().expand(noise.shape)
    elif masking == "block":
        scores = block_scores(noise, grid_size, num_visible)
    else:
        scores = noise
    # Stable, because the order of equal scores would otherwise depend on the device.
    ids_shuffle = torch.argsort(scores, dim=1, stable=True)
    ids_restore = invert(ids_shuffle)
    mask = (ids_restore >= num_visible).float()
    return ids_shuffle[:, :num_visible], mask, ids_restore


# Patch projections at another patch size


def _resize_matrix(old_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """The matrix `(new values, old values)` that resizes one channel of a patch: bicubic, with antialiasing."""
    basis = torch.eye(old_size[0] * old_size[1], device="cpu").unflatten(1, tuple(old_size))[:, None]
    return F.interpolate(basis, tuple(new_size), mode="bicubic", align_corners=False, antialias=True).flatten(1).T


def resample_projection(weight: Tensor, new_size: Sequence[int]) -> Tensor:
    """
    Resample the patch projection `(D, C, height, width)` to another patch size by the pseudo-inverse of a resize
    (FlexiViT, arXiv 2212.08013), in float32. To larger patches, resized images then give the same tokens.
    """
    matrix = torch.linalg.pinv(_resize_matrix(weight.shape[2:], new_size)).to(weight.device)
    return (weight.flatten(2).float() @ matrix).unflatten(2, tuple(new_size)).to(weight.dtype)


def resample_prediction(values: Tensor, old_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """
    Resample the weight `(P, D)` or bias `(P,)` of the decoder's prediction to another patch size, in float32. It then
    predicts what it predicted before, resized.
    """
    matrix = _resize_matrix(old_size, new_size).to(values.device)
    values_of_channels = values.float().unflatten(0, (matrix.shape[1], -1)).flatten(1)  # the channel is last
    return (matrix @ values_of_channels).reshape(-1, *values.shape[1:]).to(values.dtype)


def resize_patches(model: nn.Module, old_size: tuple[int, int], new_size: tuple[int, int]) -> None:
    """Resample the patch projection and the prediction of a model to another patch size, and log it."""
    for module in model.modules():
        if hasattr(module, "resize_patches"):
            module.resize_patches(old_size, new_size)
    sizes = [f"{height} x {width}" for height, width in (old_size, new_size)]
    logger.warning(f"Patch projections were resampled from patches of {sizes[0]} pixels to {sizes[1]}.")
