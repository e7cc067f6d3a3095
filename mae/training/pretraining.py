"""Masked pre-training (Section 3), as a task."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from mae.arguments.recipes import PreTrainingRecipe
from mae.data.batch import Batch
from mae.data.crop import CropOptions
from mae.data.dataset import SampleDataset
from mae.data.normalization import model_inputs, patch_weights
from mae.data.sources import Source
from mae.data.transforms import PreTrainingTransform
from mae.training.flops import training_flops
from mae.training.optimization import make_optimizer
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining


class PreTraining:
    """
    Masked pre-training, as a [`Task`].

    Raises:
        UserError: if the model has drop path or attention dropout.
    """

    name = "pre-training"
    min_learning_rate = 0.0

    def __init__(self, model: MAEForPreTraining, source: Source, recipe: PreTrainingRecipe):
        for name in ("drop_path_rate", "attention_probs_dropout_prob"):
            # It would be drawn from a state that depends on how the batch is divided and that no checkpoint holds.
            if getattr(model.config, name):
                raise UserError(
                    f"{name}={getattr(model.config, name)} is for fine-tuning. Pre-train without it, as the paper "
                    f"does: --config_overrides {name}=0"
                )
        self.model = model
        self.source = source
        self.recipe = recipe
        self.flops_per_image = training_flops(model.config)

    def dataset(self, should_stop: Callable[[], bool]) -> SampleDataset:
        recipe = self.recipe
        crop = CropOptions(**{item.name: getattr(recipe, item.name) for item in fields(CropOptions)})
        return SampleDataset(PreTrainingTransform(self.model.config, crop, recipe.color_jitter, recipe.grayscale_prob))

    def optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return make_optimizer(self.model, recipe.weight_decay, (recipe.adam_beta1, recipe.adam_beta2))

    def loss(self, forward: nn.Module, batch: Batch) -> Tensor:
        device = self.model.device
        images = batch.pixel_values.to(device, non_blocking=True)
        noise = torch.as_tensor(batch.noise).to(device, non_blocking=True)
        config = self.model.config
        weights = patch_weights(images, config, self.recipe.max_nodata_share)
        return forward(model_inputs(images, config), noise=noise, return_logits=False, patch_weights=weights).loss

    def identity(self) -> dict[str, dict[str, Any]]:
        return {}
