"""
What pre-training is worth, and what decides it: a table of runs, resumable, and the tables made of their results.

    python -m benchmarks.ablations --data DIR                              all studies of all datasets, three seeds
    python -m benchmarks.ablations --data DIR --datasets nuclei --studies pretraining --seeds 0 1 2
    python -m benchmarks.ablations --report                                the tables of what is there

Each run is a process of its own, as a user would start it. A run that is in the results is skipped, and a run that was
interrupted resumes. Each result is a line of results.jsonl: the values that are compared, all scores on the test
images, steps, and seconds (wall and processor). benchmarks/experiments.py holds the table of runs.

The folder `--data` contains `nuclei` and `cifar10`, folders of parquet files with splits train and test.
"""

import argparse
import csv
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_tables import score_table, seconds_table
from benchmarks.experiments import DATASETS, STUDIES, Run, runs_of
from configuration_mae import MAEConfig
from modeling_mae import MAEForPreTraining


ROOT = Path(__file__).resolve().parent.parent


def command(run: Run, data: Path, folder: Path) -> list[str]:
    """The command of a run."""
    flags = {"dataset_name": data / DATASETS[run.facts["dataset"]].folder, "output_dir": folder / run.name}
    if run.start is not None:
        flags["model_name_or_path"] = folder / run.start
    flags |= run.flags
    if "config_overrides" in flags:
        flags["config_overrides"] = ",".join(f"{name}={value}" for name, value in flags["config_overrides"].items())
    words = (str(word) for name, value in flags.items() for word in (f"--{name}", value))
    return [sys.executable, str(ROOT / "examples" / str(run.script)), *words]


def save_random_model(start: Path, folder: Path, seed: int) -> None:
    """Save a model like that in `start`, with new random weights."""
    torch.manual_seed(seed)
    MAEForPreTraining(MAEConfig.from_pretrained(start)).save_pretrained(folder)


def scores_of(folder: Path) -> dict[str, Any]:
    """All scores after the last step. The IoU of each class of a segmentation is `iou_NAME`."""
    scores = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
    per_class = folder / "per_class.csv"
    if per_class.exists():
        with per_class.open(newline="") as file:
            scores |= {f"iou_{row['class']}": float(row["iou"]) for row in csv.DictReader(file) if "iou" in row}
    return scores


def execute(run: Run, data: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """
    Do a run, and return its line of the results.

    Raises:
        SystemExit: if it fails or is interrupted.
    """
    output_dir = folder / run.name
    output_dir.mkdir(parents=True, exist_ok=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (output_dir.parent / f"{output_dir.name}.log").open("a") as log:
        code = subprocess.run(command(run, data, folder), env=environment, stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{run.name} ended with exit code {code}. Its output is in {output_dir}.log.")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
    }
    return {"run": run.name, **run.facts, **scores_of(output_dir), **seconds}


def starts_of(runs: Mapping[str, Run], done: Container[str]) -> set[str]:
    """Names of the runs whose models the runs that are left start from."""
    starts: set[str] = set()
    for run in reversed(runs.values()):  # each comes after the one that it starts from
        is_left = run.script is not None and run.name not in done
        if run.start is not None and (is_left or run.name in starts):
            starts.add(run.start)
    return starts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the datasets")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS), help="(default: all)")
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES), help="(default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--labels", nargs="+", help="numbers of labelled images (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablations"), help="(default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the runs and what is done, and end")
    parser.add_argument("--report", action="store_true", help="print tables of the results, and end")
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)

    folder = arguments.output_dir.resolve()
    results = folder / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if arguments.report:
        for dataset, study in product(arguments.datasets, arguments.studies):
            print(f"## {dataset}: {study}\n\n{score_table(study, dataset, lines)}\n")
        for dataset in arguments.datasets:
            print(f"## {dataset}: times\n\n{seconds_table(dataset, lines)}\n")
        return
    done = {line["run"] for line in lines}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    runs = {
        run.name: run
        for seed in arguments.seeds
        for dataset in arguments.datasets
        for study in arguments.studies
        for run in runs_of(study, dataset, [seed], arguments.labels)
    }
    starts = starts_of(runs, done)
    for run in runs.values():
        # Results may come from another machine, without the models.
        is_missing = run.name in starts and not (folder / run.name).exists()
        if arguments.list:
            print("done" if run.name in done else "    ", run.name)
        elif run.script is None:
            if is_missing:
                save_random_model(folder / run.start, folder / run.name, run.flags["seed"])
        elif run.name not in done or is_missing:
            line = execute(run, arguments.data.resolve(), folder, environment)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            done.add(run.name)
            print(json.dumps(line), flush=True)
            for checkpoint in (folder / run.name).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
