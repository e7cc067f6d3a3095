"""What a run will cost: computed by hand from a clock, and said by a run."""

import pytest
import torch

from mae.training.cost import CostEstimate, format_time
from mae.utils.memory import resident_memory
from tests.support.runs import start


CPU = torch.device("cpu")


def told(num_steps, seconds_per_step, first=0, batch_size=8):
    """The step at which a line comes, and the line."""
    now = [0.0]
    estimate = CostEstimate(first, num_steps, batch_size, CPU, lambda: now[0])
    lines = []
    for step in range(first + 1, min(num_steps, first + 60) + 1):
        now[0] += 100 if step == first + 1 else seconds_per_step  # the first step does not count
        lines += [(step, line) for line in [estimate.after(step)] if line is not None]
    assert len(lines) <= 1
    return lines[0] if lines else None


def test_ten_steps_after_the_first_are_measured():
    step, line = told(1011, 2 / 3)
    assert step == 11 and line.startswith("12 images/s: about 11 minutes to the end, ") and "memory so far." in line


def test_large_rates_are_whole_numbers():
    _, line = told(5000, 0.5, batch_size=1000)
    assert line.startswith("2,000 images/s: about 42 minutes to the end")


def test_slow_steps_are_measured_for_twenty_seconds():
    step, line = told(5000, 15)
    assert step == 3 and line.startswith("0.533 images/s: about 21 hours to the end")
    assert "--recipe laptop" in line


def test_resumed_run_counts_its_own_steps():
    step, line = told(2111, 2, first=1100)
    assert step == 1111 and "4 images/s: about 33 minutes" in line and "--recipe" not in line


def test_nothing_is_said_of_a_run_that_is_done_at_once():
    assert told(12, 0.01) is None and told(1, 5) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (39.2, "40 seconds"),
        (100, "2 minutes"),
        (45 * 60, "45 minutes"),
        (3.52 * 3600, "3.5 hours"),
        (30 * 3600, "30 hours"),
        (50 * 3600, "2.08 days"),
        (400 * 86400, "400 days"),
    ],
)
def test_times_have_one_unit(seconds, text):
    assert format_time(seconds) == text


def test_memory_is_about_that_of_this_process():
    psutil = pytest.importorskip("psutil")
    assert 0.3 < resident_memory() / psutil.Process().memory_info().rss < 1.5
    ballast = torch.ones(50_000_000)
    assert resident_memory() > ballast.nbytes


def test_run_says_what_it_will_cost(data, tmp_path, monkeypatch):
    monkeypatch.setattr("mae.training.cost._TOO_LONG", 0)
    done = start("--output_dir", tmp_path / "run", *data, "--max_steps", 500, "--save_steps", 1000)
    (line,) = [line for line in done.stdout.splitlines() if "to the end" in line]
    assert "images/s: about " in line and line.endswith("--num_train_epochs.")
