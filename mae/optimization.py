"""Optimizer and schedule of the paper's recipes (Tables 8 and 9)."""

import math

import torch
from torch import nn


def learning_rate_at(
    epoch: float, learning_rate: float, warmup_epochs: float, epochs: float, min_learning_rate: float = 0.0
) -> float:
    """
    Linear warm-up from 0, then half a cosine down to `min_learning_rate`: the official schedule, by epoch fraction.

    Args:
        epoch: Epochs done before this step, fractions included; 0 for the first step, whose rate is 0.
        learning_rate: The peak.
        epochs: Length of the whole schedule, warm-up included.
    """
    if epoch < warmup_epochs:
        return learning_rate * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """
    Two groups of the model's trainable parameters: with and without weight decay. Biases and all that is
    one-dimensional take none, nor does what the model names in `no_weight_decay()`.
    """
    exempt = model.no_weight_decay()
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in exempt
            (others if is_exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; its learning rate is set at every step."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, betas=betas, fused=True)


class NonfiniteGuard:
    """
    Leaves out the updates of steps whose gradient is not finite, and all of them once there were too many: the weights
    stay what they were before. On the device, without waiting for it; [`NonfiniteGuard.fatal_step`] waits.

    Args:
        optimizer: A fused one, which takes `found_inf` as a gradient scaler sets it.
        max_steps: How many steps may be left out.
        num_steps: How many have been, before a resume.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_steps: int, num_steps: int, device: torch.device):
        self.optimizer = optimizer
        self.max_steps = max_steps
        self._num_steps = torch.tensor(num_steps, device=device)
        self._fatal_step = torch.tensor(0, device=device)

    def check(self, gradient_norm: torch.Tensor, step: int) -> None:
        """To be called before the optimizer's step."""
        left_out = ~gradient_norm.isfinite()
        self._num_steps += left_out
        too_many = self._num_steps > self.max_steps
        self._fatal_step += step * (too_many & (self._fatal_step == 0))
        self.optimizer.found_inf = (left_out | too_many).float()

    @property
    def num_steps(self) -> int:
        """How many steps were left out."""
        return int(self._num_steps)

    @property
    def fatal_step(self) -> int:
        """The first step that was one too many, or 0."""
        return int(self._fatal_step)
