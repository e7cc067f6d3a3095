"""An exponential moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
