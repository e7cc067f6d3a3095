"""An exponential moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class AveragedWeights:
    """
    An exponential moving average (EMA) of a model's trainable weights. torch.optim.swa_utils.AveragedModel would copy
    the whole model, and does not shard.

    Args:
        model: The model on its device. The average lies beside its parameters, sharded as they are.
        decay: Share of the average that a step keeps. It is (1 + step) / (10 + step) in the first steps, so that the
            initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the averages while entered."""
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
        """Set the average to the model's present weights."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages):
                average.copy_(parameter)
