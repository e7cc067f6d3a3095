"""The peer of whole runs: transformers' Trainer trains ViTMAE on a folder of images."""

import json
from dataclasses import replace

import datasets
from transformers import ViTImageProcessor, ViTMAEForPreTraining

from benchmarks.end_to_end import CASES, PEER, command, count_parameters, generate_photographs
from modeling_mae import MAEForPreTraining
from tests.support.models import TINY, tiny_config
from tests.support.runs import run_here


def test_peer_trains_the_case_and_saves_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = generate_photographs(tmp_path / "images", count=6, size=(64, 48))
    case = replace(CASES["small_60"], config=tiny_config(), steps=3, batch_size=4)
    done = run_here(*command(PEER, case, "fp32", images, tmp_path / "run")[1:])
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and state["epoch"] == 3  # only full batches
    model = ViTMAEForPreTraining.from_pretrained(tmp_path / "run")
    assert {name: getattr(model.config, name) for name in TINY} == TINY and model.config.norm_pix_loss
    assert count_parameters(tmp_path / "run") == MAEForPreTraining(case.config).num_parameters()
    assert ViTImageProcessor.from_pretrained(tmp_path / "run").size == {"height": 32, "width": 32}
    assert (tmp_path / "run" / "checkpoint-3" / "optimizer.pt").exists()
