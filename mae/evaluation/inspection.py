"""What a model makes of single images: reconstructions of masked images, attention, and colours of features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig, to_pair
from mae.data.normalization import denormalize, normalize_images
from mae.utils.hashing import hash_key
from modeling_mae import MAEForPreTraining, MAEModel
from patches_mae import mask_from_noise, num_visible_patches


_MASKED_GREY = 0.5
# Percentiles of a principal component that are its darkest and its brightest.
_PERCENTILES = 1, 99


def fit_to_patches(image: Tensor, config: MAEConfig, masking: str | None = None) -> Tensor:
    """
    Resize an image `(C, H, W)` in the range of 8 bits to as many pixels as the model's images have, in its own shape.
    Sides are multiples of the patch size, and of two patches for masks of a grid. `masking` is the model's by default.
    """
    (height, width), (own_height, own_width) = to_pair(config.image_size), image.shape[1:]
    scale = (height * width / (own_height * own_width)) ** 0.5
    steps = [side * (2 if (masking or config.masking) == "grid" else 1) for side in to_pair(config.patch_size)]
    size = [max(round(side * scale / step), 1) * step for side, step in zip((own_height, own_width), steps)]
    if size == [own_height, own_width]:
        return image
    resized = TF.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp(0, 255)  # bicubic floats overshoot


def to_picture(pixels: Tensor) -> np.ndarray:
    """An image `(C, H, W)` in [0, 1] as `(H, W, 3)`: its first channel in grey if it is not RGB."""
    pixels = pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1)
    return pixels.permute(1, 2, 0).float().cpu().numpy()


def draw_mask(
    config: MAEConfig, size: Sequence[int], mask_ratio: float, key: Sequence[int], masking: str | None = None
) -> Tensor:
    """
    Draw the patches to remove from an image.

    Args:
        config: The model's.
        size: Height and width of the image, multiples of the patch size.
        mask_ratio: Share of the patches that are removed.
        key: What the mask follows from: the same numbers give the same mask.
        masking: Kind of the mask: random, block or grid. None is the model's.

    Returns:
        True for each removed patch, `(rows, columns)`.

    Raises:
        ValueError: if the mask keeps or removes no patch.
    """
    rows, columns = (side // patch for side, patch in zip(size, to_pair(config.patch_size)))
    seed = int.from_bytes(hash_key("reconstruct", *key)[:7], "big")
    noise = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    num_visible = num_visible_patches(rows * columns, mask_ratio)
    if not 0 < num_visible < rows * columns:
        raise ValueError(f"a mask of {mask_ratio:.0%} keeps {num_visible} of {rows * columns} patches.")
    _, mask, _ = mask_from_noise(noise, (rows, columns), num_visible, masking or config.masking)
    return mask[0].bool().unflatten(0, (rows, columns))


@dataclass(frozen=True)
class Reconstruction:
    """
    Pictures of an image, in [0, 1].

    Args:
        masked: With grey in place of removed patches, `(H, W, 3)`.
        reconstruction: As the model predicts it, `(H, W, 3)`.
        error: Mean absolute difference of the reconstruction from the image over the channels, `(H, W)`.
    """

    masked: np.ndarray
    reconstruction: np.ndarray
    error: np.ndarray


@torch.no_grad()
def reconstruct(model: MAEForPreTraining, image: Tensor, removed: Tensor, paste: bool = True) -> Reconstruction:
    """
    Predict the removed patches `(rows, columns)` of an image `(C, H, W)` in the range of 8 bits, whose sides are
    multiples of the patch size. `paste` says whether visible patches are those of the image, or predictions too.
    """
    config, device = model.config, next(model.parameters()).device
    pixel_values = normalize_images(image[None].to(device), config)
    mask = removed.flatten()[None].to(device)
    outputs = model.reconstruct(pixel_values, bool_masked_pos=mask, interpolate_pos_encoding=True)
    patches = torch.ones_like(model.patchify(pixel_values)) * outputs.mask[..., None]
    is_removed = model.unpatchify(patches, tuple(image.shape[1:]))[0].bool()
    masked = torch.where(is_removed, _MASKED_GREY, denormalize(outputs.masked, config)[0])
    predicted = denormalize(outputs.pasted if paste else outputs.reconstruction, config)[0]
    error = (predicted - denormalize(pixel_values, config)[0]).abs().mean(dim=0).float()
    return Reconstruction(to_picture(masked), to_picture(predicted), error.cpu().numpy())


@dataclass(frozen=True)
class PatchFeatures:
    """
    What the encoder computes for the patches of an image.

    Args:
        tokens: Patch tokens of the last block, `(rows, columns, D)`.
        attention: Share of cls's attention to each patch in the last block, mean over the heads, `(rows, columns)`.
    """

    tokens: Tensor
    attention: Tensor


@torch.no_grad()
def patch_features(encoder: MAEModel, image: Tensor) -> PatchFeatures:
    """Encode an image `(C, H, W)` in the range of 8 bits, whose sides are multiples of the patch size."""
    pixel_values = normalize_images(image[None].to(next(encoder.parameters()).device), encoder.config)
    outputs = encoder(pixel_values, interpolate_pos_encoding=True, output_attentions=True, return_dict=True)
    grid = tuple(side // patch for side, patch in zip(image.shape[1:], to_pair(encoder.config.patch_size)))
    attention = outputs.attentions[-1][0, :, 0, 1:].float().mean(dim=0)
    tokens = outputs.last_hidden_state[0, 1:].float()
    return PatchFeatures(tokens.unflatten(0, grid).cpu(), (attention / attention.sum()).unflatten(0, grid).cpu())


def principal_colours(tokens: Sequence[Tensor]) -> list[np.ndarray]:
    """
    The first three principal components of the patch tokens `(rows, columns, D)` of some images as red, green and
    blue, `(rows, columns, 3)` in [0, 1] (as in DINOv2, Oquab et al. 2023, Figure 1). Patches of all images that have
    similar features have similar colours.
    """
    everything = torch.cat([each.flatten(0, 1) for each in tokens]).double()
    mean = everything.mean(dim=0)
    _, _, directions = torch.linalg.svd(everything - mean, full_matrices=False)
    directions = directions[:3]
    # A direction and its opposite are equally good: the largest entry of each is positive.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    values = ((everything - mean) @ directions.T).numpy()
    values = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    low, high = np.percentile(values, _PERCENTILES, axis=0)
    values = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    counts = np.cumsum([each.shape[0] * each.shape[1] for each in tokens])[:-1]
    return [part.reshape(*each.shape[:2], 3) for part, each in zip(np.split(values, counts), tokens)]


def nearest(features: Tensor, queries: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The images whose features `(N, D)`, less their mean, have the largest cosine with those of some of them, without
    these themselves: their numbers and the cosines, `(queries, count)`, or fewer if there are fewer images.
    """
    # What all images have in common makes up most of a feature, and would make all cosines one.
    unit = torch.nn.functional.normalize(features.double() - features.double().mean(dim=0))
    cosines = unit[list(queries)] @ unit.T
    cosines[torch.arange(len(queries)), torch.tensor(list(queries))] = -2
    best = cosines.topk(min(count, len(features) - 1), dim=1)
    return best.indices.numpy(), best.values.numpy()
