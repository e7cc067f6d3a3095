"""
Five short runs whose numbers must survive a refactoring: losses, digests, evaluations and weights, to the last digit.

    git worktree add ../before REVISION
    python -m benchmarks.unchanged ../before . [--folder DIR]

Each argument is a checkout; the runs of each are made by its own scripts and its own modules, on one thread, and
compared with those of the first. Fields that hold times are left out. About 50 seconds a checkout on 2 CPU cores.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


TIMES = {"images_per_second", "data_wait", "mfu", "epoch_time"}
SMALL = "hidden_size=24,num_hidden_layers=2,num_attention_heads=3,intermediate_size=48,decoder_hidden_size=16,"
SMALL += "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=32"
TINY = ["--config_overrides", SMALL, "--image_size", "32", "--patch_size", "8", "--warmup_epochs", "0.1"]
TINY += ["--base_learning_rate", "0.3", "--logging_steps", "1"]


def command(script: str, output_dir: Path, *arguments: object, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = ["--output_dir", str(output_dir), *map(str, arguments)]
    return [sys.executable, *(launcher if processes > 1 else []), f"examples/{script}.py", *flags]


def train(checkout: Path, script: str, output_dir: Path, *arguments: object, processes: int = 1, kill_at: int = 0):
    """One run to its end; with `kill_at` it is killed after that many logged steps, and started again."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = command(script, output_dir, *arguments, processes=processes)
    if kill_at:
        process = subprocess.Popen(
            started, cwd=checkout, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        log = output_dir / "metrics.jsonl"
        while not (log.exists() and log.read_bytes().count(b"\n") >= kill_at):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended before step {kill_at}: {' '.join(started)}")
            time.sleep(0.005)
        subprocess.run(["pkill", "-KILL", "-f", str(output_dir)], check=False)
        process.wait()
    done = subprocess.run(started, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(started)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def summarise(output_dir: Path) -> dict[str, str]:
    """Hashes of what a run gave, and its last loss and evaluation in full."""

    def lines(name: str) -> list[dict]:
        rows = [json.loads(row) for row in (output_dir / name).read_text().splitlines()]
        return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    metrics, evaluations = lines("metrics.jsonl"), lines("evaluations.jsonl")
    scores = {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")}
    return {
        "loss": repr(metrics[-1]["loss"]),
        "metrics": f"{digest(metrics)} ({len(metrics)} lines)",
        "samples": digest([row["samples_digest"] for row in metrics]),
        "weights": hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()[:16],
        "evaluations": f"{digest(evaluations)} {scores}",
    }


def make_arrays(folder: Path) -> Path:
    """Rectangular images of five channels, of 8 and of 16 bits."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(96):
        image = generator.integers(0, 256, size=(40, 56, 5)) // (1 + index % 3)
        kind = np.uint16 if index % 2 else np.uint8
        np.save(folder / f"{index:03}.npy", (image * (257 if index % 2 else 1)).astype(kind))
    return folder


def run_all(checkout: Path, folder: Path) -> dict[str, dict[str, str]]:
    arrays = make_arrays(folder / "arrays")
    emoji = folder / "emoji"
    train(checkout, "run_mae", emoji, "--max_steps", 60, "--eval_steps", 30, "--logging_steps", 5)
    train(
        checkout, "run_mae", folder / "rectangles", "--train_dir", arrays, "--image_mean", "auto", "--max_steps", 40,
        *TINY, "--config_overrides", f"{SMALL},num_channels=5", "--image_size", 32, 48, "--lanes", 4,
        "--per_device_train_batch_size", 8, "--eval_steps", 20,
    )  # fmt: skip
    train(
        checkout, "run_image_classification", folder / "finetune", "--model_name_or_path", emoji, "--max_steps", 20,
        "--per_device_train_batch_size", 16, "--logging_steps", 1, "--dataloader_num_workers", 2,
    )  # fmt: skip
    train(
        checkout, "run_image_classification", folder / "probe", "--model_name_or_path", emoji, "--protocol", "linear",
        "--max_steps", 60, "--per_device_train_batch_size", 64, "--logging_steps", 1,
    )  # fmt: skip
    train(
        checkout, "run_mae", folder / "two_processes", *TINY, "--max_steps", 60, "--per_device_train_batch_size", 4,
        "--gradient_accumulation_steps", 2, "--save_steps", 20, "--eval_steps", 30, processes=2, kill_at=33,
    )  # fmt: skip
    names = ("emoji", "rectangles", "finetune", "probe", "two_processes")
    return {name: summarise(folder / name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, help="Keep the runs here.")
    arguments = parser.parse_args()
    first: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, checkout in enumerate(arguments.checkouts):
            folder = (arguments.folder or Path(temporary)).resolve() / f"{number}-{checkout.resolve().name}"
            found = run_all(checkout.resolve(), folder)
            first = first or found
            for run, values in found.items():
                for name, value in values.items():
                    verdict = "" if number == 0 else "same  " if value == first[run][name] else "DIFFERS  "
                    print(f"{checkout}  {run:14} {name:12} {verdict}{value}", flush=True)


if __name__ == "__main__":
    main()
