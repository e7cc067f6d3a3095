"""k-nearest neighbours against plain loops."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import mae.evaluation.neighbours
from mae.evaluation.neighbours import knn_scores
from tests.support.data import EMOJI, ROOT
from tests.support.features import plain_knn
from tests.support.runs import exact, metrics, metrics_of, start, train


KNN = ROOT / "examples" / "run_knn.py"


@pytest.mark.parametrize(
    "k, temperature, similarities", [(20, 0.07, 2**24), (5, 1.0, 64), (1, 0.07, 1), (100, 0.5, 200)]
)
def test_scores_are_those_of_a_plain_loop(k, temperature, similarities, monkeypatch):
    """Also where only some of the similarities fit into memory, and with fewer images than neighbours."""
    monkeypatch.setattr(mae.evaluation.neighbours, "_MAX_SIMILARITIES", similarities)
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(60, 8, generator=generator), torch.randn(17, 8, generator=generator) * 5
    labels = torch.randint(0, 4, (60,), generator=generator)
    found = knn_scores(features, labels, queries, 4, k, temperature).double().numpy()
    expected = plain_knn(features.double().numpy(), labels.numpy(), queries.double().numpy(), 4, k, temperature)
    shares = [each / each.sum(axis=1, keepdims=True) for each in (found, expected)]
    np.testing.assert_allclose(*shares, atol=1e-5)
    # A small temperature is the nearest neighbour alone, and no overflow.
    nearest = labels[(F.normalize(queries) @ F.normalize(features).T).argmax(dim=1)]
    assert torch.equal(knn_scores(features, labels, queries, 4, k, 1e-6).argmax(dim=1), nearest)


def test_autocast_changes_no_score():
    """A run with --bf16 evaluates inside autocast."""
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(500, 64, generator=generator), torch.randn(100, 64, generator=generator)
    labels = torch.randint(0, 9, (500,), generator=generator)
    expected = knn_scores(features, labels, queries, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_scores(features, labels, queries, 9), expected)


def test_memory_of_neighbours_is_bounded(monkeypatch):
    """No matrix of similarities is larger than the limit, whatever the number of images."""
    monkeypatch.setattr(mae.evaluation.neighbours, "_MAX_SIMILARITIES", 2**16)
    sizes, topk = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, *args, **kwargs: sizes.append(self.numel()) or topk(self, *args, **kwargs)
    )
    knn_scores(torch.randn(20000, 4), torch.zeros(20000, dtype=torch.long), torch.randn(1500, 4), 2)
    assert len(sizes) > 100 and max(sizes) <= 2**16 + 20 * 1024


def lines_of(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def evaluated(output_dir, *arguments):
    train(output_dir, *arguments)
    return lines_of(output_dir)


def test_pre_training_logs_the_accuracy_that_run_knn_finds(data, labelled, tmp_path):
    """Logged and drawn, and without an effect on training."""
    flags = ["--dataset_name", labelled, *data[2:], "--max_steps", 12, "--eval_steps", 5]
    plain = train(tmp_path / "plain", *flags)
    watched = train(tmp_path / "watched", *flags, "--knn_epochs", 0.33)  # four steps
    assert exact(plain) == exact(watched)
    lines = lines_of(tmp_path / "watched")
    assert [line["step"] for line in lines if "eval_knn_accuracy" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "eval_loss" in line] == [5, 10, 12]
    pictures = [Image.open(tmp_path / name / "loss_curve.png").size for name in ("plain", "watched")]
    assert pictures[1][1] > pictures[0][1]
    card = (tmp_path / "watched" / "README.md").read_text()
    assert f"| Accuracy of 20 nearest neighbours, validation images | {lines[-1]['eval_knn_accuracy']:.1%} |" in card
    done = start(
        "--model_name_or_path", tmp_path / "watched", "--dataset_name", labelled, "--pooling", "cls", script=KNN
    )
    assert f"accuracy {lines[-1]['eval_knn_accuracy']:.4g}," in done.stdout, done.stderr
    # Held-out images of the training ones, which are then no neighbours.
    alone = ["--dataset_name", next(EMOJI.glob("test-*.parquet")), *data[2:], "--max_steps", 4]
    for number, more in enumerate(([], ["--train_val_split", 0.3])):
        lines = evaluated(tmp_path / f"split{number}", *alone, "--knn_epochs", 1, *more)
        assert 0 <= lines[-1]["eval_knn_accuracy"] <= 1
    done = start("--output_dir", tmp_path / "none", *data, "--knn_epochs", 1)
    assert done.returncode == 2 and "has no column of labels" in done.stderr
    assert metrics(tmp_path / "plain")
