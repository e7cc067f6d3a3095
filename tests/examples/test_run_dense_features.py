"""examples/run_dense_features.py, as a user starts it."""

import csv
import json

import pytest

from tests.support.data import ROOT
from tests.support.masks import write_folders
from tests.support.runs import run, start


DENSE = ROOT / "examples" / "run_dense_features.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    images, masks = write_folders(root / "train", 12)
    others, other_masks = write_folders(root / "validation", 5, first=100)
    flags = ["--train_dir", images, "--train_mask_dir", masks]
    return [*flags, "--validation_dir", others, "--validation_mask_dir", other_masks]


def evaluate(output_dir, model, folders, *flags, processes=1):
    words = ["--model_name_or_path", model, *folders, "--output_dir", output_dir, "--dataloader_num_workers", 0]
    words += ["--max_train_patches", 480, *flags]
    done = start(*words, script=DENSE) if processes == 1 else run(*words, script=DENSE, processes=processes)
    assert done.returncode == 0, done.stderr
    return json.loads((output_dir / "results.json").read_text()), done


def test_coloured_discs_are_found_without_training(folders, small_checkpoint, tmp_path):
    """The encoder has random weights, but colours tell the classes."""
    results, done = evaluate(tmp_path / "one", small_checkpoint, folders)
    assert results["training_images"] == 12 and results["images"] == 5 and results["training_patches"] == 480
    for result in results["results"]:
        folder = tmp_path / "one" / result["method"]
        with open(folder / "per_class.csv", newline="") as file:
            ious = [float(row["iou"]) for row in csv.DictReader(file)]
        assert result["mean_iou"] == pytest.approx(sum(ious) / 3, abs=1e-5) and result["mean_iou"] > 0.4
        assert f"{result['method']}: mean_iou {result['mean_iou']:.4g}" in done.stdout
        assert (folder / "segmentation.png").exists() and "loss" not in result
    again, _ = evaluate(tmp_path / "two", small_checkpoint, folders, "--methods", "knn", processes=2)
    assert again["results"] == results["results"][:1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--methods", "svm"], "--methods svm must be one of knn, logistic"),
        (["--max_train_patches", 0], "--max_train_patches 0 must be at least 1"),
        (["--train_dir", "nowhere"], "--train_dir nowhere"),
        (["--layer", 9], "--layer 9 must be from 0 to"),
    ],
)
def test_mistake_is_one_line_that_names_the_flag(flags, message, folders, small_checkpoint, tmp_path):
    done = start(
        "--model_name_or_path", small_checkpoint, *folders, "--output_dir", tmp_path / "out", *flags, script=DENSE
    )
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "out").exists()
