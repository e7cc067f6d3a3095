"""The command line: recipes, flags, --help."""

import logging
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from mae.arguments.classification import ClassificationFlags
from mae.arguments.flags import GROUPS, flags_of
from mae.arguments.model import FeatureArguments
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import ClassificationArguments, PreTrainingArguments
from mae.arguments.segmentation import SegmentationFlags
from mae.cli.parser import parse_arguments
from mae.hub.repository import _PATH_FLAGS
from mae.utils.errors import UserError
from tests.support.data import ROOT


PRE_TRAINING = PreTrainingRecipe, PreTrainingArguments
CLASSIFICATION = ClassificationFlags, ClassificationArguments


def parse(*argv, kinds=PRE_TRAINING, **options):
    return parse_arguments(*kinds, description="", argv=[str(argument) for argument in argv], **options)


def refusal(*argv, kinds=PRE_TRAINING):
    with pytest.raises(UserError) as error:
        parse(*argv, kinds=kinds)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe, and gives the flags that name it."""

    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return "--recipe", tmp_path / "recipe.yaml"

    return write


# Recipes


def test_recipe_sets_values_in_the_types_of_their_flags(recipe):
    text = (
        "max_steps: 5\nbase_learning_rate: 1e-3\nimage_size: [32, 64]\npatch_size: 8\nbf16: true\nstreaming: false\n"
    )
    flags, run = parse(*recipe(text + "model_size: null\nreport_to: tensorboard\n"))
    assert (flags.max_steps, flags.base_learning_rate, flags.streaming, flags.model_size) == (5, 1e-3, False, None)
    assert (flags.image_size, flags.patch_size) == ([32, 64], [8])
    assert run.bf16 is True and run.report_to == ["tensorboard"]


def test_recipe_may_name_no_tracker(recipe):
    assert parse(*recipe("report_to: []"))[1].trackers == []


def test_command_line_wins_over_the_recipe(recipe):
    flags, run = parse(*recipe("max_steps: 5\nbf16: true\nstreaming: false"), "--max_steps", 4, "--bf16", "false")
    assert flags.max_steps == 4 and run.bf16 is False and flags.streaming is False


@pytest.mark.parametrize(
    ("text", "argv", "expected"),
    [
        ("warmup_ratio: 0.1", ["--warmup_epochs", 2], {"warmup_ratio": None, "warmup_epochs": 2}),
        ("warmup_ratio: 0.1", ["--warmup_steps", 2], {"warmup_ratio": None, "warmup_steps": 2}),
        ("max_steps: 9", ["--num_train_epochs", 2], {"max_steps": -1, "num_train_epochs": 2}),
        ("learning_rate: 6.4", ["--base_learning_rate", 0.1], {"learning_rate": None, "base_learning_rate": 0.1}),
        ("model_size: tiny", ["--config_name", "a"], {"model_size": None, "config_name": "a"}),
        (
            "config_overrides: {num_channels: 1, hidden_size: 96, decoder_num_hidden_layers: 2}",
            ["--model_size", "tiny"],
            {"model_size": "tiny", "config_overrides": "num_channels=1"},
        ),
        (
            "config_overrides: {hidden_size: 96}",
            ["--model_size", "tiny", "--config_overrides", "qkv_bias=false"],
            {"model_size": "tiny", "config_overrides": "qkv_bias=false"},
        ),
        ("image_size: 64\nmodel_size: tiny", ["--model_name_or_path", "a"], {"image_size": None, "model_size": None}),
    ],
)
def test_command_line_replaces_what_excludes_it_in_the_recipe(recipe, text, argv, expected):
    flags, _ = parse(*recipe(text), *argv)
    assert {name: getattr(flags, name) for name in expected} == expected


def test_fields_of_the_configuration_are_merged_one_by_one(recipe):
    flags, _ = parse(
        *recipe("config_overrides: {num_hidden_layers: 2, qkv_bias: false}"), "--config_overrides", "qkv_bias=true"
    )
    assert flags.config_overrides == "num_hidden_layers=2,qkv_bias=False,qkv_bias=true"


@pytest.mark.parametrize(
    ("text", "argv", "note"),
    [
        (
            "dataset_name: a/b\ndataset_revision: abc\nimage_column_name: jpg",
            ["--train_dir", "mine"],
            "train_dir mine",
        ),
        ("train_dir: mine\nvalidation_dir: others", ["--dataset_name", "a/b"], "dataset_name a/b"),
        ("dataset_name: a/b\ndataset_revision: abc", ["--dataset_name", "c/d"], "dataset_name c/d"),
    ],
)
def test_data_of_the_command_line_replace_those_of_the_recipe_with_a_note(recipe, caplog, text, argv, note):
    with caplog.at_level(logging.INFO, "mae"):
        flags, _ = parse(*recipe(text), *argv)
    assert [getattr(flags, argv[0][2:])] == argv[1:]
    assert (flags.dataset_revision, flags.image_column_name, flags.validation_dir) == (None, None, None)
    (line,) = caplog.messages
    assert line.startswith(f"Note: --{note} replaces ") and line.endswith(" of the recipe.")


def test_same_data_keep_their_revision_without_a_note(recipe, caplog):
    with caplog.at_level(logging.INFO, "mae"):
        flags, _ = parse(*recipe("dataset_name: a/b\ndataset_revision: abc"), "--dataset_name", "a/b")
    assert flags.dataset_revision == "abc" and not caplog.messages


@pytest.mark.parametrize(
    "argv, is_used", [([], True), (["--train_dir", "a"], False), (["--dataset_name", "a"], False)]
)
def test_default_recipe_is_for_commands_without_data(recipe, argv, is_used):
    _, path = recipe("max_steps: 5")
    assert (parse(*argv, default_recipe=str(path))[0].max_steps == 5) == is_used


def test_home_is_expanded_in_flags_and_recipes(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, path = recipe("train_dir: ~/images\n")
    flags, run = parse("--recipe", f"~/{path.name}", "--output_dir=~/run", "--validation_dir", "~/others")
    assert [flags.train_dir, flags.validation_dir, run.output_dir] == [
        str(tmp_path / name) for name in ("images", "others", "run")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 2.5", "max_steps: invalid int value: '2.5'"),
        ("max_steps: [1, 2]", "max_steps takes one value, not 2"),
        ("bf16: perhaps", "bf16: Truthy value expected"),
        ("mask_ration: 0.5", "unknown flag mask_ration. Did you mean mask_ratio?"),
        ("- 1", "must hold lines of the form 'flag: value'"),
        ("", "must hold lines of the form"),
        ("# a comment alone\n", "must hold lines of the form"),
        ("a sentence", "must hold lines of the form"),
        ("1: 2", "unknown flag 1"),
        ("recipe: other.yaml", "unknown flag recipe"),
        ("mask_ratio: 0.5\n  seed: 1\n", "is not YAML"),
        ("a: [", "is not YAML"),
        ("config_overrides: {a: [1]}", "the values of config_overrides must be numbers or words"),
    ],
)
def test_mistake_in_a_recipe_names_the_file(recipe, text, message):
    argv = recipe(text)
    line = refusal(*argv)
    assert line.startswith(f"--recipe {argv[1]}") and message in line


def test_every_path_of_a_recipe_is_shortened_when_it_is_pushed():
    kinds = (PreTrainingRecipe, ClassificationFlags, SegmentationFlags)
    paths = {name for kind in kinds for name, declared in flags_of(kind).items() if declared.is_path}
    assert paths == set(_PATH_FLAGS)


def test_recipe_that_does_not_exist_is_named():
    assert refusal("--recipe", "nowhere.yaml") == "--recipe nowhere.yaml cannot be read: No such file or directory."


# Flags


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_steps", "many"], "--max_steps: invalid int value: 'many'"),
        (["--num_epochs", 3], "unknown argument --num_epochs. Did you mean --num_train_epochs?"),
        (["--epochs", 3], "unknown argument --epochs. Did you mean --num_train_epochs?"),
        (["--batch_size", 3], "unknown argument --batch_size. Did you mean --per_device_train_batch_size?"),
        (["--resume"], "unknown argument --resume. Did you mean --resume_from_checkpoint?"),
        (["--lr=3"], "unknown argument --lr. Did you mean --learning_rate?"),
        (["--hidden_size", 3], "unknown argument --hidden_size. To set this field of the configuration: --config_"),
        (["stray"], "unknown argument stray."),
        (["--max_steps"], "--max_steps: expected one argument"),
        (["--bf16", "perhaps"], "--bf16"),
        (["--hub_token", "hf_secret"], "hf auth login"),
        (["--max_step", 3], "unknown argument --max_step. Did you mean --max_steps?"),
    ],
)
def test_unknown_flag_is_refused_with_the_nearest(argv, message):
    assert message in refusal(*argv)


def test_flags_may_have_dashes():
    assert parse("--mask-ratio", 0.5, "--no-streaming")[0].streaming is False


@pytest.mark.parametrize(
    ("argv", "value"), [([], None), (["--norm_pix_loss"], True), (["--norm_pix_loss", "False"], False)]
)
def test_bool_without_a_default_may_stand_alone(argv, value):
    assert parse(*argv)[0].norm_pix_loss is value


# --help


def shown_help(kinds, capsys, monkeypatch, description="Title.\n\n    one line\n    another line\n"):
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit) as end:
        parse_arguments(*kinds, description=description, argv=["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kinds", [PRE_TRAINING, CLASSIFICATION])
def test_help_shows_each_flag_once_with_its_default(kinds, capsys, monkeypatch):
    text = shown_help(kinds, capsys, monkeypatch)
    flags = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    names = {item.name for kind in kinds for item in fields(kind)}
    assert len(flags) == len(set(flags)) and {f"--{name}" for name in names} <= set(flags)
    assert "None" not in text
    assert " ".join(text.split()).count("(default: ") == len(names) + 1  # and --recipe


def test_help_has_chapters_in_order(capsys, monkeypatch):
    text = shown_help(CLASSIFICATION, capsys, monkeypatch)
    places = [text.index(f"\n{name}:\n") for name in (*GROUPS, "flags of transformers' Trainer")]
    assert places == sorted(places)


def test_help_keeps_the_lines_of_the_examples(capsys, monkeypatch):
    text = shown_help(PRE_TRAINING, capsys, monkeypatch)
    assert "Title.\n\n    one line\n    another line\n\n" in text


def test_help_shows_booleans_as_switches(capsys, monkeypatch):
    lines = shown_help(PRE_TRAINING, capsys, monkeypatch).splitlines()
    assert any(line.split()[:2] == ["--streaming,", "--no_streaming"] for line in lines)
    assert any(line.split()[:2] == ["--bf16", "Use"] for line in lines)


def test_only_training_scripts_show_and_accept_trainer_flags(capsys, monkeypatch):
    assert "--do_train" in shown_help(PRE_TRAINING, capsys, monkeypatch)
    assert "--do_train" not in shown_help((FeatureArguments,), capsys, monkeypatch)
    assert "unknown argument --do_train" in refusal("--do_train", kinds=(FeatureArguments,))


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_help_imports_no_torch_no_data_and_no_training_code(script):
    """They take seconds."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=True)
    names = set(done.stderr.split())
    assert "usage: " in done.stdout and not {"torch", "datasets", "pyarrow", "matplotlib"} & names
    ours = {name for name in names if re.fullmatch(r"mae\.\w+\.\w+", name)}
    allowed = {"mae.cli.parser", "mae.cli.recipe_files", "mae.cli.script", "mae.cli.trainer"}
    assert {name for name in ours if not name.startswith(("mae.arguments.", "mae.utils."))} <= allowed
