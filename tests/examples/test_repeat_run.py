"""What a run records to be repeated: its recipe and its environment."""

import json
import platform
import socket
from importlib import metadata

import pytest
import yaml

from tests.support.runs import exact, metrics, train


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, data):
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(output_dir, *data, "--eval_steps", 8, "--ema_decay", 0.8)
    return output_dir


def test_recipe_of_a_run_repeats_it(finished_run, tmp_path):
    recipe = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert recipe["max_steps"] == 24 and recipe["seed"] == 42 and "output_dir" not in recipe
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert exact(train(tmp_path / "run", "--recipe", tmp_path / "recipe.yaml")) == exact(metrics(finished_run))
    again = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert again == recipe


def test_environment_is_recorded(finished_run):
    text = (finished_run / "environment.json").read_text()
    found = json.loads(text)
    assert found["python"] == platform.python_version() and found["processes"] == 1
    for name in ("torch", "transformers", "accelerate", "datasets"):
        assert found["packages"][name] == metadata.version(name)
    assert found["device"] == {"type": "cpu"} and found["mixed_precision"] == "no"
    assert socket.gethostname() not in text.replace(platform.platform(), "")
