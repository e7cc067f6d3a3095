"""What a run reports."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data import ROOT
from tests.support.runs import ENVIRONMENT, metrics, start


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run in a folder with a space and a quote in its name."""
    output_dir = tmp_path_factory.mktemp("runs") / "it's a run"
    done = start("--output_dir", output_dir, *data, "--max_steps", 4)
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout


def test_summary_names_files_that_exist(finished):
    output_dir, text = finished
    lines = [re.fullmatch(r"  (\w[\w ]+?)  +(/.+)", line) for line in text.splitlines()]
    places = {line[1]: line[2] for line in lines if line}
    assert places.keys() == {"model", "loss curve", "reconstructions", "metrics", "model card", "checkpoints"}
    for place in places.values():
        assert all(Path(path).exists() for path in place.split(", ")), place


def test_summary_has_the_results(finished):
    output_dir, text = finished
    results = json.loads((output_dir / "train_results.json").read_text())
    assert f"4 steps, {results['epochs']:.1f} epochs, loss {metrics(output_dir)[-1]['loss']:.4g}" in text
    assert f"eval_loss {results['eval_loss']:.4g}" in text


def test_command_that_loads_the_encoder_runs(finished):
    _, text = finished
    (line,) = [line for line in text.splitlines() if line.strip().startswith("python -c ")]
    _, *arguments = shlex.split(line)
    done = subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "MAEModel(" in done.stdout, done.stderr


def test_first_line_says_what_is_trained_on_what(finished):
    _, text = finished
    (line,) = [line for line in text.splitlines() if line.startswith("Pre-training ")]
    for words in ("90 images", "4 steps of 8 images", "1 x cpu with 1 threads each", "DataLoader worker"):
        assert words in line


def test_figures_of_a_run_are_those_of_its_last_evaluation(finished):
    output_dir, _ = finished
    (picture,) = (output_dir / "reconstructions").iterdir()
    assert "4" in picture.name and (output_dir / "reconstruction.png").read_bytes() == picture.read_bytes()
    curve = np.array(Image.open(output_dir / "loss_curve.png").convert("RGB"))
    assert len(np.unique(curve.reshape(-1, 3), axis=0)) > 50
