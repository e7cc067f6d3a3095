"""Whole runs against the Trainer: the photographs, the commands, and what a run saves."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import end_to_end
from benchmarks.end_to_end import CASES, OURS, PEER, SMALL, command, count_parameters, generate_photographs
from configuration_mae import MAEConfig
from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT
from tests.support.models import tiny_config
from tests.support.runs import metrics, run_here


def flags_of(words: list[str]) -> dict[str, str]:
    assert len(words) % 2 == 0
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}


def test_generated_files_are_like_photographs(tmp_path):
    folder = generate_photographs(tmp_path / "images", count=2)
    files = sorted(folder.iterdir())
    images = [Image.open(file) for file in files]
    assert [(image.format, image.size, image.mode) for image in images] == [("JPEG", (500, 375), "RGB")] * 2
    assert all(50_000 < file.stat().st_size < 200_000 for file in files)
    first, second = (np.asarray(image, dtype=float)[..., 0] for image in images)
    assert np.corrcoef(first[:, 1:].ravel(), first[:, :-1].ravel())[0, 1] > 0.8  # neighbours are alike
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5
    assert generate_photographs(tmp_path / "again", count=1).joinpath("0000.jpg").read_bytes() == files[0].read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_get_the_same_work(tmp_path, precision):
    commands = [command(name, CASES["tiny"], precision, tmp_path, tmp_path / "run") for name in (OURS, PEER)]
    assert [words[1].rpartition("/")[2] for words in commands] == ["run_mae.py", "vit_mae_trainer.py"]
    ours, peer = (flags_of(words[2:]) for words in commands)
    assert ours.keys() - peer.keys() == {"eval_steps", "max_eval_samples"} and peer.keys() - ours.keys() <= {"use_cpu"}
    assert all(ours[name] == peer[name] for name in ours.keys() & peer.keys())
    assert ("bf16" in ours) == (precision == "bf16")


def test_small_model_has_208_512_parameters():
    assert MAEForPreTraining(MAEConfig(**SMALL)).num_parameters() == 208_512


def test_this_package_accepts_the_command_and_trains_the_case(tmp_path):
    images = generate_photographs(tmp_path / "images", count=6, size=(64, 48))
    case = replace(CASES["small_60"], config=tiny_config(), steps=3, batch_size=4)
    done = run_here(*command(OURS, case, "fp32", images, tmp_path / "run")[1:])
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")][-1:] == [3]
    assert count_parameters(tmp_path / "run") == MAEForPreTraining(case.config).num_parameters()


def test_failing_run_is_reported_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match="this is why"):
        end_to_end.run([sys.executable, "-c", "raise SystemExit('this is why')"], end_to_end.environment(tmp_path))


@pytest.mark.slow
def test_whole_benchmark(tmp_path):
    images = generate_photographs(tmp_path / "images", count=32, size=(64, 48))
    flags = ["--images", str(images), "--cases", "tiny", "--precisions", "bf16", "--rounds", "1"]
    start = [sys.executable, "-m", "benchmarks.end_to_end", *flags]
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| ViT-Ti, 30 steps of 32 | bf16 | ")
