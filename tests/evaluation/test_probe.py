"""The accuracy of a linear classifier while pre-training, against scikit-learn on features of the saved model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from mae.data.decoding import decode_image
from mae.data.labels import read_labels
from mae.data.opening import open_dataset
from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.probe import ProbeEvaluator
from mae.evaluation.sampled import LabelledFeatures
from modeling_mae import MAEForPreTraining
from tests.support.runs import exact, start, train


FLAGS = ["--max_steps", 12, "--eval_steps", 100]
EVERY = 0.34  # four steps of eight images


class Sample:
    """Features that are known."""

    def __init__(self, found):
        self.found = found

    def encode(self, model, context):
        return self.found


def test_accuracy_is_that_of_scikit_learn(tmp_path):
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(120, 6, generator=generator), torch.randn(40, 6, generator=generator)
    classes, others = (torch.randint(0, 3, (count,), generator=generator) for count in (120, 40))
    mean, std = features.mean(0), features.std(0, correction=0)
    regression = LogisticRegression(max_iter=200).fit(((features - mean) / std).numpy(), classes.numpy())
    expected = regression.score(((queries - mean) / std).numpy(), others.numpy())
    evaluator = ProbeEvaluator(Sample(LabelledFeatures(features, classes, queries, others, 3)), 1.0)
    found = evaluator(None, EvaluationContext(1, 1.0, tmp_path))
    assert found.values == {"eval_probe_accuracy": pytest.approx(expected)}
    assert ProbeEvaluator(Sample(None), 1.0)(None, EvaluationContext(1, 1.0, tmp_path)) is None


def test_run_is_the_same_to_the_last_bit_with_and_without(data, labelled, tmp_path):
    """Logged, drawn, and the features of neighbours and classifier are computed once."""
    flags = ["--dataset_name", labelled, *data[2:], *FLAGS]
    plain = train(tmp_path / "plain", *flags)
    watched = train(
        tmp_path / "watched", *flags, "--probe_epochs", EVERY, "--knn_epochs", EVERY, "--rank_epochs", 2 * EVERY
    )
    assert exact(plain) == exact(watched)
    weights = [MAEForPreTraining.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "watched")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    lines = [json.loads(line) for line in (tmp_path / "watched" / "evaluations.jsonl").read_text().splitlines()]
    for name, steps in (("eval_probe_accuracy", [4, 8, 12]), ("eval_rankme", [8, 12])):
        assert [line["step"] for line in lines if name in line] == steps
    pictures = [Image.open(tmp_path / name / "loss_curve.png").size for name in ("plain", "watched")]
    assert pictures[1][1] > pictures[0][1] + 400  # scores and ranks
    card = (tmp_path / "watched" / "README.md").read_text()
    accuracy = lines[-1]["eval_probe_accuracy"]
    assert f"| Accuracy of a linear classifier on features, validation images | {accuracy:.1%} |" in card
    # The last value, from the saved model.
    train_source, validation = open_dataset(str(labelled))
    features, classes = [], []
    model = MAEForPreTraining.from_pretrained(tmp_path / "watched").mae.eval()
    for source in (train_source, validation):
        images = [image for group in range(len(source.group_sizes)) for image in source.read(group, 0)]
        pixels = torch.stack([torch.as_tensor(decode_image(image, 3)) for image in images])
        assert pixels.shape[1:] == (3, 64, 64)
        pixels = torch.nn.functional.interpolate(pixels.float(), 32, mode="bicubic", antialias=True)
        with torch.no_grad():
            features.append(model(pixels.round().clamp(0, 255).to(torch.uint8)).last_hidden_state[:, 0].numpy())
        classes.append(read_labels(source, "").values)
    mean, std = features[0].mean(0), features[0].std(0)
    regression = LogisticRegression(max_iter=200).fit((features[0] - mean) / std, classes[0])
    accuracy = np.mean(regression.predict((features[1] - mean) / std) == classes[1])
    assert lines[-1]["eval_probe_accuracy"] == pytest.approx(accuracy, abs=0.06)  # 2 of 37


def test_data_without_labels_is_refused(data, tmp_path):
    done = start("--output_dir", tmp_path / "run", *data, "--probe_epochs", 1)
    assert done.returncode == 2 and "--probe_epochs: the training data" in done.stderr
    assert not (tmp_path / "run").exists()
