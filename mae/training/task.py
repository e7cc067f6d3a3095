"""What a run trains for, as a value that the loop is handed."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mae.data.batch import Batch
from mae.data.dataset import FeatureDataset, SampleDataset
from mae.data.sources import Source
from modeling_mae import MAEPreTrainedModel


class Task(Protocol):
    """
    Model, data and loss of a run: [`PreTraining`], [`Classification`]. The loop knows nothing else about it.

    Args:
        name: Shown beside the progress bar.
        model: The model to train.
        source: Where its samples come from.
        min_learning_rate: Learning rate at the end of the schedule.
        flops_per_image: FLOPs of training on one image, if known.
    """

    name: str
    model: MAEPreTrainedModel
    source: Source
    min_learning_rate: float
    flops_per_image: float | None

    def dataset(self, should_stop: Callable[[], bool]) -> SampleDataset | FeatureDataset | None:
        """
        Makes samples into batches, in the DataLoader workers. Called once, on every rank, before the first step. None
        if the run was asked to stop meanwhile.
        """

    def optimizer(self) -> torch.optim.Optimizer:
        """An optimizer of the trainable parameters that takes `found_inf`, see [`GuardedStep`]."""

    def loss(self, forward: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over a batch's images, a scalar. `forward` is the model as Accelerate has prepared it."""

    def identity(self) -> dict[str, dict[str, Any]]:
        """What changes results besides the recipe: additions to "data" and "model" of the run's identity."""
