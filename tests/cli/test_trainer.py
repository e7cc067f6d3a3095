"""Flags of transformers' Trainer that the scripts accept."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.trainer import SHOWN, TOKENS, TRAINER_FLAGS, check_trainer_flag, other_trainer_flags
from mae.utils.errors import UserError


def test_flag_with_a_meaning_is_not_listed_as_one_without():
    own = {item.name for kind in (PreTrainingRecipe, PreTrainingArguments) for item in fields(kind)}
    assert not own & TRAINER_FLAGS.keys() and set(SHOWN) <= TRAINER_FLAGS.keys()


def test_all_fields_of_the_trainer_are_known():
    assert other_trainer_flags() == {item.name for item in fields(TrainingArguments)}


@pytest.mark.parametrize(
    "name, values",
    [("do_train", []), ("optim", ["adamw_torch"]), ("lr_scheduler_type", ["Cosine"]), ("bf16_full_eval", ["False"])],
)
def test_value_that_agrees_with_the_scripts_is_noted(name, values):
    assert check_trainer_flag(name, values).startswith(f"Note: --{name} has no effect: ")


@pytest.mark.parametrize(
    "name, values, advice",
    [
        ("optim", ["sgd"], "or use adamw or adamw_torch"),
        ("lr_scheduler_type", ["linear"], "or use cosine"),
        ("label_smoothing_factor", ["0.1"], "Leave it out"),
        ("bf16_full_eval", [], "Leave it out"),  # a flag alone is true
    ],
)
def test_value_that_would_change_results_is_refused_with_advice(name, values, advice):
    with pytest.raises(UserError, match=f"--{name} .*is not supported: .*{advice}"):
        check_trainer_flag(name, values)


@pytest.mark.parametrize("name", TOKENS)
def test_token_is_refused_and_not_repeated(name):
    with pytest.raises(UserError, match="hf auth login") as found:
        check_trainer_flag(name, ["hf_secret"])
    assert "hf_secret" not in str(found.value)
