"""Logs of JSON lines, and the line of a step by a clock that the test turns."""

import json

import pytest

from mae.training.metrics import JsonLines, StepLog


@pytest.fixture
def log(tmp_path):
    return JsonLines(tmp_path / "metrics.jsonl")


def test_line_cut_off_by_a_kill_is_left_out(log):
    assert log.read() == []
    log.append({"step": 1})
    with open(log.path, "a") as file:
        file.write('{"step": 2, "lo')
    assert log.read() == [{"step": 1}]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (9, [1, 2])])
def test_keep_removes_other_lines_and_a_cut_off_one(log, step, kept):
    for number in (1, 2):
        log.append({"step": number, "loss": 0.1 + number})
    with open(log.path, "a") as file:
        file.write('{"step": 3, "lo')
    log.keep(lambda line: line["step"] <= step)
    log.append({"step": 7, "loss": 0.3})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [*kept, 7]


def test_numbers_that_are_not_finite_are_null(log):
    log.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    json.loads(log.path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert log.read() == [{"step": 1, "loss": None, "grad_norm": None}]


class Clock:
    seconds = 100.0

    def __call__(self):
        return self.seconds


def test_speed_leaves_out_pauses_and_counts_data_wait():
    clock = Clock()
    log = StepLog(32, step=10, clock=clock)
    with log.waiting_for_data():
        clock.seconds += 1
    clock.seconds += 3
    with log.paused():
        clock.seconds += 50
    line, shown = log.line(15, loss=0.5)
    assert line == {"step": 15, "loss": 0.5, "images_per_second": 40.0, "data_wait": 1.0}  # 5 x 32 images in 4 s
    assert shown == {"loss": "0.5000", "images/s": "40", "data wait": "25%"}
    clock.seconds += 2  # the next interval starts from nothing
    assert log.line(16)[0] == {"step": 16, "images_per_second": 16.0, "data_wait": 0.0}


def test_mfu_is_the_share_of_the_peak():
    clock = Clock()
    log = StepLog(10, flops=3e9, peak=1e12, clock=clock)
    clock.seconds += 0.5
    assert log.line(5)[0]["mfu"] == 0.3  # 100 images a second of 3 GFLOP


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e12), (3e9, None)])
def test_mfu_is_left_out_if_it_is_not_known(flops, peak):
    clock = Clock()
    log = StepLog(10, flops, peak, clock=clock)
    clock.seconds += 1
    assert "mfu" not in log.line(1)[0]
