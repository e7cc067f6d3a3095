"""Runs that are stopped, by kills, signals, bad gradients or faults, and how they resume."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from mae.data.dataset import SampleDataset
from mae.evaluation.reconstruction import ReconstructionEvaluator
from mae.training import interruption
from mae.training.accelerator import make_accelerator
from mae.training.metrics import JsonLines
from tests.support.runs import (
    ENVIRONMENT,
    TINY,
    assert_same_run,
    begin,
    command,
    exact,
    fork,
    kill,
    metrics,
    metrics_of,
    run,
    start,
    train,
)


def arguments_of(data, processes):
    """150 steps, with everything that a run saves and evaluates."""
    arguments = [*data, "--max_steps", 150, "--save_steps", 20, "--per_device_train_batch_size", 8 // processes]
    return [*arguments, "--eval_steps", 75, "--ema_decay", 0.9]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run of one process that nothing stopped, and its arguments."""
    arguments, output_dir = arguments_of(data, 1), tmp_path_factory.mktemp("runs") / "whole"
    train(output_dir, *arguments)
    return output_dir, arguments


def test_killed_run_resumes_to_the_same_result(whole, tmp_path):
    expected, arguments = whole
    assert_killed_run_resumes(expected, tmp_path / "killed", arguments, processes=1)


@pytest.mark.slow
def test_killed_run_of_two_processes_resumes_to_the_same_result(data, tmp_path):
    arguments = arguments_of(data, 2)
    train(tmp_path / "whole", *arguments, processes=2)
    assert_killed_run_resumes(tmp_path / "whole", tmp_path / "killed", arguments, processes=2)


