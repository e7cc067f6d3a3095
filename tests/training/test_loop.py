"""The training loop against a plain loop of PyTorch."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.data.folders import open_folder
from mae.data.normalization import normalize
from mae.training.loop import train
from mae.training.pretraining import PreTraining
from mae.training.run_directory import RunDirectory
from mae.training.setup import Training
from mae.utils.errors import RunError
from modeling_mae import MAEForPreTraining
from tests.support.models import tiny_model


STEPS = 6


@pytest.fixture
def make(image_folder, tmp_path):
    def make(name="run", **arguments):
        recipe = PreTrainingRecipe(max_steps=STEPS, base_learning_rate=0.1, warmup_steps=2, lanes=4)
        task = PreTraining(tiny_model().train(), open_folder(str(image_folder), "--train_dir"), recipe)
        arguments = {"per_device_train_batch_size": 8, "logging_steps": 1, "dataloader_num_workers": 0} | arguments
        arguments = RunArguments(output_dir=str(tmp_path / name), **arguments)
        return Training(task, recipe, arguments, Accelerator(cpu=True))

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(training, after_save=None):
    folder = training.arguments.output_dir
    with RunDirectory(folder, training.identity, False, "data", "auto", 2) as directory:
        results = train(training, directory, after_save)
        return results, directory.metrics.read()


def plain_losses(training):
    """The same samples and parameter groups with PyTorch's AdamW and the schedule of the paper, written out."""
    task = training.task
    groups = [
        {"params": each["params"], "weight_decay": each["weight_decay"]} for each in task.optimizer().param_groups
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    peak, losses = 0.1 * 8 / 256, []
    for step, batch in enumerate(training.loader(task.dataset(lambda: False), after_step=0)):
        rate = peak * step / 2 if step < 2 else peak * 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = normalize(batch.pixel_values, task.model.config)
        loss = task.model(pixels, noise=torch.as_tensor(batch.noise)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("division", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}])
def test_losses_and_weights_are_those_of_a_plain_loop(make, division):
    plain = make()
    expected = plain_losses(plain)
    training = make(**division)
    results, lines = run(training)
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5) and len(lines) == STEPS
    assert results["steps"] == STEPS and results["loss"] == lines[-1]["loss"]
    saved = MAEForPreTraining.from_pretrained(training.arguments.output_dir).state_dict()
    for name, value in plain.task.model.state_dict().items():
        if not name.endswith("qkv.bias"):  # the bias of a key has no gradient but rounding, of which Adam makes steps
            torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, logged",
    [
        ({"logging_steps": 4}, [4, 6]),
        ({"logging_steps": 100}, [6]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4, 6]),
    ],
)
def test_steps_that_are_logged(make, arguments, logged):
    assert [line["step"] for line in run(make(**arguments))[1]] == logged


def test_function_after_a_save_is_called_with_each_saved_step_but_the_last(make):
    saved = []
    run(make(save_steps=2), saved.append)
    assert saved == [2, 4]


def test_second_run_resumes_after_the_newest_checkpoint(make):
    _, whole = run(make(save_steps=2))
    training = make(save_steps=2)
    folder = Path(training.arguments.output_dir)
    (folder / "train_results.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoint-6")
    seen = []
    loss = training.task.loss
    training.task.loss = lambda forward, batch: seen.append(len(batch.rows)) or loss(forward, batch)
    _, lines = run(training)
    assert seen == [8, 8] and [line["loss"] for line in lines] == [line["loss"] for line in whole]


def test_gradient_that_is_not_finite_stops_the_run(make):
    training = make()
    loss = training.task.loss
    training.task.loss = lambda forward, batch: loss(forward, batch) * float("nan")
    with pytest.raises(RunError, match="--max_nonfinite_steps"):
        run(training)
