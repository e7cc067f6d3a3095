"""What a run will cost, from the time of its first steps."""

import math
import time
from collections.abc import Callable

import torch

from mae.utils.memory import format_bytes, resident_memory


# The first step of a run warms caches up. Of the next ones, so many are measured, or as many as take so many seconds.
_STEPS, _SECONDS = 10, 20
_TOO_LONG = 12 * 3600


class CostEstimate:
    """
    Measures the first steps of an execution of a run, once.

    Args:
        first: The step that it starts after.
        num_steps: Steps of the whole run.
        batch_size: Images of a step, over all ranks.
        device: The device of this rank.
        clock: Seconds.
    """

    def __init__(
        self,
        first: int,
        num_steps: int,
        batch_size: int,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.first = first
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.device = device
        self.clock = clock
        self._started: float | None = None
        self._is_told = False

    def after(self, step: int) -> str | None:
        """A line about the rest of the run, if a step is the last that is measured; else None."""
        if self._is_told:
            return None
        if self._started is None:
            self._started = self.clock()
            return None
        measured, seconds = step - self.first - 1, self.clock() - self._started
        if measured < _STEPS and seconds < _SECONDS and step < self.num_steps:
            return None
        self._is_told = True
        rest = (self.num_steps - step) * seconds / measured
        if rest < 1:
            return None
        rate = measured * self.batch_size / seconds
        line = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        line += f" images/s: about {format_time(rest)} to the end"
        line += f", {format_bytes(self._memory())} of memory so far{' on each device' if self.on_gpu else ''}."
        return line + (self._advice() if rest > _TOO_LONG else "")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _memory(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else resident_memory()

    def _advice(self) -> str:
        if self.on_gpu:
            return " Faster: --bf16, fewer --num_train_epochs, more GPUs (docs/scaling.md)."
        return (
            " That is long for this machine. In minutes to hours: --recipe laptop, or a smaller --image_size, "
            "--model_size and --num_train_epochs."
        )


def format_time(seconds: float) -> str:
    """A time in one unit, rounded: "40 seconds", "12 minutes", "3.5 hours", "2.1 days"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    hours = seconds / 3600
    return f"{hours:.2g} hours" if hours < 48 else f"{hours / 24:.3g} days"
