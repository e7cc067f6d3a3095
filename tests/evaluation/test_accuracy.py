"""Accuracy on validation images against plain computations."""

import csv

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from mae.data.labels import Labels
from mae.data.normalization import normalize
from mae.evaluation.accuracy import AccuracyEvaluator
from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.inference import Outputs
from mae.evaluation.reconstruction import load_images
from mae.utils.errors import DataError
from modeling_mae import MAEForImageClassification
from tests.support.models import tiny_model
from tests.support.samples import BrokenSource


NAMES = [f"class {index}" for index in range(7)]


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=True)


@pytest.fixture
def model():
    return tiny_model(MAEForImageClassification, num_labels=7)


def evaluate(model, source, values, folder, **options):
    evaluator = AccuracyEvaluator(source, Labels(np.array(values), NAMES), None, batch_size=4, **options)
    with torch.no_grad():
        return evaluator(model, EvaluationContext(step=3, epoch=1.0, folder=folder))


def test_scores_and_files_are_those_of_a_plain_forward(model, emoji_bytes, tmp_path):
    source, labels = BrokenSource(emoji_bytes[:10]), np.arange(10) % 7
    found = evaluate(model, source, labels, tmp_path)
    # In another order, which the loss and the accuracies do not depend on, if labels follow.
    pixels = torch.cat([load_images(BrokenSource([data]), model.config, 1) for data in emoji_bytes[:10]])
    with torch.no_grad():
        logits = model(normalize(pixels, model.config)).logits
    right = logits.argmax(dim=1).numpy() == labels
    top5 = np.mean([labels[row] in logits[row].topk(5).indices for row in range(10)])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    assert found.values["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert found.values["eval_accuracy"] == pytest.approx(right.mean())
    assert found.values["eval_accuracy_top5"] == pytest.approx(top5)
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 10
    assert [NAMES[index] in row.values() for index, row in zip(logits.argmax(dim=1), predictions)] == [True] * 10
    assert np.array(Image.open(tmp_path / "confusion_matrix.png")).size > 10_000


def test_features_replace_images(model, tmp_path, emoji_bytes):
    features = torch.randn(5, 32)
    outputs = Outputs(np.arange(5), {"features": features})
    source = BrokenSource([b"not read"] * 5)
    found = evaluate(model, source, [0, 1, 2, 3, 4], tmp_path, features=lambda should_stop: outputs)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.head(model.head_norm(features)), torch.arange(5)).item()
    assert found.values["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert evaluate(model, source, [0] * 5, tmp_path, features=lambda should_stop: None) is None


def test_several_labels_give_the_mean_average_precision(model, emoji_bytes, tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (10, 7)).astype(np.uint8)
    labels[0], labels[1] = 1, 0  # each class has an image with it and one without
    found = evaluate(model, BrokenSource(emoji_bytes[:10]), labels, tmp_path).values
    pixels = torch.cat([load_images(BrokenSource([data]), model.config, 1) for data in emoji_bytes[:10]])
    with torch.no_grad():
        scores = model(normalize(pixels, model.config)).logits.double().numpy()
    precisions = []
    for number in range(7):
        ranked = labels[np.argsort(-scores[:, number]), number]
        precisions.append(np.mean([ranked[: place + 1].mean() for place in np.flatnonzero(ranked)]))
    assert found["eval_mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert "eval_accuracy" not in found


def test_unreadable_images_are_counted_and_none_readable_is_an_error(model, emoji_bytes, tmp_path):
    found = evaluate(model, BrokenSource([emoji_bytes[0], b"no image"]), [0, 1], tmp_path)
    assert found.values["eval_skipped"] == 1 and len(found.skipped) == 1
    with pytest.raises(DataError, match="None of the 2 validation images"):
        evaluate(model, BrokenSource([b"no image"] * 2), [0, 1], tmp_path)
