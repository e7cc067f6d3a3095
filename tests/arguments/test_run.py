"""Flags of a run that do not change its results."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from mae.arguments.flags import flags_of
from mae.arguments.run import ClassificationArguments, HardwareArguments, PreTrainingArguments, RunArguments
from mae.utils.errors import UserError


@pytest.mark.parametrize("kind", [HardwareArguments, RunArguments, PreTrainingArguments, ClassificationArguments])
def test_no_flag_of_a_run_changes_results(kind):
    assert not any(declared.changes_results for declared in flags_of(kind).values())


def test_names_are_those_of_the_trainer():
    own = {"overwrite_output_dir", "save_minutes", "max_eval_samples", "data_retry_minutes", "max_bad_fraction"}
    own |= {"max_nonfinite_steps", "hub_license", "cache_memory"}
    theirs = {field.name for field in fields(TrainingArguments)}
    assert {field.name for field in fields(RunArguments)} - own <= theirs


@pytest.mark.parametrize(
    "values, message",
    [
        ({"bf16": True, "fp16": True}, "--bf16 and --fp16"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers -1"),
        ({"save_steps": 0}, "--save_steps 0"),
        ({"hub_strategy": "always"}, "--hub_strategy always must be one of end, every_save"),
        ({"max_bad_fraction": 2}, "--max_bad_fraction 2"),
        ({"cache_memory": "much"}, "--cache_memory much"),
    ],
)
def test_impossible_value_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        RunArguments(**values)


def test_none_is_no_tracker():
    assert RunArguments(report_to=["none", "wandb"]).trackers == ["wandb"]
    assert RunArguments().trackers == []
