"""examples/convert_checkpoint.py as a user runs it; run_mae.py from checkpoints in other layouts."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForPreTraining, ViTMAEForPreTraining

from mae.arguments.recipes import PreTrainingRecipe
from mae.cli.model import build_model, read_checkpoint
from mae.conversion.layouts import LAYOUTS, OFFICIAL, VIT_MAE_SAVED_BY_5, from_native
from mae.conversion.loading import load_checkpoint
from mae.conversion.saving import full_state_dict, save_checkpoint
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining, MAEModel
from tests.support.checkpoints import (
    TINY_HEADS,
    assert_close,
    assert_same_state,
    images_and_noise,
    make_model_of_kind,
    make_vit_mae,
    save_torch,
    write_malicious,
    write_official_checkpoint,
)
from tests.support.data import ROOT
from tests.support.runs import run as run_mae
from tests.support.runs import run_here


SCRIPT = ROOT / "examples" / "convert_checkpoint.py"
HEADS = "num_attention_heads=3,decoder_num_attention_heads=4"


def convert(*arguments):
    return run_here(SCRIPT, *arguments)


def differences(stdout):
    """The largest differences that the checks printed."""
    return [float(number) for number in re.findall(r"check of .*: outputs .* by (\S+)$", stdout, re.MULTILINE)]


def test_official_file_becomes_a_whole_directory(tmp_path):
    """The Auto classes load the directory, and the outputs are the recorded ones."""
    path, tensors, _ = write_official_checkpoint(tmp_path, "official_pretrain_norm_pixels", ".pth")
    output = tmp_path / "deep" / "native"
    command = [sys.executable, SCRIPT, "--input", path, "--output", output, "--config_overrides", HEADS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "official layout, 62 tensors, encoder and decoder: 2 blocks, 48 wide, 3 heads" in done.stdout
    assert "decoder_blocks.*.attn.qkv -> decoder.blocks.*.attn.qkv (4)" in done.stdout
    counts = [int(count) for count in re.findall(r"-> .* \((\d+)\)$", done.stdout, re.MULTILINE)]
    assert sum(counts) == 62
    (read,) = differences(done.stdout)
    assert read <= 1e-5
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "attention_mae.py",
        "checks_mae.py",
        "config.json",
        "configuration_mae.py",
        "cross_decoder_mae.py",
        "dense_mae.py",
        "layers_mae.py",
        "model.safetensors",
        "modeling_mae.py",
        "outputs_mae.py",
        "patches_mae.py",
        "preprocessor_config.json",
    ]
    model = AutoModelForPreTraining.from_pretrained(output)
    assert model.config.norm_pix_loss  # by the Namespace
    with torch.no_grad():
        assert_close(model(tensors["pixel_values"], noise=tensors["noise"]).logits, tensors["pred"])
    card = ModelCard.load(output / "README.md")
    assert card.data.library_name == "transformers"
    assert AutoImageProcessor.from_pretrained(output).crop_size == {"height": 32, "width": 32}
    assert not list(output.parent.glob("*.unfinished"))


@pytest.mark.parametrize("layout", ["official", "timm", "vit_mae"])
def test_checkpoint_survives_a_round_trip(layout, tmp_path):
    make_model_of_kind("pretraining").save_pretrained(tmp_path / "native")
    done = convert("--input", tmp_path / "native", "--output", tmp_path / "other", "--to", layout)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "other" / ("checkpoint.pth" if layout == "official" else "")
    back = convert("--input", path, "--output", tmp_path / "back", "--from", layout)
    assert back.returncode == 0, back.stderr
    expected = MAEForPreTraining.from_pretrained(tmp_path / "native")
    if layout == "timm":
        assert "left out, as timm has no place for it: decoder (44 tensors)" in done.stdout
        assert "decoder.mask_token -> (left out) (1)" in done.stdout
        expected = expected.mae
    assert_same_state(load_checkpoint(tmp_path / "back")[0], expected)
    assert len(differences(done.stdout)) == (1 if layout == "official" else 2) and len(differences(back.stdout)) == 1
    assert max(differences(done.stdout) + differences(back.stdout)) <= 1e-5
    assert "the same bit for bit" in done.stdout and "the same bit for bit" in back.stdout


def test_model_on_the_hub_is_converted(tmp_path):
    make_vit_mae().save_pretrained(tmp_path / "other")
    HfApi().create_repo("me/to-convert")
    HfApi().upload_folder(folder_path=tmp_path / "other", repo_id="me/to-convert")
    done = convert("--input", "me/to-convert", "--output", tmp_path / "native")
    assert done.returncode == 0, done.stderr
    assert "me/to-convert at " in done.stdout and "vit.layernorm -> mae.norm (2)" in done.stdout
    assert ModelCard.load(tmp_path / "native" / "README.md").data.base_model == "me/to-convert"
    images, noise = images_and_noise()
    native, other = (
        cls.from_pretrained(path)
        for cls, path in ((MAEForPreTraining, tmp_path / "native"), (ViTMAEForPreTraining, "me/to-convert"))
    )
    with torch.no_grad():
        assert_close(native(images, noise=noise).logits, other(images, noise=noise).logits)


def test_size_channels_and_labels_are_changed_and_reported(tmp_path):
    """The check compares the checkpoint as it is."""
    model = make_model_of_kind("classification_mean")
    model.save_pretrained(tmp_path / "native")
    done = convert(
        *("--input", tmp_path / "native", "--output", tmp_path / "other", "--image_size", 48, 16),
        *("--config_overrides", "num_channels=1,num_labels=7", "--inflate_channels", "mean"),
    )
    assert done.returncode == 0, done.stderr
    assert "3 channels inflated to 1 (mean)" in done.stdout
    assert "positions resampled from 4 x 4 to 6 x 2 patches" in done.stdout
    assert "newly initialised: head (2 tensors)" in done.stdout and "(new) -> head (2)" in done.stdout
    other, _ = load_checkpoint(tmp_path / "other")
    assert (other.config.image_size, other.config.num_channels, other.config.num_labels) == ((48, 16), 1, 7)
    expected, _ = load_checkpoint(
        tmp_path / "native", image_size=(48, 16), num_channels=1, num_labels=7, inflate_channels="mean"
    )
    with torch.no_grad():
        expected.head.weight.copy_(other.head.weight)
    assert_same_state(other, expected)


def test_processor_of_the_user_is_kept_if_it_fits(tmp_path):
    """Else its mean and std are kept."""
    make_model_of_kind("encoder").save_pretrained(tmp_path / "native")
    processor = json.loads((tmp_path / "native" / "preprocessor_config.json").read_text())
    processor |= {"resample": 0, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "native" / "preprocessor_config.json").write_text(json.dumps(processor))
    sizes = {"again": [], "larger": ["--image_size", 48]}
    sizes["other_patches"] = ["--image_size", 16, "--config_overrides", "patch_size=4"]
    sizes |= {"vit_mae": ["--to", "vit_mae"], "timm": ["--to", "timm"]}
    for name, arguments in sizes.items():
        done = convert("--input", tmp_path / "native", "--output", tmp_path / name, *arguments)
        assert done.returncode == 0, done.stderr
        config = load_checkpoint(tmp_path / name)[0].config
        assert (config.image_mean, config.image_std) == ([0.5] * 3, [0.25] * 3), name
        if name == "again":
            assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text()) == processor
        elif name != "timm":
            other = AutoImageProcessor.from_pretrained(tmp_path / name)
            assert other.crop_size["height"] == config.image_size and other.resample == 3


@pytest.mark.parametrize(
    ("kind", "fields", "layouts"),
    [
        ("pretraining", {"masking": "block"}, ["mae", "official", "vit_mae"]),
        ("pretraining", {"masking": "grid", "mask_ratio": 0.75}, ["mae", "vit_mae"]),
        ("classification_mean", {"hidden_act": "relu"}, ["mae"]),
        ("encoder", {"hidden_act": "relu"}, ["mae", "vit_mae"]),
        ("encoder", {"layer_norm_eps": 0.1}, ["mae", "vit_mae"]),
        ("classification_cls", {"layer_norm_eps": 0.1}, ["mae"]),
        ("classification_cls", {"hidden_size": 44, "intermediate_size": 60}, ["mae", "timm", "official"]),
        ("pretraining", {"num_channels": 1, "image_mean": None, "image_std": None}, ["mae", "vit_mae"]),
    ],
)
def test_model_with_other_settings_is_converted(kind, fields, layouts, tmp_path):
    make_model_of_kind(kind, **fields).save_pretrained(tmp_path / "native")
    for layout in layouts:
        done = convert("--input", tmp_path / "native", "--output", tmp_path / layout, "--to", layout)
        assert done.returncode == 0, done.stderr
        if layout == "vit_mae" and "masking" in fields:
            assert f"left out, as vit_mae has no place for it: masking={fields['masking']}" in done.stdout


def test_size_that_the_file_does_not_state_holds_for_the_check_too(tmp_path):
    model = make_model_of_kind("classification_cls", image_size=(24, 32))
    with torch.no_grad():
        model.mae.pos_embed.normal_()
    torch.save(from_native(full_state_dict(model), OFFICIAL), tmp_path / "odd.pth")
    arguments = ["--image_size", 24, 32, "--config_overrides", "num_attention_heads=2,num_labels=5"]
    done = convert("--input", tmp_path / "odd.pth", "--output", tmp_path / "native", *arguments)
    assert done.returncode == 0, done.stderr
    assert len(differences(done.stdout)) == 1


def test_card_names_no_path(tmp_path, monkeypatch):
    make_model_of_kind("encoder").save_pretrained(tmp_path / "secret" / "native")
    monkeypatch.chdir(tmp_path / "secret" / "native")
    for number, name in enumerate([".", f"{tmp_path}/secret/native/"]):
        assert convert("--input", name, "--output", tmp_path / f"{number}").returncode == 0
        card = (tmp_path / f"{number}" / "README.md").read_text()
        assert "converted from `native`" in card and "secret" not in card and "blocks of width 24" in card


def test_check_without_timm_is_by_transformers_or_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for kind, message in [
        ("classification_mean", "none; timm, which has this model, is not installed"),
        ("encoder", "differ from transformers' ViTMAE's by"),
    ]:
        make_model_of_kind(kind).save_pretrained(tmp_path / kind)
        done = convert("--input", tmp_path / kind, "--output", tmp_path / f"{kind}_2")
        assert done.returncode == 0 and message in done.stdout, done.stderr


def error_of(*arguments):
    done = convert(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "m.pth", "--output", "output"], "is refused: its pickle asks for"),
        (["--input", "native", "--output", "output", "--to", "vit_mae"], "ViTMAE has no classifier"),
        (
            ["--input", "native", "--output", "output", "--to", "onnx"],
            "--to onnx is unknown: choose one of mae, official",
        ),
        (["--input", "native", "--output", "taken"], "--output taken exists"),
        (["--input", "native", "--output", "output", "--config_overrides", "hidden_size=48"], "hidden_size=24"),
        (["--input", "native", "--output", "output", "--from", "vit_mae"], "vit_mae layout"),
        (["--input", "native", "--output", "output/deep/er", "--to", "vit_mae"], "ViTMAE has no classifier"),
        (["--input", "native", "--output", ""], "exists"),
        (["--input", "native", "--output", "x" * 300], "File name too long"),
        (["--input", "native", "--output", "m.pth/below"], "m.pth/below cannot be"),
        (
            ["--input", "native", "--output", "output", "--model_revision", "v1"],
            "a revision (v1) is for models on the Hub",
        ),
        (["--input", "native", "--output", "output", "--config_overrides", "x=1"], "--config_overrides x=1"),
        (["--input", "native", "--output", "output", "--image_size", "8", "8", "8"], "--image_size 8 8 8"),
        (["--input", "native", "--output", "output", "--prefix", "teacher"], "'teacher.'"),
        (["--input", "native", "--output", "output", "--state_key", "teacher"], "'teacher'"),
        (
            ["--input", "natve", "--output", "output"],
            "natve is neither a file nor a directory here (did you mean native?)",
        ),
        (["--output", "output"], "--input"),
    ],
)
def test_error_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch):
    write_malicious(tmp_path)
    make_model_of_kind("classification_mean").save_pretrained(tmp_path / "native")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in error_of(*arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_entry_and_prefix_choose_the_weights(tmp_path):
    model = make_model_of_kind("encoder")
    teacher = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"student": {name: tensor + 1 for name, tensor in teacher.items()}}
    content["teacher"] = {**teacher, "head.weight": torch.zeros(3)}
    path = save_torch(tmp_path / "dino.ckpt", content)
    arguments = ["--input", path, "--output", tmp_path / "native", "--config_overrides", "num_attention_heads=2"]
    assert "--state_key" in error_of(*arguments)
    assert "--prefix" in error_of(*arguments, "--state_key", "teacher")
    done = convert(*arguments, "--state_key", "teacher", "--prefix", "backbone")
    assert done.returncode == 0, done.stderr
    assert_same_state(load_checkpoint(tmp_path / "native")[0], model)
    assert "left out: head.weight" in done.stdout


def test_compiled_model_is_converted(tmp_path):
    model = make_model_of_kind("pretraining")
    path = save_torch(tmp_path / "compiled.pth", torch.compile(model).state_dict())
    heads = ",".join(f"{name}={value}" for name, value in TINY_HEADS.items())
    done = convert("--input", path, "--output", tmp_path / "native", "--config_overrides", heads)
    assert done.returncode == 0, done.stderr
    assert_same_state(load_checkpoint(tmp_path / "native")[0], model)


def test_wrong_conversion_is_refused(tmp_path, monkeypatch):
    """Two tensors have changed places; transformers reads the file by itself, and computes something else."""
    make_vit_mae().save_pretrained(tmp_path / "other")
    block = VIT_MAE_SAVED_BY_5.block
    monkeypatch.setitem(block, "norm1", "layernorm_after")
    monkeypatch.setitem(block, "norm2", "layernorm_before")
    message = "differs from transformers' ViTMAE"
    assert message in error_of("--input", tmp_path / "other", "--output", tmp_path / "native")
    assert not (tmp_path / "native").exists()


def test_unfinished_directory_of_somebody_else_is_not_removed(tmp_path):
    make_model_of_kind("encoder").save_pretrained(tmp_path / "native")
    (tmp_path / "output.unfinished").mkdir()
    (tmp_path / "output.unfinished" / "precious").write_text("mine")
    assert convert("--input", tmp_path / "native", "--output", tmp_path / "output").returncode == 0
    assert (tmp_path / "output.unfinished" / "precious").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native", "output", "output.unfinished"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_script_and_leaves_nothing(number, code, tmp_path, monkeypatch):
    make_model_of_kind("encoder").save_pretrained(tmp_path / "native")

    def save(tensors, path, **kwargs):
        assert [folder.suffix for folder in tmp_path.iterdir() if folder.name != "native"] == [".unfinished"]
        os.kill(os.getpid(), number)

    monkeypatch.setattr("mae.conversion.saving.save_file", save)
    done = convert("--input", tmp_path / "native", "--output", tmp_path / "other", "--to", "timm")
    assert done.returncode == code and len(done.stderr.splitlines()) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


@pytest.mark.parametrize("layout", ["mae", "official", "timm", "vit_mae"])
def test_full_disk_leaves_nothing(layout, tmp_path):
    """The weights do not fit into the 20,000 bytes that files may have here."""
    make_model_of_kind("encoder").save_pretrained(tmp_path / "native")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = error_of("--input", tmp_path / "native", "--output", tmp_path / "other", "--to", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "other cannot be written: " in message
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_writer_that_loses_a_bit_is_noticed(tmp_path, monkeypatch):
    make_model_of_kind("encoder").save_pretrained(tmp_path / "native")

    def save(tensors, path, **kwargs):
        tensors["blocks.1.norm1.bias"] = tensors["blocks.1.norm1.bias"] + 1e-6
        save_file(tensors, path, **kwargs)

    monkeypatch.setattr("mae.conversion.saving.save_file", save)
    message = error_of("--input", tmp_path / "native", "--output", tmp_path / "other", "--to", "timm")
    assert "blocks.1.norm1.bias was not written as it is" in message
    assert not (tmp_path / "other").exists()


# Continued pre-training


THREE_STEPS = ["--per_device_train_batch_size", 8, "--max_steps", 3, "--warmup_epochs", 0, "--logging_steps", 1]


def test_pre_training_from_other_layouts_gives_the_same_losses(tmp_path, image_folder):
    """The same images and masks go through the same weights."""
    make_model_of_kind("pretraining", norm_pix_loss=True, image_mean=None, image_std=None).save_pretrained(
        tmp_path / "mae"
    )
    save_checkpoint(MAEForPreTraining.from_pretrained(tmp_path / "mae"), tmp_path / "vit_mae", "vit_mae")
    losses = []
    for layout in ("mae", "vit_mae"):
        output = tmp_path / f"run_{layout}"
        arguments = ["--model_name_or_path", tmp_path / layout, "--train_dir", image_folder, "--output_dir", output]
        done = run_mae(*arguments, *THREE_STEPS)
        assert done.returncode == 0, done.stderr
        assert f"{layout} layout, " in done.stdout
        losses.append([json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == losses[1]


def test_pre_training_from_an_encoder_on_the_hub(tmp_path, image_folder):
    """Half precision, a new decoder, another image size; positions stay frozen."""
    encoder = make_model_of_kind("encoder", image_mean=None, image_std=None).bfloat16()
    encoder.push_to_hub("me/encoder")
    decoder = "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2"
    done = run_mae(
        *("--model_name_or_path", "me/encoder", "--train_dir", image_folder, "--output_dir", tmp_path / "run"),
        *("--config_overrides", decoder, "--image_size", 48, *THREE_STEPS),
    )
    assert done.returncode == 0, done.stderr
    assert "newly initialised: decoder (20 tensors)" in done.stdout and "resampled from 4 x 4 to 6 x 6" in done.stdout
    model = MAEForPreTraining.from_pretrained(tmp_path / "run")
    assert model.dtype == torch.float32 and model.config.image_size == 48
    expected = MAEModel.from_pretrained("me/encoder", dtype=torch.float32, image_size=48)
    assert torch.equal(model.mae.pos_embed, expected.pos_embed)
    assert not torch.equal(model.mae.blocks[0].attn.qkv.weight, expected.blocks[0].attn.qkv.weight)


def test_recipe_states_what_the_file_does_not(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(load_file(write_official_checkpoint(tmp_path, "official_classify_cls")[0]), path)
    recipe = PreTrainingRecipe(model_name_or_path=str(path))
    with pytest.raises(UserError, match="give num_attention_heads"):
        build_model(recipe, read_checkpoint(recipe))
    recipe = replace(recipe, config_overrides="num_attention_heads=3,decoder_num_hidden_layers=1", patch_size=[4])
    model, report = build_model(recipe, read_checkpoint(recipe))
    assert model.config.patch_size == 4 and model.config.decoder_num_hidden_layers == 1
    assert "patch projections resampled from 8 x 8 to 4 x 4" in str(report)
    again, _ = build_model(recipe, read_checkpoint(recipe))
    assert_same_state(again, model)


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_batch_norm_of_a_linear_probe_goes_into_the_classifier(layout, tmp_path):
    model = make_model_of_kind("classification_cls", head_batch_norm=True)
    with torch.no_grad():
        model.head_norm.running_mean.normal_()
        model.head_norm.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path / "native")
    done = convert("--input", tmp_path / "native", "--output", tmp_path / "other", "--to", layout)
    assert done.returncode == 0, done.stderr
    again, _ = load_checkpoint(next((tmp_path / "other").glob("*.pth"), tmp_path / "other"))
    assert not again.config.head_batch_norm
    pixel_values, _ = images_and_noise()
    assert_close(again(pixel_values).logits, model(pixel_values).logits)
    done = convert("--input", tmp_path / "native", "--output", tmp_path / "copy")
    assert done.returncode == 0 and "batch norm before the classifier" in done.stdout, done.stderr
    assert torch.equal(load_checkpoint(tmp_path / "copy")[0](pixel_values).logits, model(pixel_values).logits)


def test_help_names_every_layout():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert f"Layout of the output: {', '.join(LAYOUTS)}" in " ".join(done.stdout.split())
