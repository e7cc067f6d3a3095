"""Which evaluators flags ask for."""

import pytest
import torch
from accelerate import Accelerator

from configuration_mae import MAEConfig
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.evaluators import make_evaluators
from mae.data.opening import open_dataset
from modeling_mae import MAEForPreTraining
from tests.support.classification import SIZES


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, []),
        ({"knn_epochs": 1.0}, ["NeighboursEvaluator"]),
        ({"probe_epochs": 2.0, "rank_epochs": 3.0}, ["ProbeEvaluator", "SpectrumEvaluator"]),
        ({"knn_epochs": 1.0, "probe_epochs": 2.0}, ["NeighboursEvaluator", "ProbeEvaluator"]),
    ],
)
def test_flags_name_the_evaluators(labelled, flags, names):
    source, validation = open_dataset(str(labelled))
    torch.manual_seed(0)
    model, arguments = MAEForPreTraining(MAEConfig(**SIZES)), PreTrainingArguments(**flags)
    reconstruction, others = make_evaluators(
        model, source, validation, PreTrainingRecipe(), arguments, Accelerator(cpu=True)
    )
    assert reconstruction.every_steps == 500 and reconstruction.images.shape[0] == 37
    assert [type(each).__name__ for each in others] == names
    assert [each.every_epochs for each in others] == list(flags.values())
    if len(names) == 2 and "knn_epochs" in flags:
        assert others[0].sample is others[1].sample
