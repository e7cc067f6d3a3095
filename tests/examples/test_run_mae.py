"""examples/run_mae.py as a user runs it: subprocesses, real files, exit codes, what lies in the directory after."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from configuration_mae import MAEConfig
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.cli.model import build_model
from mae.cli.parser import parse_arguments
from mae.data.bands import bands_of
from mae.data.decoding import EncodedImage
from mae.data.normalization import normalize_images
from mae.training.schedule import learning_rate_at
from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT, write_parquet
from tests.support.runs import ENVIRONMENT, MODEL, SCRIPT, TINY, exact, fork, metrics, run, start, train, tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The run that the others are compared with."""
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    done = run("--output_dir", output_dir, *data)
    assert done.returncode == 0, done.stderr
    return output_dir, done


def test_finished_run_holds_log_checkpoints_model_and_figures(finished):
    output_dir, done = finished
    lines = metrics(output_dir)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert "Note: the data has few row groups (7)" in done.stdout
    keys = {"step", "epoch", "loss", "learning_rate", "grad_norm", "images_per_second", "data_wait", "samples_digest"}
    assert all(set(line) == keys for line in lines)
    # 90 rows in 4 lanes are 88 positions an epoch; base rate x 8 / 256; the first update has rate 0.
    assert lines[10]["epoch"] == pytest.approx(1.0)
    assert lines[0]["learning_rate"] == 0 and max(line["learning_rate"] for line in lines) <= 0.3 * 8 / 256
    assert len({line["samples_digest"] for line in lines}) == 24
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.7 * np.mean([line["loss"] for line in lines[:5]])

    # The default keeps two checkpoints; each is a model of its own.
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-24"]
    final = MAEForPreTraining.from_pretrained(output_dir)
    last = MAEForPreTraining.from_pretrained(output_dir / "checkpoint-24")
    assert all(torch.equal(a, b) for a, b in zip(final.state_dict().values(), last.state_dict().values()))
    assert not final.mae.pos_embed.requires_grad

    processor = AutoImageProcessor.from_pretrained(output_dir)
    encoder = AutoModel.from_pretrained(output_dir)
    pixel_values = processor(Image.new("RGB", (50, 40), "red"), return_tensors="pt").pixel_values
    assert encoder(pixel_values).last_hidden_state.shape == (1, 17, 24)

    for name in ("loss_curve.png", "reconstruction.png"):
        picture = np.array(Image.open(output_dir / name).convert("RGB"))
        assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    for name in ("loss_curve.png", "reconstruction.png", "checkpoint-24", "--model_name_or_path"):
        assert name in done.stdout
    assert "loss=" in done.stderr and "images/s=" in done.stderr and "<" in done.stderr  # the bar and its ETA


def test_second_start_of_a_finished_run_changes_nothing(finished, data):
    output_dir, _ = finished
    before = tree(output_dir)
    # Another division of the same batch, another log: still the same run.
    done = start(
        "--output_dir", output_dir, *data, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2
    )
    assert done.returncode == 0 and "already finished" in done.stdout and "--model_name_or_path" in done.stdout
    assert tree(output_dir) == before


