"""Command lines, recipe files, and which of both counts."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest

from mae.arguments.data import DataArguments
from mae.arguments.flags import GROUPS
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.parser import parse_arguments
from mae.utils.errors import UserError
from tests.support.data import ROOT
from tests.support.runs import start


def parse(*argv, recipe=None, tmp_path=None):
    argv = [str(argument) for argument in argv]
    if recipe is not None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        argv += ["--recipe", str(path)]
    return parse_arguments(PreTrainingRecipe, PreTrainingArguments, description="A script.", argv=argv)


def test_no_argument_gives_the_defaults():
    assert parse() == (PreTrainingRecipe(), PreTrainingArguments())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--mask_ration", "0.5"], "--mask_ration. Did you mean --mask_ratio?"),
        (["--mask-ration=0.5"], "--mask-ration. Did you mean --mask_ratio?"),
        (["--epochs", "5"], "--epochs. Did you mean --num_train_epochs?"),
        (["--hidden_size", "192"], "--config_overrides hidden_size="),
        (["stray"], "stray"),
        (["--max_steps", "many"], "--max_steps: invalid int value: 'many'"),
        (["--max_steps"], "--max_steps: expected one argument"),
        (["--bf16", "perhaps"], "--bf16"),
        (["--hub_token", "hf_secret"], "hf auth login"),
        (["--token=hf_secret"], "hf auth login"),
    ],
)
def test_wrong_argument_is_one_line_that_names_it(argv, message):
    with pytest.raises(UserError) as found:
        parse(*argv)
    assert message in str(found.value) and "\n" not in str(found.value) and "hf_secret" not in str(found.value)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("", "must hold lines of the form 'flag: value'"),
        ("# a comment alone\n", "must hold lines"),
        ("- mask_ratio\n", "must hold lines"),
        ("just a sentence", "must hold lines"),
        ("mask_ratio: [0.5", "is not YAML"),
        ("mask_ratio: 0.5\n  seed: 1\n", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("mask_ration: 0.5\n", "unknown flag mask_ration. Did you mean mask_ratio?"),
        ("1: 2\n", "unknown flag 1"),
        ("recipe: other.yaml\n", "unknown flag recipe"),
        ("mask_ratio: much\n", "mask_ratio: invalid float value: 'much'"),
        ("mask_ratio: [0.5, 0.6]\n", "mask_ratio takes one value, not 2"),
        ("config_overrides: {hidden_size: [1, 2]}\n", "the values of config_overrides must be numbers or words"),
        ("bf16: perhaps\n", "bf16"),
    ],
)
def test_wrong_recipe_is_one_line_that_names_file_and_flag(recipe, message, tmp_path):
    with pytest.raises(UserError) as found:
        parse(recipe=recipe, tmp_path=tmp_path)
    text = str(found.value)
    assert message in text and f"--recipe {tmp_path / 'recipe.yaml'}" in text and "\n" not in text


@pytest.mark.parametrize("path, words", [("missing.yaml", "No such file"), (".", "Is a directory")])
def test_recipe_that_is_no_file_is_refused(path, words, tmp_path):
    with pytest.raises(UserError, match=words):
        parse("--recipe", tmp_path / path)


def test_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    text = "mask_ratio: 0.5\nseed: 7\nimage_size: [32, 64]\nbf16: true\nsave_steps: null\n"
    recipe, arguments = parse("--seed", 8, recipe=text, tmp_path=tmp_path)
    assert (recipe.seed, recipe.mask_ratio, recipe.image_size) == (8, 0.5, [32, 64])
    assert arguments.bf16 is True and arguments.save_steps == PreTrainingArguments().save_steps


def test_value_on_the_command_line_drops_what_it_replaces(tmp_path):
    text = "learning_rate: 0.1\nmax_steps: 5\nwarmup_ratio: 0.5\nmodel_size: tiny\n"
    recipe, _ = parse(
        "--base_learning_rate", 1e-3, "--num_train_epochs", 2, "--warmup_steps", 1, "--config_name", "x",
        recipe=text, tmp_path=tmp_path,
    )  # fmt: skip
    assert (recipe.learning_rate, recipe.max_steps, recipe.warmup_ratio, recipe.model_size) == (None, -1, None, None)


def test_configuration_is_overridden_field_by_field(tmp_path):
    text = "config_overrides:\n  hidden_size: 24\n  qkv_bias: false\n"
    recipe, _ = parse("--config_overrides", "hidden_size=48", recipe=text, tmp_path=tmp_path)
    assert recipe.config_overrides == "hidden_size=24,qkv_bias=False,hidden_size=48"


def test_data_of_the_command_line_replaces_all_data_of_the_recipe(tmp_path, caplog):
    caplog.set_level("INFO", logger="mae")
    text = "dataset_name: owner/set\ndataset_config_name: small\nimage_column_name: picture\nmask_ratio: 0.5\n"
    recipe, _ = parse("--train_dir", tmp_path, recipe=text, tmp_path=tmp_path)
    assert recipe.dataset_name is recipe.dataset_config_name is recipe.image_column_name is None
    assert recipe.train_dir == str(tmp_path) and recipe.mask_ratio == 0.5
    assert f"--train_dir {tmp_path} replaces dataset_name owner/set of the recipe" in caplog.text


def test_default_recipe_counts_unless_the_command_names_data_or_a_recipe(tmp_path):
    default, own = tmp_path / "default.yaml", tmp_path / "own.yaml"
    default.write_text("seed: 7\n")
    own.write_text("mask_ratio: 0.5\n")

    def seed(*argv):
        return parse_arguments(PreTrainingRecipe, description="", default_recipe=default, argv=argv)[0].seed

    assert seed() == 7 and seed("--mask_ratio", "0.5") == 7
    assert seed("--train_dir", "x") == seed("--dataset_name", "x") == seed("--recipe", str(own)) == 42


def test_tilde_is_the_home_of_the_user_on_the_command_line_and_in_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("train_dir: ~/images\noutput_dir: ~/out\n")
    recipe, arguments = parse("--recipe", "~/r.yaml", "--model_name_or_path=~/model", "--cache_dir", "~/cache")
    assert recipe.train_dir == str(tmp_path / "images") and arguments.output_dir == str(tmp_path / "out")
    assert recipe.model_name_or_path == str(tmp_path / "model") and recipe.cache_dir == str(tmp_path / "cache")


def test_flags_without_effect_are_noted(caplog):
    caplog.set_level("INFO", logger="mae")
    parse("--do_train", "--remove_unused_columns", "False", "--dataloader-pin-memory", "true", "--log_level", "info")
    for name in ("do_train", "remove_unused_columns", "dataloader_pin_memory", "log_level"):
        assert f"Note: --{name} has no effect" in caplog.text


def test_booleans_as_transformers_reads_them():
    recipe, arguments = parse("--bf16", "--norm_pix_loss", "False", "--no_streaming", "--tf32=yes")
    assert (arguments.bf16, recipe.norm_pix_loss, recipe.streaming, arguments.tf32) == (True, False, False, True)


def test_help_shows_each_flag_once_in_its_group_with_its_default():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "run_mae.py"), "--help"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    text = done.stdout
    found = [group for group in GROUPS if f"\n{group}:\n" in text]
    assert found == [group for group in GROUPS if group in found]
    places = [text.index(f"\n{group}:\n") for group in found]
    assert len(found) >= 7 and places == sorted(places)
    entries = " ".join(text.split())
    for item in (*fields(PreTrainingRecipe), *fields(PreTrainingArguments)):
        assert text.count(f"\n  --{item.name}") >= 1, item.name
        sentence = " ".join(item.metadata["help"].split())
        assert sentence in entries or sentence.replace("-", "") in entries.replace("- ", "").replace("-", "")
    assert "Images per forward and backward pass of a process. (default: 64)" in entries
    assert "\nflags of transformers' Trainer:\n" in text


def test_mistake_of_a_script_is_one_line_and_exit_code_2(tmp_path):
    done = start("--train_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and f"--train_dir {tmp_path / 'nowhere'} does not exist" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_values_of_paths_that_are_expanded_are_marked():
    paths = {item.name for item in fields(DataArguments) if item.metadata["flag"].is_path}
    assert {item.name for item in fields(DataArguments) if item.name.endswith("_dir")} <= paths
