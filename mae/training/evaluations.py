"""When evaluators run, and what is logged of them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule

from mae.evaluation.evaluator import EvaluationContext, Evaluator
from mae.training.checkpointing import TrainState
from mae.training.run_directory import RunDirectory
from mae.training.schedule import Schedule
from mae.training.skipped import SkippedImages
from mae.training.tracking import track
from mae.utils.distributed import on_main_process


class Evaluations:
    """
    The evaluators of a run.

    Args:
        run: Whose evaluations.jsonl gets a line for each evaluation.
        skipped: Names the images that evaluators cannot read.
        is_compiled: Whether the model is compiled.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        schedule: Schedule,
        accelerator: Accelerator,
        run: RunDirectory,
        skipped: SkippedImages,
        is_compiled: bool = False,
    ):
        self.evaluators = evaluators
        self.schedule = schedule
        self.accelerator = accelerator
        self.run = run
        self.skipped = skipped
        self.is_compiled = is_compiled

    def due(self, step: int) -> list[Evaluator]:
        """The evaluators that run after a step."""
        if step == self.schedule.num_steps:
            return list(self.evaluators)
        return [evaluator for evaluator in self.evaluators if step % self._interval(evaluator) == 0]

    def _interval(self, evaluator: Evaluator) -> int:
        """Steps between two evaluations."""
        if evaluator.every_epochs is not None:
            return max(round(evaluator.every_epochs * self.schedule.steps_per_epoch), 1)
        return evaluator.every_steps

    def is_missing(self, step: int) -> bool:
        """Whether the line of a step is not there, because a kill or a request to stop came first. A collective."""
        return on_main_process(lambda: all(line["step"] != step for line in self.run.evaluations.read()))

    @torch.no_grad()
    def evaluate(self, state: TrainState, step: int, should_stop: Callable[[], bool]) -> bool:
        """Run the evaluators that are due, and log their results. False if the run was asked to stop. A collective."""
        due = self.due(step)
        if not due:
            return True
        model, epoch = state.model, self.schedule.epoch(step)
        context = EvaluationContext(step, epoch, self.run.path, should_stop)
        values: dict[str, Any] = {}
        model.eval()
        # Compiling for other shapes would take longer than the evaluation.
        stance = torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext()
        average = nullcontext() if state.average is None else state.average.applied()
        with stance, average, self.accelerator.autocast():
            for evaluator in due:
                evaluation = evaluator(model, context)
                if evaluation is not None:
                    values |= evaluation.values
                    self.skipped.name(evaluation.skipped)
            stopped = should_stop()
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    # A forward pass alone leaves some weights gathered, and training would use these.
                    module.reshard()
        model.train()
        if stopped:
            return False
        line = {"step": step, "epoch": epoch}
        for name, value in values.items():
            line[name] = value.relative_to(self.run.path).as_posix() if isinstance(value, Path) else value
        self.run.evaluations.append(line)
        track(self.accelerator, "eval", {name.removeprefix("eval_"): value for name, value in values.items()}, step)
        return True
