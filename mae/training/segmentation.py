"""Semantic segmentation on an encoder (Section 5, Appendix A.4), as a task."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from configuration_mae import DENSE_FIELDS
from mae.arguments.run import RunArguments
from mae.arguments.segmentation import SegmentationRecipe
from mae.data.batch import Batch
from mae.data.dataset import SampleDataset
from mae.data.mask_rows import Masks
from mae.data.masks import MaskCoding
from mae.data.normalization import normalize_images
from mae.data.segmentation import Augmentation, SegmentationTransform
from mae.data.sources import Source
from mae.training.optimization import make_optimizer
from mae.training.transfer import PROTOCOL_NAMES, batch_seed
from mae.utils.errors import UserError
from modeling_mae import MAEForSemanticSegmentation


class Segmentation:
    """
    Training a [`MAEForSemanticSegmentation`], as a [`Task`].

    Drop path, batch norm, and the mean over the pixels that count depend on a whole per-device batch. They follow from
    the seed and the batch's positions: they are the same after a resume, for any number of workers, and as long as
    ranks, per-device batch and accumulation divide the batch as before.

    Args:
        masks: Masks of the source's rows.

    Raises:
        UserError: if the recipe's flags do not fit together.
    """

    flops_per_image = None
    min_learning_rate = 0.0

    def __init__(
        self,
        model: MAEForSemanticSegmentation,
        source: Source,
        masks: Masks,
        coding: MaskCoding,
        recipe: SegmentationRecipe,
        arguments: RunArguments,
    ):
        self.model = model
        self.source = source
        self.masks = masks
        self.coding = coding
        self.recipe = recipe
        self.name = f"segmentation, {PROTOCOL_NAMES[recipe.protocol]}"
        self.is_upernet = model.config.segmentation_head == "upernet"
        if self.is_upernet and arguments.per_device_train_batch_size < 2:
            raise UserError("--per_device_train_batch_size must be at least 2, because UPerNet normalises over it.")

    def dataset(self, should_stop: Callable[[], bool]) -> SampleDataset:
        recipe = self.recipe
        augmentation = Augmentation(**{item.name: getattr(recipe, item.name) for item in fields(Augmentation)})
        return SampleDataset(SegmentationTransform(self.model.config, self.masks, self.coding, augmentation))

    def optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        betas = recipe.adam_beta1, recipe.adam_beta2
        return make_optimizer(self.model, recipe.weight_decay, betas, recipe.layer_decay)

    def loss(self, forward: nn.Module, batch: Batch) -> Tensor:
        device, config = self.model.device, self.model.config
        labels = torch.as_tensor(batch.labels).to(device, non_blocking=True)
        pixels = normalize_images(batch.pixel_values.to(device, non_blocking=True), config)
        if self.is_upernet and len(pixels) == 1:
            # With unreadable images left out, a batch may be too small to normalise over.
            labels, pixels = labels.repeat(2, 1, 1), pixels.repeat(2, 1, 1, 1)
        # For drop path, which draws from the device's own generator; nothing else draws from it.
        if self.recipe.drop_path_rate or config.attention_probs_dropout_prob:
            torch.manual_seed(batch_seed(self.recipe.seed, batch))
        return forward(pixel_values=pixels, labels=labels).loss

    def identity(self) -> dict[str, dict[str, Any]]:
        fields = {name: getattr(self.model.config, name) for name in DENSE_FIELDS}
        return {
            "data": {"masks": self.masks.fingerprint, "classes": self.coding.fingerprint},
            "model": fields | {"num_labels": len(self.coding.names)},
        }