def assert_killed_run_resumes(expected, output_dir, arguments, processes):
    kill(begin(output_dir, *arguments, processes=processes, step=30))
    assert not (output_dir / "train_results.json").exists()
    log = output_dir / "metrics.jsonl"
    before = metrics_of(log.read_text().splitlines())
    with open(log, "a") as file:
        file.write('{"step": 31, "lo')  # torn by the kill
    # While a checkpoint is written: a moment between its first byte and its new name.
    process = begin(output_dir, *arguments, processes=processes, step=45)
    deadline = time.monotonic() + 60
    while not (caught := list(output_dir.glob("checkpoint-*.unfinished"))) and time.monotonic() < deadline:
        time.sleep(0.0005)
    kill(process)
    assert caught
    kill(begin(output_dir, *arguments, processes=processes, step=70))
    arguments = ["--output_dir", output_dir, *arguments]
    done = start(*arguments) if processes == 1 else run(*arguments, processes=processes)
    assert done.returncode == 0, done.stderr
    # It resumed, and did not start over: what was logged up to the checkpoint, timings too, is still there.
    assert int(re.search(r"Resuming after step (\d+)", done.stdout)[1]) >= 60
    assert metrics(output_dir)[:20] == before[:20]
    assert_same_run(output_dir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_run_killed_thirty_times_gives_the_same_result(data, tmp_path, processes):
    """At random moments of steps, saving, looking at images and starting."""
    arguments = [*data, "--max_steps", 600, "--save_steps", 7, "--per_device_train_batch_size", 8 // processes]
    arguments += ["--eval_steps", 50, "--ema_decay", 0.9]
    train(tmp_path / "whole", *arguments, processes=processes)
    output_dir, random, step = tmp_path / "killed", np.random.default_rng(processes), 0
    for number in range(30):
        if number % 5 == 4:  # before or soon after it has begun
            process = subprocess.Popen(
                command("--output_dir", output_dir, *arguments, processes=processes),
                env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            time.sleep(random.uniform(2, 12))
        else:
            step = min(step + int(random.integers(1, 40)), 595)
            process = begin(output_dir, *arguments, processes=processes, step=step)
            time.sleep(random.uniform(0, 0.1))
        kill(process)
    done = run("--output_dir", output_dir, *arguments, processes=processes)
    assert done.returncode == 0, done.stderr
    assert_same_run(output_dir, tmp_path / "whole")


def test_sigterm_saves_the_step_and_its_checkpoint_resumes_elsewhere(whole, tmp_path):
    """SIGTERM: the step is finished and saved, an exit code of its own; a checkpoint named by its path goes on."""
    expected, arguments = whole
    process = begin(tmp_path / "run", *arguments, "--dataloader_num_workers", 1)
    # To the worker too, as a scheduler does.
    for child in psutil.Process(process.pid).children():
        child.terminate()
    process.terminate()
    _, stderr = process.communicate(timeout=25)
    assert process.returncode == 75 and "Traceback" not in stderr
    step = int(re.search(r"Stopped by SIGTERM after step (\d+), which is saved", stderr)[1])
    checkpoint = tmp_path / "run" / f"checkpoint-{step}"
    assert checkpoint.exists() and step >= 30
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    lines = train(tmp_path / "other", *arguments, "--resume_from_checkpoint", copy)
    assert lines[0]["step"] == step + 1 and exact(lines) == exact(metrics(expected))[step:]
    refused = start("--output_dir", tmp_path / "seed", *arguments, "--resume_from_checkpoint", copy, "--seed", 7)
    assert refused.returncode == 2 and "copy is of another run: recipe.seed was 42, now 7." in refused.stderr
    refused = start("--output_dir", tmp_path / "run", *arguments, "--resume_from_checkpoint", "none")
    assert refused.returncode == 2 and f"holds checkpoint-{step} of this run" in refused.stderr
    train(tmp_path / "run", *arguments)
    assert_same_run(tmp_path / "run", expected)


def test_signal_to_one_rank_stops_both_after_the_same_step(data, tmp_path):
    process = begin(tmp_path / "run", *arguments_of(data, 2), processes=2, step=10)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    ranks[1].terminate()
    _, stderr = process.communicate(timeout=40)
    assert process.returncode != 0 and stderr.count("which is saved") == 1
    step = int(re.search(r"Stopped by (SIGTERM|a signal to another rank) after step (\d+), which is", stderr)[2])
    assert metrics(tmp_path / "run")[-1]["step"] == step and (tmp_path / "run" / f"checkpoint-{step}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_run_whose_output_nobody_reads_saves_when_asked_to_stop(data, tmp_path, number):
    """As with `... 2>&1 | tee log` and Ctrl-C, which tee answers first; or when the terminal is closed."""
    process = begin(tmp_path / "run", *data, "--max_steps", 10**6, "--save_steps", 10**6, step=3)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(number)
    assert process.wait(timeout=25) == 75
    step = metrics(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").exists()


def test_second_ctrl_c_exits_at_once(data, tmp_path):
    """The first one waits for data that does not come before the tenth second."""
    process = begin(tmp_path / "run", *data, "--max_steps", 10**6, step=1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=25)
    assert process.returncode in (-signal.SIGINT, 75)  # 75 where both came as one


@pytest.fixture(scope="module")
def accumulated(data, tmp_path_factory):
    """A run of micro-batches, and its arguments."""
    arguments = [*data, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--ema_decay", 0.9]
    arguments += ["--dataloader_num_workers", 0, "--logging_steps", 2]
    output_dir = tmp_path_factory.mktemp("runs") / "accumulated"
    train(output_dir, *arguments)
    return output_dir, arguments


@pytest.mark.parametrize("position", [0, 4, 20])
def test_stop_while_data_does_not_come_saves_the_whole_steps(accumulated, tmp_path, monkeypatch, position):
    """Before the first step, within it, and within a later one: what is whole is saved, and the rest done again."""
    expected, arguments = accumulated
    with monkeypatch.context() as patch:
        decode = SampleDataset.__getitem__

        def stall(self, sample):
            if sample.position == position:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(60)
            return decode(self, sample)

        patch.setattr(SampleDataset, "__getitem__", stall)
        patch.setattr(interruption, "DATA_PATIENCE", 1)
        done = start("--output_dir", tmp_path / "run", *arguments)
    step = position // 8
    assert done.returncode == 75 and len(done.stderr.splitlines()[-1]) < 200
    reported = f"after step {step}, which is saved" if step else "before the first step"
    assert f"Stopped by SIGTERM {reported}" in done.stderr
    saved = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert saved == ([f"checkpoint-{step}"] if step else [])
    train(tmp_path / "run", *arguments)
    assert_same_run(tmp_path / "run", expected)


def test_stop_while_one_rank_waits_for_data_saves_on_both(image_folder, tmp_path):
    """The other waits for it, and they save together; the image that never comes is a pipe."""
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    arguments = ["--train_dir", folder, *TINY, "--max_steps", 60, "--save_steps", 1000, "--dataloader_num_workers", 0]
    arguments += ["--cache_memory", 0]  # so that the image is still needed
    expected = train(tmp_path / "whole", *arguments)
    division = ["--per_device_train_batch_size", 4]
    process = begin(tmp_path / "run", *arguments, *division, processes=2, step=10)
    image = next(folder.rglob("*.png"))
    image.rename(tmp_path / "kept.png")
    os.mkfifo(image)
    log, size = tmp_path / "run" / "metrics.jsonl", -1
    while log.stat().st_size > size:  # until nothing happens
        size = log.stat().st_size
        time.sleep(2)
    for rank in psutil.Process(process.pid).children():
        rank.terminate()
    _, stderr = process.communicate(timeout=40)
    step = int(re.search(r"Stopped by .* after step (\d+), which is saved", stderr)[1])
    assert metrics(tmp_path / "run")[-1]["step"] == step and 10 <= step < 60
    image.unlink()
    (tmp_path / "kept.png").rename(image)
    lines = train(tmp_path / "run", *arguments)  # by one process
    assert [line["samples_digest"] for line in lines] == [line["samples_digest"] for line in expected]
    losses = [[line["loss"] for line in run[: step + 5]] for run in (lines, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_stop_during_an_evaluation_saves_and_evaluates_again_on_resume(whole, tmp_path, monkeypatch):
    """What was trained is saved, and the evaluation runs after the resume."""
    expected, arguments = whole
    evaluate = ReconstructionEvaluator.__call__

    def asked(self, model, context):
        if context.step == 75:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, model, context)

    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionEvaluator, "__call__", asked)
        done = start("--output_dir", tmp_path / "run", *arguments)
    assert done.returncode == 75 and "Stopped by SIGTERM after step 75, which is saved" in done.stderr
    assert (tmp_path / "run" / "checkpoint-75").exists()
    assert not (tmp_path / "run" / "reconstructions").exists()
    train(tmp_path / "run", *arguments)
    assert_same_run(tmp_path / "run", expected)


def test_checkpoint_of_the_last_step_resumes_into_another_directory(whole, tmp_path):
    """From the last step: nothing is left to train, and everything to be written. And not with another recipe."""
    expected, arguments = whole
    copy = tmp_path / "copy"
    shutil.copytree(expected / "checkpoint-150", copy)
    done = start("--output_dir", tmp_path / "run", *arguments, "--resume_from_checkpoint", copy)
    assert done.returncode == 0, done.stderr
    results = [json.loads((path / "train_results.json").read_text()) for path in (tmp_path / "run", expected)]
    assert results[0]["loss"] == results[1]["loss"] and results[0]["eval_loss"] == results[1]["eval_loss"]
    again = start("--output_dir", tmp_path / "run", *arguments)
    assert again.returncode == 0 and "already finished" in again.stdout
    plain = [argument for argument in arguments if argument not in ("--ema_decay", 0.9)]
    shutil.rmtree(copy / "ema")
    done = start("--output_dir", tmp_path / "plain", *plain, "--resume_from_checkpoint", copy)
    assert done.returncode == 2 and "copy is of another run: recipe.ema_decay was 0.9, now None." in done.stderr


def test_full_disk_while_logging_is_one_line_and_the_run_resumes(data, tmp_path):
    """Told in a line too; what is there stays, and the run goes on when there is room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    train(tmp_path / "whole", *data, "--max_steps", 12, "--save_steps", 4)
    arguments = ["--output_dir", tmp_path / "run", *data, "--max_steps", 12, "--save_steps", 4]
    append = JsonLines.append

    def fill(self, line):
        if line["step"] == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        append(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JsonLines, "append", fill)
        try:
            done = start(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: [Errno 27] File too large" in done.stderr and "resume from the last checkpoint" in done.stderr
    train(tmp_path / "run", *data, "--max_steps", 12, "--save_steps", 4)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_loss_scale_is_restored(data, tmp_path, monkeypatch):
    """On a CPU Accelerate has none; powers of two change no digit, and an overflow is a step left out twice alike."""

    def make_with_scale(*arguments):
        accelerator = make_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)
        return accelerator

    monkeypatch.setattr("mae.training.accelerator.make_accelerator", make_with_scale)
    arguments = [*data, "--save_steps", 9, "--save_total_limit", 3]
    once = train(tmp_path / "run", *arguments)
    states = [
        json.loads((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text()) for step in (9, 24)
    ]
    assert states[0]["scaler"]["scale"] < 2.0**127 and states[1]["num_nonfinite"] == 0
    assert sum(line["grad_norm"] is None for line in once) >= 2  # how the scale is found
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run" / "checkpoint-9", copy)
    rest = train(tmp_path / "rest", *arguments, "--resume_from_checkpoint", copy)
    assert exact(rest) == exact(once[9:])
    last = json.loads((tmp_path / "rest" / "checkpoint-24" / "trainer_state.json").read_text())
    assert last["scaler"] == states[1]["scaler"]


def test_gradient_that_is_not_finite_stops_with_the_weights_before_it(data, tmp_path):
    """By a learning rate that is far too high from the second step on."""
    arguments = ["--output_dir", tmp_path / "run", *data, "--learning_rate", 1e30, "--logging_steps", 5]
    done = start(*arguments, "--save_steps", 1)
    message = r"error: The gradient of step (\d+) is not finite, more often than --max_nonfinite_steps 0 allows."
    step = int(re.search(message, done.stderr)[1])
    assert done.returncode == 1 and 2 < step < 5 and "Traceback" not in done.stderr
    debugging = tmp_path / "run" / f"nonfinite-{step - 1}"
    state = json.loads((debugging / "trainer_state.json").read_text())
    assert state["step"] == step - 1 and len(state["samples"]) == 8 and state["samples"][0][0].startswith("train-0000")
    # The weights are those of the last checkpoint; the same command resumes from it, to the same end.
    weights = [
        load_file(path / "model.safetensors") for path in (debugging, debugging.with_name(f"checkpoint-{step - 1}"))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    again = start(*arguments)
    assert again.returncode == 1 and f"Resuming after step {step - 1}." in again.stdout
    assert f"The gradient of step {step} is not finite" in again.stderr
    # And by its path it is one to go on from, with something else.
    shutil.copytree(debugging, tmp_path / "copy")
    calmer = start("--output_dir", tmp_path / "calm", *arguments[2:], "--resume_from_checkpoint", tmp_path / "copy")
    assert calmer.returncode == 1 and f"The gradient of step {step} is not finite" in calmer.stderr
    # Left out, as many as there are, training ends; what is clipped stays finite.
    done = start(*arguments, "--max_nonfinite_steps", 100)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["nonfinite_steps"] == 25 - step


def test_worker_that_dies_is_one_line(data, tmp_path):
    arguments = ["--output_dir", tmp_path / "run", *data, "--max_steps", 10**6, "--dataloader_num_workers", 2]
    process = fork(*arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "checkpoint-10").exists():
        time.sleep(0.01)
    psutil.Process(process.pid).children()[0].kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: A DataLoader worker died (" in stderr
    assert "Traceback" not in stderr


def test_finished_run_of_wsd_is_made_longer(data, tmp_path):
    """From the checkpoint before its decay, which no limit removes: the same as a run of that length."""
    flags = [*data, "--lr_scheduler_type", "wsd", "--warmup_steps", 3, "--save_steps", 4, "--save_total_limit", 1]
    expected = train(tmp_path / "whole", *flags, "--max_steps", 30, "--decay_ratio", 0.3)
    folder = tmp_path / "run"
    done = start("--output_dir", folder, *flags, "--max_steps", 20)
    assert "Train for longer: the same command with a larger --max_steps" in done.stdout and "step 16." in done.stdout
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-16", "checkpoint-20"]
    assert metrics(folder)[-1]["learning_rate"] < 0.3 * metrics(folder)[15]["learning_rate"]
    again = start("--output_dir", folder, *flags, "--max_steps", 20)
    assert again.returncode == 0 and "already finished" in again.stdout
    done = start("--output_dir", folder, *flags, "--max_steps", 30, "--decay_ratio", 0.3)
    assert "Resuming after step 16." in done.stdout and "checkpoint-20 is of a run of 20 steps" in done.stdout
    assert (folder / "checkpoint-20.set_aside").exists()
    assert exact(metrics(folder)) == exact(expected)
    assert_same_run(folder, tmp_path / "whole")
    # It cannot be made shorter, but its decay can begin earlier elsewhere.
    refused = start("--output_dir", folder, *flags, "--max_steps", 20)
    assert refused.returncode == 2 and "can only be made longer here" in refused.stderr
    checkpoint = ["--resume_from_checkpoint", folder / "checkpoint-21"]
    refused = start("--output_dir", tmp_path / "other", *flags, "--max_steps", 24, *checkpoint)
    assert refused.returncode == 2 and "shares its first 19 steps only" in refused.stderr
    assert not (tmp_path / "other").exists()
    other = train(tmp_path / "other", *flags, "--max_steps", 30, "--decay_ratio", 0.2, *checkpoint)
    assert [line["step"] for line in other] == list(range(22, 31)) and exact(other)[0][2] == exact(expected)[20][2]


def test_interrupted_run_of_constant_rate_may_get_another_length(data, tmp_path):
    flags = [*data, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 3, "--eval_steps", 10]
    expected = train(tmp_path / "whole", *flags, "--max_steps", 20)
    train(tmp_path / "run", *flags, "--max_steps", 10)
    assert exact(train(tmp_path / "run", *flags, "--max_steps", 20)) == exact(expected)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
