"""The driver of ablations, on runs of two steps."""

import json
import shutil

import pytest

from benchmarks import ablations, experiments
from mae.conversion.loading import load_checkpoint
from tests.support.data import ROOT


EMOJI = experiments.Dataset(
    folder="emoji",
    encoder={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    decoder={"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    model={"image_size": 16, "patch_size": 4},
    pretraining={"per_device_train_batch_size": 8, "max_steps": 2},
    script="run_image_classification.py",
    score="eval_accuracy",
    transfer={},
    protocols={
        name: {"protocol": "linear", "per_device_train_batch_size": 8, "max_train_samples": 64}
        for name in ("linear", "random")
    },
    labels={"64": {"max_steps": 2}},
)


def test_scores_are_those_of_the_last_step(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text('{"step": 1, "accuracy": 0.25}\n{"step": 2, "accuracy": 0.5}\n')
    (tmp_path / "per_class.csv").write_text("class,iou\ncell,0.75\n")
    assert ablations.scores_of(tmp_path) == {"step": 2, "accuracy": 0.5, "iou_cell": 0.75}


@pytest.mark.slow
def test_runs_are_done_once_and_random_weights_are_random(tmp_path, monkeypatch, capsys):
    study = experiments.Study({"default": {}}, protocols=("linear",), baselines=("random",))
    monkeypatch.setitem(experiments.DATASETS, "emoji", EMOJI)
    monkeypatch.setitem(experiments.STUDIES, "pretraining", study)
    flags = ["--data", str(ROOT / "examples" / "data"), "--datasets", "emoji", "--seeds", "0"]
    flags += ["--studies", "pretraining", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):  # argparse took the choices before
        ablations.main(["--datasets", "no_such_set"])
    ablations.main(flags)
    results = (tmp_path / "results.jsonl").read_text()
    lines = [json.loads(line) for line in results.splitlines()]
    assert [line["protocol"] for line in lines] == ["pretraining", "linear", "random"]
    trained, random = (
        load_checkpoint(tmp_path / name)[0] for name in ("emoji/default/seed0/pretraining", "emoji/random/seed0/model")
    )
    assert random.config.hidden_size == trained.config.hidden_size
    assert not random.mae.blocks[0].attn.qkv.weight.equal(trained.mae.blocks[0].attn.qkv.weight)
    capsys.readouterr()
    ablations.main(flags)
    assert (tmp_path / "results.jsonl").read_text() == results and not capsys.readouterr().out
    # A model that is missing is made again if, and only if, a run that is left starts from it.
    shutil.rmtree(tmp_path / "emoji")
    ablations.main(flags)
    assert not (tmp_path / "emoji").exists()
    (tmp_path / "results.jsonl").write_text(results[: results.rindex("\n", 0, -1) + 1])
    ablations.main(flags)
    again = [json.loads(line)["protocol"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert again == ["pretraining", "linear", "pretraining", "random"]
    ablations.main([*flags, "--report"])
    assert "| none | random | " in capsys.readouterr().out
