"""When evaluators run, what is logged of them, and what a request to stop leaves out."""

from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator

from mae.evaluation.evaluator import Evaluation
from mae.training.average import AveragedWeights
from mae.training.checkpointing import TrainState
from mae.training.evaluations import Evaluations
from mae.training.run_directory import RunDirectory
from mae.training.schedule import Schedule
from mae.training.skipped import SkippedImages


SCHEDULE = Schedule(batch_size=4, epoch_length=10, num_steps=11, peak=0.1, warmup_epochs=0)  # 2.5 steps an epoch


@dataclass
class Recorder:
    """An evaluator that records the model that it is given."""

    every_steps: int | None = None
    every_epochs: float | None = None
    name: str = "eval_loss"
    seen: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def __call__(self, model, context):
        self.seen.append((context.step, context.epoch, model.training, model.weight.item(), torch.is_grad_enabled()))
        if context.should_stop():
            return None
        picture = context.folder / "reconstructions" / "step.png"
        return Evaluation({self.name: float(context.step), "picture": picture}, self.skipped)


@pytest.fixture
def state():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    return TrainState(model, None, None)


@pytest.fixture
def make(tmp_path):
    def make(*evaluators):
        accelerator = Accelerator(cpu=True)
        run = RunDirectory(tmp_path, {})
        return Evaluations(evaluators, SCHEDULE, accelerator, run, SkippedImages(run.skipped, accelerator))

    return make


def test_evaluators_run_at_their_own_intervals_and_after_the_last_step(make, state):
    by_steps, by_epochs = Recorder(every_steps=4), Recorder(every_epochs=2.0)
    evaluations = make(by_steps, by_epochs)
    for step in range(1, 12):
        assert evaluations.evaluate(state, step, lambda: False)
    assert [step for step, *_ in by_steps.seen] == [4, 8, 11]
    assert [step for step, *_ in by_epochs.seen] == [5, 10, 11]
    assert [line["step"] for line in evaluations.run.evaluations.read()] == [4, 5, 8, 10, 11]


def test_line_holds_the_values_of_all_and_pictures_by_their_relative_path(make, state):
    evaluations = make(Recorder(every_steps=1), Recorder(every_steps=1, name="eval_accuracy"))
    evaluations.evaluate(state, 5, lambda: False)
    line = {"step": 5, "epoch": 2.0, "eval_loss": 5.0, "picture": "reconstructions/step.png", "eval_accuracy": 5.0}
    assert evaluations.run.evaluations.read() == [line]
    assert not evaluations.is_missing(5) and evaluations.is_missing(4)


def test_model_is_evaluated_without_gradients_and_trains_afterwards(make, state):
    recorder = Recorder(every_steps=1)
    make(recorder).evaluate(state, 1, lambda: False)
    assert recorder.seen == [(1, 0.4, False, 2.0, False)] and state.model.training


def test_averaged_weights_are_evaluated_if_there_are_any(make, state):
    state.average = AveragedWeights(state.model, 0.9)
    state.average.averages[0].fill_(7)
    recorder = Recorder(every_steps=1)
    make(recorder).evaluate(state, 1, lambda: False)
    assert recorder.seen[0][3] == 7 and state.model.weight.item() == 2


def test_request_to_stop_logs_nothing(make, state):
    evaluations = make(Recorder(every_steps=1))
    assert not evaluations.evaluate(state, 1, lambda: True)
    assert evaluations.run.evaluations.read() == [] and state.model.training


def test_images_that_an_evaluator_cannot_read_are_named(make, state):
    evaluations = make(Recorder(every_steps=1, skipped=[(("a.png", 3), "broken")]))
    evaluations.evaluate(state, 1, lambda: False)
    assert evaluations.run.skipped.read() == [{"file": "a.png", "row": 3, "reason": "broken"}]
