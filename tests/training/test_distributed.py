"""Several processes: Accelerate's configurations, FSDP2, two machines, steps without waiting for the device."""

import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from mae.training.average import AveragedWeights
from mae.training.loop import TrainingLoop
from mae.training.optimization import GuardedStep
from modeling_mae import MAEForPreTraining
from tests.support.data import EMOJI, ROOT
from tests.support.runs import ENVIRONMENT, SCRIPT, metrics, train


CONFIGURATIONS = sorted((ROOT / "examples" / "accelerate").iterdir())


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_accepts_each_configuration(path):
    """Accelerate reads from each what its name says; the command in it fits its recipe."""
    config = load_config_from_file(str(path))
    command = re.search(r"^# +accelerate launch (.*?[^\\])$", path.read_text(), re.MULTILINE | re.DOTALL)[1]
    words = command.replace("#", "").replace("\\\n", "").split()
    assert words[:2] == ["--config_file", f"examples/accelerate/{path.name}"]
    flags, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert flags.training_script == "examples/run_mae.py" and flags.num_processes == config.num_processes
    kinds = {"ddp": flags.multi_gpu, "fsdp2": flags.use_fsdp, "cpu": config.use_cpu, "one": config.num_processes == 1}
    assert kinds[path.stem.split("_")[0]]
    assert config.mixed_precision == ("no" if path.stem == "cpu" else "bf16")
    counts = [int(number) for number in re.findall(r"_(\d+)_", path.stem + "_")]
    assert counts in ([], [8], [2]) and (config.num_machines == 2) == (counts == [2])
    if flags.use_fsdp:
        assert str(flags.fsdp_version) == "2" and flags.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
        assert MAEForPreTraining._no_split_modules == ["MAEBlock", "MAECrossBlock"]
    for number, word in enumerate(flags.training_script_args):
        if word == "--recipe":
            assert (ROOT / flags.training_script_args[number + 1]).exists()


@pytest.mark.slow
def test_fsdp2_gives_the_numbers_of_one_process(data, tmp_path):
    """Weights, gradients, moments and average in pieces: the same numbers, and checkpoints for one process too."""
    labelled = ["--dataset_name", next(EMOJI.glob("test-*.parquet")), *data[2:], "--knn_epochs", 0.25]
    arguments = [*labelled, "--ema_decay", 0.9, "--max_grad_norm", 0.5, "--eval_steps", 12, "--learning_rate", 0.01]
    whole = train(tmp_path / "whole", *arguments)
    sharded = tmp_path / "sharded"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "tests" / "support" / "fsdp2_on_cpu.py"), str(SCRIPT), "--output_dir", str(sharded)]
    division = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    done = subprocess.run(
        [*launcher, *script, *map(str, arguments), *division],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f"process {rank}: 50 sharded parameters; one scale for all" in done.stdout for rank in (0, 1))
    lines = metrics(sharded)
    assert [line["samples_digest"] for line in lines] == [line["samples_digest"] for line in whole]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in whole], rel=1e-5)
    results = [json.loads((path / "train_results.json").read_text()) for path in (sharded, tmp_path / "whole")]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-5)
    assert results[0]["eval_knn_accuracy"] == pytest.approx(results[1]["eval_knn_accuracy"], abs=0.1)  # 3 of 32

    # Its checkpoints have the same files, the code included.
    checkpoints = [tmp_path / name / "checkpoint-20" for name in ("sharded", "whole")]
    names = [sorted(path.name for path in checkpoint.iterdir()) for checkpoint in checkpoints]
    assert names[0] == names[1] and "modeling_mae.py" in names[0]
    assert type(AutoModel.from_pretrained(sharded)).__name__ == "MAEModel"
    for name in ("model.safetensors", "ema/model.safetensors"):
        ours, theirs = (load_file(checkpoint / name) for checkpoint in checkpoints)
        assert ours.keys() == theirs.keys()
        # A key's bias has no gradient but rounding, of which Adam makes steps.
        different = {key for key in ours if not torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-4)}
        assert all(key.endswith("qkv.bias") for key in different)

    shutil.copytree(sharded / "checkpoint-20", tmp_path / "copy")
    rest = train(tmp_path / "rest", *arguments, "--resume_from_checkpoint", tmp_path / "copy")
    assert [line["step"] for line in rest] == [21, 22, 23, 24]
    assert [line["loss"] for line in rest] == pytest.approx([line["loss"] for line in lines[20:]], rel=1e-5)


@pytest.mark.slow
def test_two_machines_resume_the_run_of_one(data, tmp_path):
    """Two launchers that meet by the network resume the run of one; the second does not see its directory."""
    arguments = [*data, "--save_total_limit", 3]
    expected = train(tmp_path / "one", *arguments)
    directories = [tmp_path / "first" / "run", tmp_path / "second" / "run"]
    shutil.copytree(tmp_path / "one", directories[0])
    (directories[0] / "train_results.json").unlink()
    for step in (20, 24):
        shutil.rmtree(directories[0] / f"checkpoint-{step}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = []
    for rank, directory in enumerate(directories):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        launcher += ["--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port]
        command = [sys.executable, *launcher, str(SCRIPT), "--output_dir", str(directory), *map(str, arguments)]
        command += ["--per_device_train_batch_size", "4"]
        machines.append(
            subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "Resuming after step 10." in outputs[0][0] and outputs[1][0] == ""  # the first process of all speaks
    assert not directories[1].parent.exists()
    lines = metrics(directories[0])
    assert [line["samples_digest"] for line in lines] == [line["samples_digest"] for line in expected]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-5)


class Waits(TorchDispatchMode):
    """Counts what waits for a device: a number that Python wants to know."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_steps_do_not_wait_for_the_device(data, tmp_path, monkeypatch):
    """Forward, backward, clipping, guard, optimizer and average; an accelerator would run behind them."""
    waits, calls = Waits(), []

    def watched(method):
        def call(*args, **kwargs):
            calls.append(method.__name__)
            with waits:
                return method(*args, **kwargs)

        return call

    monkeypatch.setattr(TrainingLoop, "backward", watched(TrainingLoop.backward))
    monkeypatch.setattr(GuardedStep, "__call__", watched(GuardedStep.__call__))
    monkeypatch.setattr(AveragedWeights, "update", watched(AveragedWeights.update))
    with Waits() as can_count:
        assert bool(torch.ones(()) > 0) and can_count.count == 1
    arguments = ["--max_steps", 3, "--logging_steps", 3, "--max_grad_norm", 1, "--ema_decay", 0.9]
    train(tmp_path / "run", *data, *arguments, "--gradient_accumulation_steps", 2)
    assert len(calls) == 12 and waits.count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_steps_do_not_wait_for_a_gpu(data, tmp_path, monkeypatch, precision):
    def strict(method):
        def call(self, *args, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if next(steps) > 4 else "default")  # after what is made once
            try:
                return method(self, *args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    steps = itertools.count()
    monkeypatch.setattr(TrainingLoop, "backward", strict(TrainingLoop.backward))
    monkeypatch.setattr(GuardedStep, "__call__", strict(GuardedStep.__call__))
    arguments = ["--max_steps", 8, "--logging_steps", 8, "--max_grad_norm", 1, "--ema_decay", 0.9, precision]
    assert math.isfinite(train(tmp_path / "run", *data, *arguments)[-1]["loss"])
