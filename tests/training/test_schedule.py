"""Length and learning rate of runs, against the official schedule and closed forms."""

import json
import math

import pytest
import torch

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.training.schedule import Schedule, fit_to_small_data, learning_rate_at
from mae.utils.errors import UserError
from tests.support.data import FIXTURES


OFFICIAL = json.loads((FIXTURES / "official_lr_schedule.json").read_text())


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: f"{case['epochs']}-{case['epoch']}")
def test_rate_is_the_official_one(case):
    rate = learning_rate_at(case["epoch"], case["lr"], case["warmup_epochs"], case["epochs"], case["min_lr"])
    assert rate == pytest.approx(case["result"], rel=1e-12, abs=1e-18)


def test_rate_without_warm_up_starts_at_the_peak():
    assert learning_rate_at(0, 0.1, 0, 10) == 0.1


def test_schedule_of_epochs_in_closed_form():
    recipe = PreTrainingRecipe(num_train_epochs=10, warmup_epochs=2, base_learning_rate=1e-3)
    schedule = Schedule.of(recipe, batch_size=64, epoch_length=640, minimum=1e-6)
    assert (schedule.num_steps, schedule.steps_per_epoch, schedule.num_epochs) == (100, 10, 10)
    peak = 1e-3 * 64 / 256
    assert schedule.rate(1) == 0 and schedule.rate(11) == pytest.approx(peak / 2) and schedule.rate(21) == peak
    middle = 1e-6 + (peak - 1e-6) * 0.5 * (1 + math.cos(math.pi / 2))
    assert schedule.rate(61) == pytest.approx(middle) and schedule.epoch(25) == 2.5


def test_learning_rate_wins_over_the_base_rate_and_max_steps_over_epochs():
    recipe = PreTrainingRecipe(learning_rate=0.5, max_steps=7, warmup_ratio=0.25)
    schedule = Schedule.of(recipe, batch_size=4, epoch_length=8)
    assert (schedule.peak, schedule.num_steps, schedule.num_epochs) == (0.5, 7, 3.5)
    assert schedule.warmup_epochs == 0.875


def test_apply_scales_each_group():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr_scale": 0.5}], lr=9)
    schedule = Schedule(batch_size=1, epoch_length=10, num_steps=10, peak=0.2, warmup_epochs=0)
    assert schedule.apply(optimizer, 1) == 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_run_shorter_than_a_step_is_refused():
    with pytest.raises(UserError, match=r"--num_train_epochs 0\.5 of 10 images"):
        Schedule.of(PreTrainingRecipe(num_train_epochs=0.5), batch_size=8, epoch_length=10)


@pytest.mark.parametrize(("warmup", "expected"), [(0, False), (4, False), (5, True), (9, True)])
def test_run_that_only_warms_up_is_recognised(warmup, expected):
    assert Schedule(8, 8, 5, 0.1, warmup).only_warms_up is expected


@pytest.mark.parametrize(
    ("images", "processes", "accumulation", "lanes", "per_device", "notes"),
    [
        (100, 1, 1, 8, 64, 0),
        (50, 1, 1, 8, 48, 1),  # an epoch of 48
        (5, 1, 1, 5, 5, 2),
        (50, 2, 2, 8, 12, 1),
        (7, 2, 1, 6, 3, 2),  # lanes stay a multiple of the processes
        (1, 2, 1, 8, 64, 0),  # too few for any: an error later
    ],
)
def test_small_data_lowers_lanes_and_batch(images, processes, accumulation, lanes, per_device, notes):
    recipe = PreTrainingRecipe()
    arguments = RunArguments(gradient_accumulation_steps=accumulation)
    found = fit_to_small_data(recipe, arguments, images, processes)
    assert (recipe.lanes, arguments.per_device_train_batch_size, len(found)) == (lanes, per_device, notes)
