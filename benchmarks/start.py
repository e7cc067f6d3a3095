"""
Time until the first step of a run, and from its summary to the prompt, of two checkouts in turn.

    git worktree add ../before main
    python -m benchmarks.start ../before .
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mae.utils.files import METRICS_FILE


FLAGS = ["--max_steps", "2", "--logging_steps", "1", "--dataloader_num_workers", "0"]
SUMMARY = "2 steps, "  # the line of a summary that tells its length


def time_import(checkout: Path) -> list[float]:
    """Seconds of a process that imports torch."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, os; os._exit(0)"], check=True, cwd=checkout)
    return [time.perf_counter() - started]


def time_run(checkout: Path, launcher: list[str]) -> list[float]:
    """Seconds from the command to the first logged step, from there to the summary, and from there to the prompt."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / METRICS_FILE
        command = [*launcher, "examples/run_mae.py", "--output_dir", str(metrics.parent), *FLAGS]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "PYTHONUNBUFFERED": "1"}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        stepped = time.perf_counter()
        summarised = next((time.perf_counter() for line in process.stdout if line.startswith(SUMMARY)), None)
        process.communicate()
        if process.returncode or summarised is None:
            raise RuntimeError(f"The run of {checkout} failed with exit code {process.returncode}.")
        return [stepped - started, summarised - stepped, time.perf_counter() - summarised]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each checkout (default: 5).")
    parser.add_argument("--launch", action="store_true", help="Start with accelerate launch (default: python).")
    arguments = parser.parse_args()
    launcher = [sys.executable]
    if arguments.launch:
        launcher += ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    rows: dict[str, list[list[float]]] = {}
    for _ in range(arguments.repeats):
        rows.setdefault("import torch", []).append(time_import(arguments.checkouts[0]))
        for checkout in arguments.checkouts:
            rows.setdefault(str(checkout), []).append(time_run(checkout, launcher))
    print("seconds: to the first step, to the summary, to the prompt")
    for name, times in rows.items():
        print(f"{name:30}", *(f"{statistics.median(column):7.2f}" for column in zip(*times)))


if __name__ == "__main__":
    main()
