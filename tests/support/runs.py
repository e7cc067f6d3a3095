"""examples/run_mae.py as a user runs it, for the tests: a small model, whole runs, runs that are stopped."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from accelerate.state import AcceleratorState, GradientState

from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT
from tests.support.forked import ForkedProcess


SCRIPT = ROOT / "examples" / "run_mae.py"
MODEL = (
    "hidden_size=24,num_hidden_layers=2,num_attention_heads=3,intermediate_size=48,decoder_hidden_size=16,"
    "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=32"
)
TINY = ["--config_overrides", MODEL, "--image_size", "32", "--patch_size", "8", "--lanes", "4"]
TINY += ["--shuffle_buffer_size", "32", "--base_learning_rate", "0.3", "--warmup_epochs", "0.5"]
TINY += ["--per_device_train_batch_size", "8", "--max_steps", "24", "--logging_steps", "1", "--save_steps", "10"]


def command(*arguments, processes=1, script=SCRIPT):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]


ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def fork(*arguments, processes=1, cwd=None, script=SCRIPT):
    """A script in processes of its own, in the background."""
    return ForkedProcess(script, list(map(str, arguments)), ENVIRONMENT, processes, cwd)


def run(*arguments, processes=1, cwd=None, script=SCRIPT):
    """A script in processes of its own, to the end."""
    process = fork(*arguments, processes=processes, cwd=cwd, script=script)
    output, errors = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def run_here(script: Path, *arguments: object) -> subprocess.CompletedProcess:
    """A script in this process, as `python SCRIPT ARGUMENTS` would end: most of a start of its own is imports."""
    argv, sigterm, threads = sys.argv, signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes of the other tests
    sys.argv, output, errors = [str(script), *map(str, arguments)], io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, sigterm)
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def start(*arguments, script=SCRIPT):
    """As `run` with one process, in this one."""
    return run_here(script, *arguments)


def train(output_dir, *arguments, processes=1):
    """Runs to the end; the lines of metrics.jsonl."""
    arguments = ["--output_dir", output_dir, *arguments]
    done = start(*arguments) if processes == 1 else run(*arguments, processes=processes)
    assert done.returncode == 0, done.stderr
    return metrics(output_dir)


def metrics(output_dir):
    return metrics_of((Path(output_dir) / "metrics.jsonl").read_text().splitlines())


def metrics_of(lines):
    return [json.loads(line) for line in lines]


def tree(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def begin(output_dir, *arguments, processes=1, step=30):
    """A run in the background that has logged a step."""
    process = fork("--output_dir", output_dir, *arguments, processes=processes)
    log, deadline = Path(output_dir) / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") >= step):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process


def kill(process):
    """By SIGKILL, with all that it started: the launcher's children live in sessions of their own."""
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        member.kill()
    psutil.wait_procs(family[:-1], timeout=30)
    process.communicate()


def exact(lines):
    return [(line["step"], line["loss"], line["learning_rate"], line["samples_digest"]) for line in lines]


def assert_same_run(output_dir, other):
    assert exact(metrics(output_dir)) == exact(metrics(other))
    evaluations = [(Path(path) / "evaluations.jsonl").read_text() for path in (output_dir, other)]
    assert evaluations[0] == evaluations[1]
    models = [MAEForPreTraining.from_pretrained(path).state_dict() for path in (output_dir, other)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
