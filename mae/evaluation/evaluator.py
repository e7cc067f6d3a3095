"""The protocol of evaluators, and what the training loop hands them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class EvaluationContext:
    """
    The state of the run at an evaluation.

    Args:
        step: Optimizer steps done.
        epoch: The same in epochs.
        folder: Output directory of the run, for pictures and tables. Only rank 0 writes there.
        should_stop: Whether the run was asked to stop. It is a collective: every rank calls it equally often.
    """

    step: int
    epoch: float
    folder: Path
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Evaluation:
    """
    The result of an evaluator.

    Args:
        values: Numbers by name, and paths of pictures. Those of rank 0 are logged.
        skipped: (origin, reason) of each image that could not be read.
    """

    values: dict[str, float | Path] = field(default_factory=dict)
    skipped: list[tuple[tuple[str, int], str]] = field(default_factory=list)


class Evaluator(Protocol):
    """
    Evaluates a model every `every_steps` steps or every `every_epochs` epochs, and after the last step. Every rank
    calls it at the same steps, with the model in evaluation mode and without gradients. It draws nothing from global
    random states.
    """

    @property
    def every_steps(self) -> int | None: ...

    @property
    def every_epochs(self) -> float | None: ...

    def __call__(self, model: Any, context: EvaluationContext) -> Evaluation | None:
        """
        Returns None if the run was asked to stop; the evaluation is then repeated when the run resumes. An evaluator
        that takes more than seconds calls `context.should_stop` now and then.
        """
