"""Length and learning rate of runs, against the official schedule and closed forms."""

import json
import math

import pytest
import torch

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.training.schedule import Horizon, Schedule, fit_to_small_data, learning_rate_at
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


# Schedules without a fixed end


def test_constant_rate_after_the_warm_up():
    recipe = PreTrainingRecipe(lr_scheduler_type="constant_with_warmup", max_steps=20, warmup_steps=4, learning_rate=1)
    schedule = Schedule.of(recipe, batch_size=3, epoch_length=7)
    assert [schedule.rate(step) for step in range(1, 21)] == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 16])
    assert schedule.horizon == Horizon(20, 20)


def test_decay_of_wsd_in_closed_form():
    recipe = PreTrainingRecipe(
        lr_scheduler_type="wsd", num_train_epochs=10, warmup_epochs=1, learning_rate=2, decay_ratio=0.3
    )
    schedule = Schedule.of(recipe, batch_size=10, epoch_length=100, minimum=0.5)
    assert schedule.horizon == Horizon(100, 70)
    assert [schedule.rate(step) for step in (1, 6, 11, 70)] == pytest.approx([0, 1, 2, 2])
    decay = [0.5 + 1.5 * (1 - math.sqrt(number / 31)) for number in range(1, 31)]
    assert [schedule.rate(step) for step in range(71, 101)] == pytest.approx(decay)


def test_default_decay_is_a_fifth_and_at_least_a_step():
    def steady_steps(max_steps):
        recipe = PreTrainingRecipe(lr_scheduler_type="wsd", max_steps=max_steps, warmup_epochs=0)
        return Schedule.of(recipe, batch_size=1, epoch_length=10).steady_steps

    assert [steady_steps(number) for number in (100, 2, 1)] == [80, 1, 0]


@pytest.mark.parametrize("kind", ["wsd", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [{"warmup_steps": 7}, {"warmup_epochs": 0.7}])
def test_runs_of_two_lengths_have_the_same_rates_as_far_as_they_say(kind, warmup):
    """To the last bit, so that a longer run is the same."""
    schedules = [
        Schedule.of(PreTrainingRecipe(lr_scheduler_type=kind, max_steps=steps, **warmup), 3, 31)
        for steps in (50, 61, 300)
    ]
    for first in schedules:
        for other in schedules:
            for step in range(1, 50):
                if first.horizon.shares(step, other.horizon):
                    rates = [[each.rate(number) for number in range(1, step + 1)] for each in (first, other)]
                    assert rates[0] == rates[1]
    assert schedules[0].horizon.shares(40, schedules[1].horizon)
    assert schedules[0].horizon.shares(41, schedules[1].horizon) == (kind == "constant_with_warmup")
    assert schedules[0].horizon.shares(50, schedules[0].horizon)


def test_warm_up_that_reaches_into_the_decay_is_refused():
    recipe = PreTrainingRecipe(lr_scheduler_type="wsd", max_steps=20, warmup_epochs=2)
    with pytest.raises(UserError, match=r"The warm-up of 2 epochs \(20 steps\) does not end before .* step 16 of 20"):
        Schedule.of(recipe, batch_size=1, epoch_length=10)