@pytest.mark.parametrize(
    ("processes", "arguments"),
    [
        (1, ["--dataloader_num_workers", 3]),
        (1, ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]),
        (2, ["--per_device_train_batch_size", 4]),
        (2, ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--dataloader_num_workers", 1]),
    ],
)
def test_division_of_the_batch_changes_no_loss_and_no_sample(finished, data, tmp_path, processes, arguments):
    ours = train(tmp_path / "run", *data, *arguments, processes=processes)
    theirs = metrics(finished[0])
    assert [line["samples_digest"] for line in ours] == [line["samples_digest"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    if arguments == ["--dataloader_num_workers", 3]:
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_losses(finished, data, tmp_path, monkeypatch, backend):
    """The same run but for rounding; with the default backend it takes a compiler, and most of a minute."""
    compiled, compile_module = [], torch.nn.Module.compile

    def compile_with(module):
        compiled.append(type(module).__name__)
        compile_module(module, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    ours = train(tmp_path / "run", *data, "--torch_compile", "--gradient_checkpointing")
    assert compiled == ["MAEBlock"] * 3
    theirs = metrics(finished[0])
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    assert (
        load_file(tmp_path / "run" / "model.safetensors").keys() == load_file(finished[0] / "model.safetensors").keys()
    )


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no_compiler")))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    done = start("--output_dir", tmp_path / "run", *data, "--torch_compile")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search("error: --torch_compile does not work here", done.stderr)


def test_command_of_transformers_runs_as_it_stands(data, tmp_path):
    """The command for its run_mae.py, with other data and a small model."""
    command = """
    --remove_unused_columns False --label_names pixel_values --mask_ratio 0.75 --norm_pix_loss --do_train --do_eval
    --base_learning_rate 1.5e-4 --lr_scheduler_type cosine --weight_decay 0.05 --num_train_epochs 2 --warmup_ratio 0.05
    --per_device_train_batch_size 8 --per_device_eval_batch_size 8 --logging_strategy steps --logging_steps 10
    --eval_strategy epoch --save_strategy epoch --load_best_model_at_end True --save_total_limit 3 --seed 1337
    """.split()
    small = [*data[:2], "--config_overrides", MODEL, "--image_size", 32, "--patch_size", 8]
    done = start("--output_dir", tmp_path / "run", *small, *command)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if "has no effect" in line]
    assert len(notes) == 9 and any("--save_strategy" in note and "--save_steps" in note for note in notes)
    lines = metrics(tmp_path / "run")
    assert lines[-1]["step"] == 22  # 2 epochs of 88 images, 8 at once
    # One epoch of the 11 steps each has 0.1 epochs of warm-up.
    schedule = [learning_rate_at(line["step"] / 11 - 1 / 11, 1.5e-4 / 32, 0.1, 2.0) for line in lines]
    assert [line["learning_rate"] for line in lines] == pytest.approx(schedule)
    absolute = start("--output_dir", tmp_path / "rate", *small, *command, "--max_steps", 1, "--learning_rate", 0.5)
    assert (
        absolute.returncode == 0
        and json.loads((tmp_path / "rate" / "run.json").read_text())["recipe"]["learning_rate"]
    )


def test_directory_of_another_run_is_refused_with_the_differences(finished, data, tmp_path):
    output_dir, _ = finished
    before = tree(output_dir)
    done = start("--output_dir", output_dir, *data, "--seed", 7, "--mask_ratio", "0.5")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "recipe.seed was 42, now 7" in done.stderr and "model.mask_ratio was 0.75, now 0.5" in done.stderr
    assert "--overwrite_output_dir" in done.stderr and tree(output_dir) == before


def test_changed_data_is_refused(finished, data, emoji_bytes, tmp_path):
    other = write_parquet(tmp_path / "other" / "train.parquet", emoji_bytes[:89], 16)
    done = start("--output_dir", finished[0], *data, "--dataset_name", other)
    assert (
        done.returncode == 2 and "data.fingerprint was" in done.stderr and "data.images was 90, now 89" in done.stderr
    )
    assert f"the data was --dataset_name {data[1]}, now --dataset_name {other})" in done.stderr


def test_overwrite_replaces_the_run_and_keeps_other_files(data, tmp_path):
    train(tmp_path / "run", *data, "--max_steps", 3)
    (tmp_path / "run" / "mine.txt").write_text("not a file of a run")
    lines = train(tmp_path / "run", *data, "--max_steps", 2, "--seed", 7, "--overwrite_output_dir")
    assert len(lines) == 2 and not (tmp_path / "run" / "checkpoint-3").exists()
    assert (tmp_path / "run" / "mine.txt").exists()


def test_directory_of_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = start("--output_dir", tmp_path, *data)
    assert done.returncode == 2 and "not empty" in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_and_recipe_train_and_their_checkpoint_trains_further(image_folder, finished, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"train_dir: {image_folder}\nmax_steps: 5\nlogging_steps: 2\nimage_size: [32, 64]\npatch_size: 8\n"
        f"config_overrides: {MODEL}\nper_device_train_batch_size: 8\nnorm_pix_loss: true\n"
    )
    lines = train(tmp_path / "run", "--recipe", recipe, "--max_steps", 4)  # a flag wins
    assert [line["step"] for line in lines] == [2, 4]
    model = MAEForPreTraining.from_pretrained(tmp_path / "run")
    assert model.config.image_size == (32, 64) and model.config.norm_pix_loss

    # From a checkpoint, at another image size: starts where that one ended, not from scratch.
    output_dir, _ = finished
    going_on = ["--model_name_or_path", output_dir, "--train_dir", image_folder, "--per_device_train_batch_size", 8]
    lines = train(tmp_path / "more", *going_on, "--max_steps", 1, "--image_size", 40, "--logging_steps", 1)
    assert lines[0]["loss"] < metrics(output_dir)[0]["loss"]
    assert MAEForPreTraining.from_pretrained(tmp_path / "more").config.image_size == 40


def test_flag_wins_over_the_recipe_field_by_field(tmp_path):
    """And a model that a flag names replaces the recipe's."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model_size: small\nimage_size: 64\npatch_size: 8\nnorm_pix_loss: true\n"
        "config_overrides:\n  num_hidden_layers: 2\n  qkv_bias: false\n  hidden_act: relu\n"
    )

    def parse(*argv):
        argv = ["--recipe", str(recipe), *argv]
        return parse_arguments(PreTrainingRecipe, RunArguments, description="", argv=argv)[0]

    config = build_model(parse(), None)[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.qkv_bias, config.hidden_act) == (
        384,
        2,
        False,
        "relu",
    )
    config = build_model(parse("--config_overrides", "num_hidden_layers=1,hidden_act=gelu"), None)[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.qkv_bias, config.hidden_act) == (
        384,
        1,
        False,
        "gelu",
    )
    other = parse("--model_size", "tiny")
    assert (other.model_size, other.config_overrides, other.image_size, other.patch_size) == (
        "tiny",
        "qkv_bias=False,hidden_act=relu",
        [64],
        [8],
    )
    other = parse("--model_name_or_path", CHECKPOINT)
    assert (other.model_size, other.config_overrides, other.image_size, other.patch_size) == (None, None, None, None)
    assert other.norm_pix_loss
    # The name of a field's own flag wins over config_overrides.
    recipe = parse("--config_overrides", "mask_ratio=0.5,num_hidden_layers=1", "--mask_ratio", "0.6")
    config = build_model(recipe, None)[0].config
    assert config.mask_ratio == 0.6


def test_unreadable_images_are_named_and_too_many_stop_the_run(emoji_bytes, tmp_path):
    images = [b"no image" if row % 10 == 3 else data for row, data in enumerate(emoji_bytes[:80])]
    bad = write_parquet(tmp_path / "bad.parquet", images, 16)
    arguments = ["--dataset_name", bad, *TINY, "--max_steps", 16, "--logging_steps", 4]
    # An epoch, enough to judge, ends at step 10; both processes stop at the next that is logged, whoever met them.
    over = run("--output_dir", tmp_path / "whole", *arguments, "--per_device_train_batch_size", 4, processes=2)
    assert over.returncode == 1
    message = r"error.*: (\d+) of 96 samples .*skipped.jsonl.*--max_bad_fraction 0.01"
    assert int(re.search(message, over.stderr)[1]) >= 8 and "of 80" not in over.stderr and "of 88" not in over.stderr
    # With another limit the same run goes on.
    arguments += ["--max_bad_fraction", 0.2]
    whole = start("--output_dir", tmp_path / "whole", *arguments)
    assert whole.returncode == 0 and "Resuming after step 10" in whole.stdout, whole.stderr
    skipped = [json.loads(line) for line in (tmp_path / "whole" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in skipped) == [3, 13, 23, 33, 43, 53, 63, 73]
    assert all(line["file"] == "bad.parquet" and "no image of a known format" in line["reason"] for line in skipped)
    shown = [line for line in over.stderr.splitlines() if line.startswith("Skipped an unreadable image")]
    assert len(shown) == 5 and "skipped.jsonl" in shown[-1] and "Skipped" not in whole.stderr
    parts = train(
        tmp_path / "parts", *arguments, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 4,
        processes=2,
    )  # fmt: skip
    rows = [json.loads(line)["row"] for line in (tmp_path / "parts" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(rows) == [3, 13, 23, 33, 43, 53, 63, 73]
    theirs = metrics(tmp_path / "whole")
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    assert [line["samples_digest"] for line in parts] == [line["samples_digest"] for line in theirs]


def test_data_without_a_readable_image_is_refused(emoji_bytes, tmp_path):
    bad = write_parquet(tmp_path / "bad" / "train.parquet", [b"no image"] * 40, 16).parent
    done = start("--output_dir", tmp_path / "run", "--dataset_name", bad, *TINY)
    assert done.returncode == 2 and re.search("None of .*40 images", done.stderr)
    assert not (tmp_path / "run").exists()
    # Validation images that can be read say nothing about the training images.
    write_parquet(bad / "test.parquet", emoji_bytes[:8], 8)
    done = start("--output_dir", tmp_path / "run", "--dataset_name", bad, *TINY)
    assert done.returncode == 1 and "error: None of the first 8 images can be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_rank_reports_its_own_broken_data(emoji_bytes, tmp_path):
    """Rows 0 to 31 are the lanes of both processes; which of them meets the missing rows is open."""
    path = write_parquet(tmp_path / "data" / "train.parquet", emoji_bytes[:64], 16)
    arguments = ["--output_dir", tmp_path / "run", "--dataset_name", path.parent, *TINY]
    arguments += ["--max_steps", 400, "--per_device_train_batch_size", 4, "--logging_steps", 100]
    process = fork(*arguments, processes=2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.01)
    write_parquet(path, emoji_bytes[:20], 16)  # the file shrinks under the run
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0 and re.search(
        r"error( in process 1)?: train.parquet (has no|cannot be read at) row \d+", stderr
    )


def test_printed_command_trains_further(finished, data, tmp_path):
    """On the same data, from these weights; and it repeats no flag that would push or overwrite."""
    output_dir, done = finished
    (line,) = [line for line in done.stdout.splitlines() if "--model_name_or_path" in line]
    printed = shlex.split(line)
    assert printed[:2] == ["accelerate", "launch"] and printed[-1] == f"{output_dir}_more"
    assert printed.count("--output_dir") == 1 and str(output_dir / "recipe.yaml") in printed
    assert printed[2] == str(SCRIPT)
    going_on = start(*printed[3:], "--output_dir", tmp_path / "more", "--max_steps", 1)
    assert going_on.returncode == 0, going_on.stderr
    assert metrics(tmp_path / "more")[0]["loss"] < 0.8 * metrics(output_dir)[0]["loss"]
    identity = [json.loads((folder / "run.json").read_text()) for folder in (output_dir, tmp_path / "more")]
    assert identity[0]["data"] == identity[1]["data"]
    assert identity[0]["initial_weights"] is None and identity[1]["initial_weights"] is not None


@pytest.mark.parametrize("by", ["flag", "launcher"])
def test_precision_is_part_of_the_identity(finished, data, monkeypatch, by):
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    done = start("--output_dir", finished[0], *data, *(["--bf16"] if by == "flag" else []))
    assert done.returncode == 2 and "mixed_precision was 'no', now 'bf16'" in done.stderr


def test_accelerate_launch_with_the_embedded_data(tmp_path):
    launcher = str(Path(sys.executable).with_name("accelerate"))
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [launcher, "launch", "--cpu", "--num_processes", "1", str(SCRIPT), "--max_steps", "3", "--logging_steps", "1"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The launcher sets one thread if the user names no number.
    assert f"on 1 x cpu with {len(os.sched_getaffinity(0))} threads each" in done.stdout
    assert "on 1,716 images" in done.stdout and len(metrics(tmp_path / "outputs" / "run_mae")) == 3


def test_normalisation_of_ones_own(tmp_path):
    """Measured, in the log and in the saved processor; of arrays, which have no usual one."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 65536, (40, 4), dtype=np.uint16)
    for number, colour in enumerate(colours):
        np.save(folder / f"{number}.npy", np.broadcast_to(colour, (40, 40, 4)))
    overrides = f"{MODEL},num_channels=4"
    arguments = ["--train_dir", folder, *TINY, "--config_overrides", overrides, "--max_steps", 2]
    done = start("--output_dir", tmp_path / "run", *arguments, "--image_mean", "auto")
    assert done.returncode == 0, done.stderr
    assert "Measured on 40 images: --image_mean [0." in done.stdout
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert processor.image_mean == pytest.approx(colours.mean(0) / 65535, abs=1e-4)
    assert processor.image_std == pytest.approx(colours.std(0) / 65535, abs=1e-4)
    # The same numbers by hand are the same run.
    statistics = ["--image_mean", *processor.image_mean, "--image_std", *processor.image_std]
    again = start("--output_dir", tmp_path / "run", *arguments, *statistics)
    assert again.returncode == 0 and "already finished" in again.stdout


def test_bands_of_scenes_with_missing_data(tmp_path):
    """What is measured is in the log, the model, the recipe; and the lines of the card prepare images in this way."""
    tifffile = pytest.importorskip("tifffile")
    generator = np.random.default_rng(0)
    (tmp_path / "scenes").mkdir()
    for number in range(2):
        scene = generator.normal(1000, 300, (128, 128, 5)).astype(np.int16)
        scene[:32] = -9999
        file = tmp_path / "scenes" / f"{number}.tif"
        tifffile.imwrite(file, scene, photometric="minisblack", planarconfig="contig", tile=(64, 64))
    arguments = ["--train_dir", tmp_path / "scenes", "--tile_size", 32, *TINY, "--config_overrides", MODEL]
    arguments += ["--max_steps", 2, "--channels", "5,2", "--nodata", -9999, "--image_mean", "auto"]
    done = start("--output_dir", tmp_path / "run", *arguments, "--value_range", "auto")
    assert done.returncode == 0, done.stderr
    assert "images: --value_range " in done.stdout and "of their values are missing data" in done.stdout
    config = MAEConfig.from_pretrained(tmp_path / "run")
    assert config.num_channels == 2 and config.input_channels == [5, 2] and config.nodata == -9999
    for low, high in config.value_range:  # of a normal distribution
        assert low == pytest.approx(1000 - 2.576 * 300, abs=60) and high == pytest.approx(1000 + 2.576 * 300, abs=60)
    assert config.image_mean == pytest.approx([0.5, 0.5], abs=0.03)
    # The recipe has the numbers, and they are the same run.
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    again = start("--output_dir", tmp_path / "run", *arguments, "--value_range", *recipe["value_range"])
    assert again.returncode == 0 and "already finished" in again.stdout, again.stderr
    # The lines of the card.
    block = (tmp_path / "run" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    lines = [line for line in block.splitlines() if line.startswith(("values[", "low", "mean", "pixel_values"))]
    values = torch.from_numpy(scene[16:48, 16:48][..., [4, 1]].transpose(2, 0, 1).astype(np.float32))[None]
    names = {"torch": torch, "values": values.clone()}
    exec("\n".join(lines), names)
    tile = EncodedImage(str(tmp_path / "scenes" / "1.tif"), bands_of(config)).decode()[None, :, 16:48, 16:48]
    assert torch.allclose(names["pixel_values"], normalize_images(tile, config), atol=1e-5)
    assert (names["pixel_values"][..., :16, :] == 0).all()


CHECKPOINT = str(ROOT / "tests" / "fixtures" / "checkpoint_pretraining")
# A mistake, and what its error must name: the flag, the value, the way out.
ERRORS = [
    ("--mask_ration 0.5", "--mask_ration.*--mask_ratio"),
    ("--lr_scheduler_type linear", "--lr_scheduler_type linear.*cosine"),
    ("--warmup_ratio 5", r"--warmup_ratio 5\.0 .*\[0, 1\]"),
    ("--max_steps many", "--max_steps.*'many'"),
    ("--max_steps 0", "--max_steps 0 .*--num_train_epochs"),
    ("--num_train_epochs 0.001", r"--num_train_epochs 0\.001 of 1,712 images"),
    ("--train_dir nowhere", "--train_dir nowhere"),
    ("--train_dir empty", "--train_dir empty holds no image files"),
    ("--dataset_name ./nowhere", "--dataset_name ./nowhere"),
    ("--recipe nowhere.yaml", "--recipe nowhere.yaml cannot be read"),
    ("--hidden_size 3", "--hidden_size"),
    ("--config_overrides hidden_size=10", "hidden_size=10 must be divisible by num_attention_heads"),
    ("--config_overrides hidden=10", "--config_overrides hidden=10.*hidden_size"),
    ("--config_overrides hidden_size", "--config_overrides hidden_size"),
    ("--config_overrides num_channels=13", "13 channels.*--image_mean auto"),
    ("--config_overrides num_channels=13,image_mean=0,image_std=1", "it has 3 channels .* but the model takes 13"),
    ("--image_mean 0.5", "--image_mean and --image_std"),
    ("--image_mean auto --image_std 0.5", "--image_mean auto .*--image_std"),
    ("--image_mean a --image_std b", "--image_mean a"),
    ("--image_mean 0.5 0.5 --image_std 1", r"image_mean=\[0\.5, 0\.5\]"),
    ("--bf16 --fp16", "--bf16 and --fp16"),
    ("--fp16", "float16 needs a GPU.*--bf16"),
    ("--train_val_split 1", r"--train_val_split 1\.0"),
    ("--ema_decay 1", r"--ema_decay 1\.0 .*\[0, 1\)"),
    ("--report_to comet_ml", "--report_to comet_ml.*tensorboard, trackio, wandb"),
    ("--eval_steps 0", "--eval_steps 0 must be at least 1"),
    (
        "--gradient_accumulation_steps 2000",
        "--per_device_train_batch_size 32 x --gradient_accumulation_steps 2000 x 1 processes.*1712 images",
    ),
    ("--max_bad_fraction 2", r"--max_bad_fraction 2\.0 .*\[0, 1\]"),
    ("--config_overrides drop_path_rate=0.1", "--config_overrides drop_path_rate=0"),
    (f"--model_name_or_path {CHECKPOINT} --model_size tiny", "192"),
    ("--seed -1", "--seed -1"),
    ("--image_size 60", "image_size=60 is not divisible by patch_size=8"),
    ("--model_size giant", "'giant'.*huge"),
    ("--model_name_or_path ./nowhere", "./nowhere"),
    (f"--model_name_or_path {CHECKPOINT} --config_overrides num_attention_heads=4", "num_attention_heads=2"),
    (f"--model_name_or_path {CHECKPOINT} --config_overrides num_channels=1", "inflate_channels"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[Path(arguments).name for arguments, _ in ERRORS])
def test_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = start(*arguments.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(f"^error: .*{message}", done.stderr)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP needs several processes, each with a GPU"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps 4"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, ""),
    ],
)
def test_launcher_that_asks_for_the_impossible_is_refused(variables, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = start()
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs").exists()


def test_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    done = start("--report_to", "trackio")
    assert done.returncode == 2 and re.search("error: --report_to trackio .*pip install trackio", done.stderr)


def test_mistake_of_a_process_has_exit_code_2_and_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("--train_dir", "empty", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --train_dir empty holds no image files")
    assert not (tmp_path / "outputs").exists()


def test_cross_attention_decoder_trains_resumes_and_is_named_on_the_card(data, tmp_path):
    """The same run by two processes, and after a restart. Its evaluation is over all removed patches."""
    overrides = f"{MODEL},decoder_type=cross_attention,prediction_ratio=0.25,weighted_feature_maps=true"
    arguments = [*data, "--config_overrides", overrides, "--max_steps", 12, "--save_steps", 6]
    whole = train(tmp_path / "whole", *arguments)
    divided = train(tmp_path / "divided", *arguments, "--per_device_train_batch_size", 4, processes=2)
    assert [line["samples_digest"] for line in divided] == [line["samples_digest"] for line in whole]
    assert [line["loss"] for line in divided] == pytest.approx([line["loss"] for line in whole], rel=1e-5)
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "copy")
    rest = train(tmp_path / "rest", *arguments, "--resume_from_checkpoint", tmp_path / "copy")
    assert exact(rest) == exact(whole)[6:]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "| Decoder | cross-attention (CrossMAE), trained on 25% of the patches |" in card
    assert (tmp_path / "whole" / "reconstruction.png").exists()
    refused = start("--output_dir", tmp_path / "whole", *data, "--max_steps", 12, "--save_steps", 6)
    assert refused.returncode == 2 and "decoder_type" in refused.stderr
