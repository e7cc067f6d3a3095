# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
Feature maps, segmentation heads and their loss for `modeling_mae.py`.

In the docstrings B is the batch size, H and W the image size in pixels, h and w the number of patches in a column and
in a row, L = h * w, and D the encoder width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


try:
    from .configuration_mae import MAEConfig
    from .patches_mae import constant
except ImportError:
    if __package__:
        raise
    from configuration_mae import MAEConfig
    from patches_mae import constant


def to_feature_map(hidden_states: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Arrange the patch tokens of `(B, 1 + L, D)` as a map `(B, D, h, w)`. The cls token is left out."""
    return hidden_states[:, 1:].transpose(1, 2).unflatten(2, grid_size)


class MAEFeaturePyramid(nn.Module):
    """
    Four maps at the stride of a patch -> maps at 1/4, 1/2, 1 and 2 times this stride, which is 4, 8, 16 and 32 pixels
    for patches of 16. Each is sampled from another block by transposed convolutions and a max pooling, as in BEiT's
    code, which the paper uses for ADE20K (Appendix A.4).
    """

    def __init__(self, config: MAEConfig):
        super().__init__()

        def double() -> nn.Module:
            return nn.ConvTranspose2d(config.hidden_size, config.hidden_size, kernel_size=2, stride=2)

        self.up4 = nn.Sequential(double(), nn.BatchNorm2d(config.hidden_size), nn.GELU(), double())
        self.up2 = double()
        # The last row and column of an odd grid count too, and a grid may have a single patch.
        self.down2 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)

    def forward(self, feature_maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, second, third, fourth = feature_maps
        return self.up4(first), self.up2(second), third, self.down2(fourth)


class MAELinearHead(nn.Module):
    """Batch norm and a 1 x 1 convolution on the last map: `(B, D, h, w)` -> scores `(B, num_labels, h, w)`."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(config.hidden_size)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.batch_norm(feature_maps[-1]))


def make_heads(config: MAEConfig) -> tuple[nn.Module, nn.Module | None]:
    """
    Create the head that `config.segmentation_head` names, and its auxiliary head. Both turn a sequence of maps into
    scores `(B, num_labels, ...)` at the stride of one of them. Only UPerNet has an auxiliary head.
    """
    if config.segmentation_head == "linear":
        return MAELinearHead(config), None
    # Only here, because the import takes time that other models need not wait for.
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    upernet = UperNetConfig(
        hidden_size=config.segmentation_hidden_size or config.hidden_size, num_labels=config.num_labels
    )
    channels = 4 * [config.hidden_size]
    auxiliary = UperNetFCNHead(upernet, channels) if config.auxiliary_loss_weight > 0 else None
    return UperNetHead(upernet, channels), auxiliary


def resize_logits(logits: Tensor, images: Tensor) -> Tensor:
    """Resize scores to the height and width of images, bilinearly."""
    return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def segmentation_loss(logits: Tensor, labels: Tensor, config: MAEConfig) -> Tensor:
    """
    Mean cross-entropy over the labelled pixels, in float32: scores `(B, num_labels, H, W)` and class indices
    `(B, H, W)`. Pixels of `config.semantic_loss_ignore_index` do not count, and others by `config.class_weights`. The
    loss is 0 if no pixel counts.
    """
    expected = logits[:, 0].shape
    if labels.shape != expected or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {tuple(expected)}, one per pixel, not {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    labels = labels.long()
    weights = None if config.class_weights is None else constant(config.class_weights, logits)
    ignored = config.semantic_loss_ignore_index
    total = F.cross_entropy(logits.float(), labels, weights, ignore_index=ignored, reduction="sum")
    counts = labels != ignored
    if weights is not None:
        counts = counts * weights[labels.masked_fill(~counts, 0)]
    count = counts.sum()
    return total / torch.where(count > 0, count, 1)
