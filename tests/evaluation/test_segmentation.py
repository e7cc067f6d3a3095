"""Scores of a segmenter: against scikit-learn's, pixel by pixel, on images of several sizes."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional as F

from mae.data.folders import open_folder
from mae.data.mask_rows import match_folder
from mae.data.masks import MaskCoding
from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.metrics import confusion_matrix, segmentation_scores
from mae.evaluation.segmentation import SegmentationEvaluator
from mae.utils.errors import DataError
from modeling_mae import MAEForSemanticSegmentation
from tests.support.masks import write_folders
from tests.support.models import tiny_model


CODING = MaskCoding((0, 1, 2), ("ground", "disc", "square"), (255,))


def test_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 4000)
    guess = np.where(generator.random(4000) < 0.6, truth, generator.integers(0, 5, 4000))
    scores = segmentation_scores(confusion_matrix(truth, guess, 5))
    assert np.array_equal(confusion_matrix(truth, guess, 5), sklearn_confusion(truth, guess))
    assert scores.iou == pytest.approx(jaccard_score(truth, guess, average=None), abs=1e-12)
    assert scores.mean_iou == pytest.approx(jaccard_score(truth, guess, average="macro"), abs=1e-12)
    assert scores.dice == pytest.approx(f1_score(truth, guess, average=None), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx((truth == guess).mean(), abs=1e-12)


def test_class_that_occurs_nowhere_does_not_count_in_the_mean():
    scores = segmentation_scores(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]]))
    assert np.isnan(scores.iou[2]) and scores.mean_iou == pytest.approx((8 / 10 + 10 / 12) / 2)
    scores = segmentation_scores(np.array([[8, 2, 0], [0, 10, 1], [0, 0, 0]]))
    assert scores.iou[2] == 0  # predicted, and never right


def test_counts_are_exact_beyond_the_numbers_that_floats_hold():
    matrix = np.array([[2**60 + 1, 0], [0, 1]], dtype=np.int64)
    assert segmentation_scores(matrix).iou[1] == 1 and matrix.sum() == 2**60 + 2


@pytest.fixture
def data(tmp_path):
    images, masks = write_folders(tmp_path, 3, height=40, width=70)
    write_folders(tmp_path, 2, first=3, height=20, width=24)  # smaller than a window
    mask = np.asarray(Image.open(masks / "000.png")).copy()
    mask[:9] = 255
    Image.fromarray(mask).save(masks / "000.png")
    source = open_folder(str(images), "--validation_dir")
    return source, match_folder(source, str(masks), "--validation_mask_dir", "--validation_dir")


def model_and_evaluator(data, **options):
    model = tiny_model(MAEForSemanticSegmentation, num_labels=3).eval()
    return model, SegmentationEvaluator(*data, CODING, None, 4, **options)


@torch.no_grad()
def test_every_pixel_of_every_image_is_counted_once_in_its_own_size(data, tmp_path):
    model, evaluator = model_and_evaluator(data, save_predictions=True)
    folder = tmp_path / "run"
    folder.mkdir()
    values = evaluator(model, EvaluationContext(1, 1.0, folder)).values
    truths, guesses, losses = [], [], []
    for row, name in enumerate(data[0].names):
        pixels = torch.from_numpy(np.asarray(Image.open(data[0].paths[row])).copy()).permute(2, 0, 1)
        scores = torch.cat([band for _, band in model.score_bands(pixels)], dim=1)
        truth = np.asarray(Image.open(data[1].paths[row]))
        stem = name.rsplit(".", 1)[0]
        saved = Image.open(folder / "predictions" / f"{stem}.png")
        assert saved.mode == "P" and np.array_equal(np.asarray(saved), scores.argmax(0))
        truths.append(truth[truth != 255])
        guesses.append(scores.argmax(0).numpy()[truth != 255])
        losses.append(F.cross_entropy(scores[None], torch.from_numpy(truth).long()[None], ignore_index=255,
                                      reduction="none")[0][torch.from_numpy(truth != 255)])  # fmt: skip
    truth, guess = np.concatenate(truths), np.concatenate(guesses)
    labels = sorted({*truth.tolist(), *guess.tolist()})
    assert values["eval_mean_iou"] == pytest.approx(jaccard_score(truth, guess, average="macro", labels=labels))
    assert values["eval_mean_dice"] == pytest.approx(f1_score(truth, guess, average="macro", labels=labels))
    assert values["eval_pixel_accuracy"] == (truth == guess).mean()
    assert values["eval_loss"] == pytest.approx(torch.cat(losses).double().mean().item(), abs=1e-6)
    with open(folder / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["class"] for line in table] == ["ground", "disc", "square"]
    assert [int(line["pixels"]) for line in table] == np.bincount(truth, minlength=3).tolist()
    for name in ("confusion_matrix.png", "segmentation.png"):
        assert min(Image.open(folder / name).size) > 200


def test_evaluation_that_is_stopped_has_no_result(data, tmp_path):
    model, evaluator = model_and_evaluator(data)
    assert evaluator(model, EvaluationContext(1, 1.0, tmp_path, lambda: True)) is None


def test_masks_of_ignored_pixels_alone_are_an_error(data, tmp_path):
    for path in data[1].paths:
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.full_like(mask, 255)).save(path)
    model, evaluator = model_and_evaluator(data)
    with torch.no_grad(), pytest.raises(DataError, match="No pixel of the 5 validation images counts"):
        evaluator(model, EvaluationContext(1, 1.0, tmp_path))
