"""
Names of the files of a run and of a model, and writing a file whole or not at all.

The packages that write these files and those that read, push or remove them share the names.
"""

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


UNFINISHED = ".unfinished"  # suffix of files and folders that are being written or removed
SET_ASIDE = ".set_aside"  # suffix of checkpoints of later steps than the one that a run resumed from
RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SKIPPED_FILE = "skipped.jsonl"
RESULTS_FILE = "train_results.json"
LOGS_FOLDER = "logs"  # of trackers
PICTURES_FOLDER = "reconstructions"
CURVE_FILE = "loss_curve.png"
RECONSTRUCTION_FILE = "reconstruction.png"
CONFUSION_FILE = "confusion_matrix.png"
CLASSES_FILE = "per_class.csv"
PREDICTIONS_FILE = "predictions.csv"
SEGMENTATION_FILE = "segmentation.png"
MASKS_FOLDER = "predictions"  # of a segmenter
PUSH_FOLDER = "hub_push" + UNFINISHED  # snapshots that are being uploaded
AVERAGE_FOLDER = "ema"  # in a checkpoint: the averaged model
CARD_FILE = "README.md"
# The files of a saved model.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
_CODE = ("attention", "checks", "configuration", "cross_decoder", "dense", "layers", "modeling", "outputs", "patches")
CODE_FILES = tuple(f"{name}_mae.py" for name in _CODE)
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, PROCESSOR_FILE, *CODE_FILES)


def flush(*paths: Path) -> None:
    """Wait until files or folders are on the disk, so that they survive a loss of power."""
    for path in paths:
        if path.is_file() or os.name == "posix":  # other systems cannot open a folder
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """
    Write a file whole or not at all: yields the path of a temporary file beside it, which takes its name at the end.
    An error removes the temporary file, and leaves what was there before.
    """
    # The process number, because a cache may be written by several processes at once.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(without_nan(value), indent=2, default=str) + "\n")


def without_nan(value: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that are not finite by None, because JSON has no word for them."""
    return {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in value.items()}


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Write columns of equal length as CSV, whole or not at all."""
    with atomic_write(path) as unfinished:
        with open(unfinished, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
