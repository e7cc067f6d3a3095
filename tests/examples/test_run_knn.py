"""examples/run_knn.py, as a user starts it."""

import json

import numpy as np
import pytest
import torch

from mae.evaluation.neighbours import NUM_NEIGHBOURS
from tests.support.classification import SIZES
from tests.support.data import ROOT
from tests.support.features import features_of, plain_knn, rows_of, save_encoder
from tests.support.runs import start


KNN = ROOT / "examples" / "run_knn.py"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("pretrained") / "model", SIZES)


def test_accuracy_is_that_of_a_plain_loop_over_features_of_transformers(pretrained, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--pooling", "cls", "--num_neighbours", 1, 20]
    done = start(*arguments, "--output_file", tmp_path / "knn.json", script=KNN)
    assert done.returncode == 0, done.stderr
    train_rows, test_rows = rows_of("train"), rows_of("test")
    vectors = [
        torch.cat([each.last_hidden_state[:, 0] for each in features_of(pretrained, rows)]).double().numpy()
        for rows in (train_rows, test_rows)
    ]
    labels = np.array([row["label"] for row in train_rows])
    results = json.loads((tmp_path / "knn.json").read_text())["results"]
    for result in results:
        scores = plain_knn(vectors[0], labels, vectors[1], 9, result["num_neighbours"], 0.07)
        accuracy = np.mean(scores.argmax(axis=1) == np.array([row["label"] for row in test_rows]))
        assert result["accuracy"] == pytest.approx(accuracy, abs=1.1 / 190)  # one may be a draw but for rounding
    assert f"num_neighbours 20, accuracy {results[1]['accuracy']:.4g}" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--model_name_or_path"),
        (["--model_name_or_path", "MODEL", "--layer", 9], "--layer 9 must be from 0 to 3"),
        (["--model_name_or_path", "MODEL", "--pooling", "max"], "--pooling max must be one of cls, mean"),
        (["--model_name_or_path", "MODEL", "--num_neighbours", 0], "--num_neighbours 0 must be at least 1"),
        (["--model_name_or_path", "MODEL", "--dataloader_num_workers", -1], "--dataloader_num_workers -1 must not be"),
        (["--model_name_or_path", "MODEL", "--output_file", "no/where.json"], "--output_file no/where.json"),
        (["--model_name_or_path", "MODEL", "--temperature", 0], "--temperature 0.0 must be positive"),
        (["--model_name_or_path", "MODEL", "--train_dir", "nowhere"], "--train_dir nowhere"),
    ],
)
def test_mistake_is_one_line_that_names_the_flag(arguments, message, pretrained):
    arguments = [pretrained if argument == "MODEL" else argument for argument in arguments]
    done = start(*arguments, script=KNN)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr


def test_help_states_the_default_number_of_neighbours():
    done = start("--help", script=KNN)
    assert f"(default: {NUM_NEIGHBOURS}, as DINO reports)" in " ".join(done.stdout.split())
