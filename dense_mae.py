# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
Feature maps, segmentation heads and their loss for `modeling_mae.py`.

In the docstrings B is the batch size, H and W the image size in pixels, h and w the number of patches in a column and
in a row, L = h * w, and D the encoder width.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


try:
    from .configuration_mae import MAEConfig, to_pair
    from .patches_mae import constant, normalize
except ImportError:
    if __package__:
        raise
    from configuration_mae import MAEConfig, to_pair
    from patches_mae import constant, normalize


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


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of windows that cover a side and overlap by at least a share of a window; [0] if one is enough."""
    if length <= window:
        return [0]
    stride = max(int(window * (1 - overlap)), 1)
    count = -(-(length - window) // stride) + 1
    return [round(number * (length - window) / (count - 1)) for number in range(count)]


def window_weights(window: tuple[int, int], device: torch.device) -> Tensor:
    """Weight of each pixel of a window, of its shape: it falls linearly from 1 in the centre towards the edges."""
    falls = []
    for side in window:
        places = torch.arange(side, device=device, dtype=torch.float32)
        falls.append(torch.minimum(places + 1, side - places) / ((side + 1) // 2))
    return falls[0][:, None] * falls[1]


class SegmentationMixin:
    """Loss, and segmentation of images of any size in overlapping windows of `config.image_size`."""

    # Of the model that it is mixed into.
    config: MAEConfig
    get_input_embeddings: Callable[[], nn.Module]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of scores `(B, num_labels, H, W)` for `labels`, see `forward`."""
        return segmentation_loss(logits, labels.to(logits.device), self.config)

    @torch.no_grad()
    def score_bands(self, image: Tensor, overlap: float = 1 / 3, batch_size: int = 8) -> Iterator[tuple[int, Tensor]]:
        """
        Score the pixels of one image, a band of rows at a time. Where windows overlap, their scores are averaged, with
        weights that fall towards the edges of a window. Memory grows with the width of the image, not with its height.

        Args:
            image (`torch.Tensor` of shape `(C, H, W)`):
                Normalised pixels, or uint8. Sides shorter than a window are filled up with the mean colour.
            overlap (`float`, *optional*, defaults to 1/3):
                Smallest share of a window that it has in common with the next one, in [0, 1).
            batch_size (`int`, *optional*, defaults to 8):
                Windows that are encoded at once.

        Yields:
            The first row of a band, and its float32 scores `(num_labels, rows, W)`. Bands follow each other without
            gaps.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap} must be in [0, 1).")
        device = self.get_input_embeddings().proj.weight.device
        window = to_pair(self.config.image_size)
        (height, width), weights = image.shape[1:], window_weights(window, device)
        lefts = window_starts(width, window[1], overlap)
        tops = window_starts(height, window[0], overlap)
        scores = torch.zeros(self.config.num_labels, window[0], max(width, window[1]), device=device)
        total = torch.zeros(scores.shape[1:], device=device)
        for top, next_top in zip(tops, [*tops[1:], height]):
            for start in range(0, len(lefts), batch_size):
                some = lefts[start : start + batch_size]
                windows = torch.stack([self._cut_window(image, top, left, window, device) for left in some])
                for left, logits in zip(some, self(windows).logits.float()):
                    scores[:, :, left : left + window[1]] += logits * weights
                    total[:, left : left + window[1]] += weights
            rows = next_top - top
            yield top, (scores[:, :rows] / total[:rows])[:, :, :width]
            scores = torch.cat([scores[:, rows:], torch.zeros_like(scores[:, :rows])], dim=1)
            total = torch.cat([total[rows:], torch.zeros_like(total[:rows])])

    def _cut_window(self, image: Tensor, top: int, left: int, window: tuple[int, int], device: torch.device) -> Tensor:
        pixels = image[:, top : top + window[0], left : left + window[1]].to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.config)
        height, width = pixels.shape[1:]
        return F.pad(pixels, (0, window[1] - width, 0, window[0] - height))

    def segment(self, image: Tensor, overlap: float = 1 / 3, batch_size: int = 8) -> Tensor:
        """
        Find the class of each pixel of one image of any size, int64 of shape `(H, W)` on the CPU. Arguments as in
        [`~SegmentationMixin.score_bands`]. The model should be in evaluation mode.
        """
        bands = self.score_bands(image, overlap, batch_size)
        return torch.cat([scores.argmax(dim=0).cpu() for _, scores in bands])
