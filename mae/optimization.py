"""Optimizer and schedule of the paper's recipes (Tables 8 and 9)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


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


class GuardedStep:
    """
    An optimizer's step that takes the gradient as it is: unscaled, clipped, and left out where it is not finite, or
    once there were too many such steps, so that weights and moments stay what they were. All on the device; only
    [`GuardedStep.fatal_step`], [`GuardedStep.num_nonfinite`] and [`GuardedStep.state_dict`] wait for it.

    With a gradient scaler (fp16) an overflow is how the scale is found: a step left out for it counts only where the
    scale is already 1 or less.

    Args:
        optimizer: A fused one, which takes `found_inf` as a gradient scaler sets it.
        max_nonfinite_steps: How many steps may be left out.
        max_grad_norm: To which norm gradients are clipped, over all parameters.
        scaler: By which the loss was multiplied.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_nonfinite_steps: int = 0,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.optimizer = optimizer
        self.max_nonfinite_steps = max_nonfinite_steps
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        device = optimizer.param_groups[0]["params"][0].device
        self._num_nonfinite = torch.tensor(0, device=device)
        self._fatal_step = torch.tensor(0, device=device)

    def __call__(self, step: int) -> torch.Tensor:
        """
        Changes the weights, and forgets their gradients.

        Args:
            step: Number of this step, from 1.

        Returns:
            The norm of the gradient before clipping, a scalar.
        """
        counted = True
        if self.scaler is not None:
            # The scale without waiting for the device, as get_scale() does.
            counted = self.scaler.scale(torch.ones_like(self._num_nonfinite)) <= 1
            self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        left_out = ~norm.isfinite()
        self._num_nonfinite += left_out & counted
        too_many = self._num_nonfinite > self.max_nonfinite_steps
        self._fatal_step += step * (too_many & (self._fatal_step == 0))
        # What a scaler's step would do, and for too many steps too.
        self.optimizer.found_inf = (left_out | too_many).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scaler is not None:
            self.scaler.update()
        return norm

    @property
    def num_nonfinite(self) -> int:
        """How many steps were left out because their gradient was not finite."""
        return int(self._num_nonfinite)

    @property
    def fatal_step(self) -> int:
        """The first step that was one too many, or 0."""
        return int(self._fatal_step)

    def state_dict(self) -> dict:
        """JSON values."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"num_nonfinite": self.num_nonfinite, "scaler": scaler}

    def load_state_dict(self, state: dict) -> None:
        self._num_nonfinite.fill_(state["num_nonfinite"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


class AveragedWeights:
    """
    An exponential moving average of a model's trainable weights (EMA), beside them.

    Args:
        model: The model, wherever its parameters are by now: the average lies beside them, sharded as they are.
        decay: How much of the average a step keeps; less in the first steps, (1 + step) / (10 + step), so that the
            initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """To be called after step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the model computes with the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def reset(self) -> None:
        """Takes the model's present weights for the average."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages):
                average.copy_(parameter)
