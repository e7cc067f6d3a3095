"""Masked pre-training (Section 3), as a task of the training loop."""

import torch

from mae.data.batch import Batch
from mae.data.normalization import normalize
from mae.data.transforms import PreTrainingTransform
from mae.training.flops import training_flops
from mae.training.loop import Training
from mae.training.optimization import make_optimizer
from mae.utils.errors import UserError


class PreTraining(Training):
    """A run of masked pre-training, of a [`MAEForPreTraining`]."""

    task = "pre-training"

    def __init__(self, model, *args, **kwargs):
        for name in ("drop_path_rate", "attention_probs_dropout_prob"):
            # It would be drawn from a state that depends on how the batch is divided and that no checkpoint holds.
            if getattr(model.config, name):
                raise UserError(
                    f"{name}={getattr(model.config, name)} is for fine-tuning; pre-train without it, as the paper "
                    f"does: --config_overrides {name}=0"
                )
        super().__init__(model, *args, **kwargs)

    def make_examples(self) -> PreTrainingTransform:
        return PreTrainingTransform(self.model.config)

    def make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return make_optimizer(self.model, recipe.weight_decay, (recipe.adam_beta1, recipe.adam_beta2))

    def compute_loss(self, batch: Batch) -> torch.Tensor:
        device = self.accelerator.device
        images = batch.pixel_values.to(device, non_blocking=True)
        noise = torch.as_tensor(batch.noise).to(device, non_blocking=True)
        return self.prepared(normalize(images, self.model.config), noise=noise).loss

    @property
    def flops(self) -> float:
        return training_flops(self.model.config)
