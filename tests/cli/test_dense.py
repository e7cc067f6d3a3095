"""Patch tokens evaluated in pre-training: the run is the same, and what cannot be evaluated is refused."""

import json

import pytest

from tests.support.masks import write_folders, write_masked_parquet
from tests.support.runs import TINY, assert_same_run, metrics_of, start, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("masked")
    write_masked_parquet(root / "data" / "train-00000-of-00001.parquet", range(20), mask_column="mask")
    write_masked_parquet(root / "data" / "validation-00000-of-00001.parquet", range(30, 36), mask_column="mask")
    return root / "data"


def test_run_is_the_same_to_the_last_bit_with_and_without(data, tmp_path):
    flags = ["--dataset_name", data, "--image_column_name", "image", *TINY, "--max_steps", 6, "--eval_steps", 100]
    train(tmp_path / "plain", *flags)
    train(tmp_path / "watched", *flags, "--dense_epochs", 1, "--mask_column_name", "mask")
    lines = metrics_of((tmp_path / "watched" / "evaluations.jsonl").read_text().splitlines())
    scores = [line.pop("eval_dense_iou") for line in lines if "eval_dense_iou" in line]
    # 20 images, 48 samples: after epochs 1 and 2, and at the end.
    assert len(scores) == 3 and all(0 < score <= 1 for score in scores)
    assert (tmp_path / "watched" / "segmentation.png").exists()
    kept = [json.dumps(line) for line in lines if "eval_loss" in line]
    (tmp_path / "watched" / "evaluations.jsonl").write_text("".join(f"{line}\n" for line in kept))
    assert_same_run(tmp_path / "plain", tmp_path / "watched")


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--dataset_name", "DATA", "--image_column_name", "image", "--mask_column_name", "no"],
            "--mask_column_name no",
        ),
        (["--train_dir", "IMAGES"], "--train_dir and --train_mask_dir go together"),
        (["--train_dir", "IMAGES", "MASKS", "--train_mask_dir", "MASKS"], "--dense_epochs 1 needs one data set"),
        (["--train_dir", "IMAGES", "--train_mask_dir", "MASKS"], "There are no validation images"),
    ],
)
def test_data_that_cannot_be_evaluated_is_one_line(flags, message, data, tmp_path):
    images, masks = write_folders(tmp_path, 9)
    names = {"DATA": data, "IMAGES": images, "MASKS": masks}
    flags = [names.get(flag, flag) for flag in flags]
    done = start("--output_dir", tmp_path / "run", *flags, *TINY, "--dense_epochs", 1)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "run").exists()
