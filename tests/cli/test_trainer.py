"""Flags of transformers' Trainer: accepted with a note, or refused with a reason."""

import logging
from dataclasses import fields

import pytest

from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import ClassificationArguments, PreTrainingArguments
from mae.cli.parser import parse_arguments
from mae.cli.trainer import TRAINER_FLAGS, other_trainer_flags
from mae.utils.errors import UserError


def parse(*argv, kinds=(PreTrainingRecipe, PreTrainingArguments)):
    return parse_arguments(*kinds, description="", argv=[str(argument) for argument in argv])


# Flags of transformers' commands for run_mae.py, beside those of its README.
MAPPED = [
    "--max_train_samples", 5, "--config_name", "model", "--image_processor_name", "model", "--cache_dir", "cache",
    "--warmup_steps", 3, "--run_name", "first", "--logging_first_step",
]  # fmt: skip
WITHOUT_EFFECT = [
    "--trust_remote_code", "--optim", "adamw_torch", "--logging_dir", "logs", "--dataloader_drop_last",
    "--disable_tqdm", "False", "--ddp_find_unused_parameters", "False", "--logging_strategy", "steps",
]  # fmt: skip


def test_flags_with_a_meaning_are_mapped():
    recipe, run = parse(*MAPPED)
    assert (recipe.max_train_samples, recipe.config_name, recipe.image_processor_name) == (5, "model", "model")
    assert (recipe.cache_dir, recipe.warmup_steps) == ("cache", 3)
    assert (run.run_name, run.logging_first_step) == ("first", True)


def test_flags_without_effect_are_accepted_with_a_line_each(caplog):
    with caplog.at_level(logging.INFO, "mae"):
        assert parse(*WITHOUT_EFFECT) == parse()
    names = [argument[2:] for argument in WITHOUT_EFFECT if argument.startswith("--")]
    assert sorted(line.split()[1] for line in caplog.messages) == sorted(f"--{name}" for name in names)
    assert all(line.startswith("Note: --") and " has no effect: " in line for line in caplog.messages)


def test_only_rank_0_notes_them(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, "mae"):
        parse("--do_train")
    assert not caplog.messages


@pytest.mark.parametrize(
    "kinds", [(PreTrainingRecipe, PreTrainingArguments), (ClassificationFlags, ClassificationArguments)]
)
def test_every_field_of_training_arguments_is_known(kinds):
    """Each is a flag of the script, is accepted with a value, or is refused because it would change results."""
    refused, own = set(), {item.name for kind in kinds for item in fields(kind)}
    for name in other_trainer_flags() - own:
        try:
            parse(f"--{name}", "1", kinds=kinds)
        except UserError as error:
            assert "unknown argument" not in str(error), name
            refused.add(name)
    assert "hub_token" in refused
    assert refused <= {name for name, known in TRAINER_FLAGS.items() if known.allowed is not None} | {"hub_token"}


@pytest.mark.parametrize("argv", [["--ddp_bucket_cap_mb", 25], ["--skip_memory_metrics"], ["--log-level", "info"]])
def test_fields_that_no_table_names_have_no_effect(argv, caplog):
    with caplog.at_level(logging.INFO, "mae"):
        parse(*argv)
    (line,) = caplog.messages
    assert line.startswith(f"Note: {argv[0].replace('log-level', 'log_level')} has no effect")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optim", "sgd"], "--optim sgd is not supported: the optimizer is AdamW"),
        (["--adam_epsilon", "1e-6"], "--adam_epsilon 1e-6 is not supported"),
        (["--model_type", "vit"], "--model_type vit is not supported: the model is a Masked Autoencoder."),
        (["--bf16_full_eval"], "--bf16_full_eval"),
        (["--data_seed", 3], "--data_seed 3 is not supported: --seed decides. Leave it out."),
        (["--label_smoothing_factor", 0.1], "--label_smoothing_factor 0.1 is not supported"),
        (["--neftune_noise_alpha", 5], "--neftune_noise_alpha 5 is not supported"),
        (["--ignore_data_skip", "True"], "--ignore_data_skip True is not supported"),
        (["--token", "hf_secret"], "--token is not accepted"),
        (["--hub_token=hf_secret"], "--hub_token is not accepted"),
    ],
)
def test_flags_that_would_change_results_are_refused(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value) and "hf_secret" not in str(error.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--optim", "adamw_torch_fused"],
        ["--adam_epsilon", "1e-8"],
        ["--bf16_full_eval", "False"],
        ["--ignore_data_skip", "False"],
        ["--label_smoothing_factor", "0.0"],
        ["--model_type", "vit_mae"],
    ],
)
def test_values_that_agree_with_the_script_are_accepted(argv):
    parse(*argv)


def test_flags_of_a_script_are_its_own():
    recipe, _ = parse("--label_smoothing_factor", 0.2, kinds=(ClassificationFlags, ClassificationArguments))
    assert recipe.label_smoothing_factor == 0.2
    assert parse("--activation_checkpointing")[1].gradient_checkpointing
