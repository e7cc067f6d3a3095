"""Trackers: what they hold of a run, also after a resume."""

import shutil

import pytest

from mae.training.tracking import project_name
from tests.support.runs import exact, metrics, metrics_of, train


@pytest.fixture(scope="module")
def watched(tmp_path_factory, data):
    """A run that is evaluated at every eighth step, with averaged weights and a tracker."""
    output_dir = tmp_path_factory.mktemp("runs") / "watched"
    train(output_dir, *data, "--eval_steps", 8, "--ema_decay", 0.8, "--report_to", "tensorboard")
    return output_dir


def evaluations(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def read_events(output_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output_dir / "logs" / "mae"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_holds_each_logged_step_once(watched, data, tmp_path):
    events = read_events(watched)
    lines = metrics(watched)
    for name in ("loss", "learning_rate", "images_per_second", "data_wait"):
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert logged == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    found = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    assert found == [(line["step"], pytest.approx(line["eval_loss"])) for line in evaluations(watched)]
    assert [event.step for event in events.Images("eval/reconstruction")] == [8, 16, 24]
    # Steps that a resume trains again are there once.
    again = tmp_path / "again"
    shutil.copytree(watched, again)
    (again / "train_results.json").unlink()
    shutil.rmtree(again / "checkpoint-24")
    arguments = [*data, "--eval_steps", 8, "--ema_decay", 0.8, "--report_to", "tensorboard"]
    assert exact(train(again, *arguments)) == exact(lines)
    assert evaluations(again) == evaluations(watched)
    assert [event.step for event in read_events(again).Scalars("train/loss")] == list(range(1, 25))


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_other_trackers_write_their_files(data, tmp_path, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(tracker)
    train(tmp_path / "run", *data, "--max_steps", 4, "--report_to", tracker)
    folder = tmp_path / ("run/logs/wandb" if tracker == "wandb" else "trackio")
    assert any(path.stat().st_size > 1000 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "trackers, variables, name",
    [
        (["wandb"], {"WANDB_PROJECT": "cells"}, "cells"),
        (["trackio"], {"TRACKIO_PROJECT": "cells"}, "cells"),
        (["trackio"], {"WANDB_PROJECT": "cells"}, "mae"),
        (["tensorboard"], {"WANDB_PROJECT": "cells"}, "mae"),
        (["wandb"], {"WANDB_PROJECT": ""}, "mae"),
        (["wandb"], {}, "mae"),
    ],
)
def test_project_is_that_of_the_tracker_s_variable(trackers, variables, name, monkeypatch):
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert project_name(trackers) == name
