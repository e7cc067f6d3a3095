"""How long a run is, and its learning rate at each step."""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mae.arguments.recipes import Recipe
from mae.arguments.run import RunArguments
from mae.utils.errors import UserError


logger = logging.getLogger(__name__)

_DECAY_RATIO = 0.2


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


@dataclass(frozen=True)
class Horizon:
    """
    The length of a run whose schedule does not fix it. Runs of two lengths are the same up to the step at which the
    first of them decays.

    Args:
        num_steps: Optimizer steps of the run.
        steady_steps: Those before the decay.
    """

    num_steps: int
    steady_steps: int

    def shares(self, step: int, other: "Horizon") -> bool:
        """Whether a run of another length has the same state after a step."""
        return self == other or step <= min(self.steady_steps, other.steady_steps)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """
    Length and learning rate of a run.

    Args:
        batch_size: Images of an optimizer step, over all ranks.
        epoch_length: Images of an epoch.
        num_steps: Optimizer steps of the run.
        peak: Learning rate after the warm-up.
        warmup_epochs: Epochs of linear warm-up.
        minimum: Learning rate at the end.
        steady_steps: Steps at the peak, warm-up included, before a decay by 1 - sqrt (Haegele et al. 2024, arXiv
            2405.18392). None for a cosine over the whole run.
    """

    batch_size: int
    epoch_length: int
    num_steps: int
    peak: float
    warmup_epochs: float
    minimum: float = 0.0
    steady_steps: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, batch_size: int, epoch_length: int, minimum: float = 0.0) -> "Schedule":
        """
        The schedule of a recipe.

        Raises:
            UserError: if the run is shorter than a step, or its decay begins in the warm-up.
        """
        num_steps = recipe.max_steps
        if recipe.max_steps <= 0:
            num_steps = int(recipe.num_train_epochs * epoch_length / batch_size)
            if not num_steps:
                raise UserError(
                    f"--num_train_epochs {recipe.num_train_epochs:g} of {epoch_length:,} images is shorter than a "
                    f"batch of {batch_size:,} images. Lower the batch size or train for longer."
                )
        steps_per_epoch = epoch_length / batch_size
        warmup_epochs = recipe.warmup(num_steps / steps_per_epoch, steps_per_epoch)
        peak = recipe.learning_rate or recipe.base_learning_rate * batch_size / 256
        steady_steps = num_steps if recipe.can_grow else None
        if recipe.lr_scheduler_type == "wsd":
            ratio = _DECAY_RATIO if recipe.decay_ratio is None else recipe.decay_ratio
            steady_steps = num_steps - max(round(ratio * num_steps), 1)
            if warmup_epochs * steps_per_epoch > steady_steps:
                raise UserError(
                    f"The warm-up of {warmup_epochs:g} epochs ({warmup_epochs * steps_per_epoch:.0f} steps) does not "
                    f"end before the decay, which begins after step {steady_steps} of {num_steps}. Train for longer, "
                    "or lower --warmup_epochs or --decay_ratio."
                )
        return cls(batch_size, epoch_length, num_steps, peak, warmup_epochs, minimum, steady_steps)

    @property
    def horizon(self) -> Horizon | None:
        """What a longer run shares with this one; None if it shares nothing."""
        return None if self.steady_steps is None else Horizon(self.num_steps, self.steady_steps)

    @property
    def steps_per_epoch(self) -> float:
        return self.epoch_length / self.batch_size

    @property
    def num_epochs(self) -> float:
        return self.num_steps / self.steps_per_epoch

    @property
    def only_warms_up(self) -> bool:
        """Whether the run ends before the learning rate reaches its peak."""
        return bool(self.warmup_epochs) and self.warmup_epochs >= self.num_epochs

    def epoch(self, step: int) -> float:
        """Epochs done after a step, fractions included."""
        return step / self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 1."""
        epoch = (step - 1) / self.steps_per_epoch
        if self.steady_steps is None:
            return learning_rate_at(epoch, self.peak, self.warmup_epochs, self.num_epochs, self.minimum)
        if epoch < self.warmup_epochs:
            return self.peak * epoch / self.warmup_epochs
        if step <= self.steady_steps:
            return self.peak
        progress = (step - self.steady_steps) / (self.num_steps - self.steady_steps + 1)  # the last rate is not 0
        return self.minimum + (self.peak - self.minimum) * (1 - math.sqrt(progress))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of a step in every group of an optimizer; returns it."""
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate


def fit_to_small_data(recipe: Recipe, arguments: RunArguments, num_images: int, num_processes: int) -> list[str]:
    """
    Lower --lanes and the per-device batch if there are fewer images than either needs; returns a note for each.

    The order needs an image for each lane, and an epoch must hold a batch.
    """
    notes = []
    lanes = min(recipe.lanes, num_images // num_processes * num_processes)
    if 0 < lanes < recipe.lanes:
        notes.append(f"Note: --lanes {recipe.lanes} is lowered to {lanes}, because there are {num_images} images.")
        recipe.lanes = lanes
    epoch_length = num_images // recipe.lanes * recipe.lanes
    divisor = arguments.gradient_accumulation_steps * num_processes
    largest = epoch_length // divisor // recipe.views_per_image * recipe.views_per_image
    if 0 < largest < arguments.per_device_train_batch_size:
        notes.append(
            f"Note: --per_device_train_batch_size {arguments.per_device_train_batch_size} is lowered to {largest}, "
            f"because an epoch has {epoch_length} images."
        )
        arguments.per_device_train_batch_size = largest
    return notes
