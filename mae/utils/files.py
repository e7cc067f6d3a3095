"""Names of the files of a run, and writing them whole or not at all."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Columns of equal length as CSV."""
    with open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


UNFINISHED = ".unfinished"  # ends the names of what is being written or removed
SET_ASIDE = ".set_aside"  # ends the names of checkpoints that a run has gone on from behind
RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SKIPPED_FILE = "skipped.jsonl"
RESULTS_FILE = "train_results.json"
WEIGHTS_FILE = "model.safetensors"
# What a push under way takes its files from.
PUSH_FOLDER = "hub_push" + UNFINISHED
AVERAGE_FOLDER = "ema"  # in a checkpoint
PICTURES_FOLDER = "reconstructions"
CURVE_FILE = "loss_curve.png"
RECONSTRUCTION_FILE = "reconstruction.png"
CONFUSION_FILE = "confusion_matrix.png"
CLASSES_FILE = "per_class.csv"
PREDICTIONS_FILE = "predictions.csv"


def flush(*paths: Path) -> None:
    """Waits until files or folders are on the disk, where a loss of power does not reach them."""
    for path in paths:
        if path.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.write_text(text, encoding="utf-8")
    flush(unfinished)
    os.replace(unfinished, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(_without_nan(value), indent=2, default=str) + "\n")


def _without_nan(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for what is not finite."""
    return {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in value.items()}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


# In the output directory.
LOGS_FOLDER = "logs"
