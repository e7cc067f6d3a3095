"""Weights of new models, and those that a checkpoint lacks."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    sincos_positions,
)
from tests.support.models import tiny_config


def xavier(fan_in, fan_out):
    return math.sqrt(6 / (fan_in + fan_out))


def check_initialisation(model, skip=()):
    """Check each parameter against the rules of the official code, restated here by parameter name."""
    seen = set()
    for name, parameter in model.named_parameters():
        if name in skip:
            continue
        kind = name.split(".")[-2] if "." in name else ""
        largest = parameter.abs().max().item()
        if name.endswith("pos_embed"):
            assert torch.equal(parameter, sincos_positions(parameter.shape[2], model.config.grid_size)), name
        elif name.endswith(("cls_token", "mask_token")):
            assert 0.015 < parameter.std() < 0.025 and parameter.mean().abs() < 0.01, name
        elif "norm" in kind:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "patch_embed" in name:
            fan_out, fan_in = 64, 3 * 8 * 8
            bound = xavier(fan_in, fan_out) if name.endswith("weight") else 1 / math.sqrt(fan_in)
            assert 0.9 * bound < largest <= bound and parameter.mean().abs() < 0.3 * bound, name
        elif name.endswith("bias"):
            assert largest == 0, name
        elif kind == "head":
            assert 1.8e-5 < parameter.std() < 2.2e-5, name
        else:
            dim = parameter.shape[1]
            bound = math.sqrt(6 / (4 * dim)) if kind == "qkv" else xavier(*parameter.shape)
            assert 0.98 * bound < largest <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        seen.add(name)
    return seen


INIT = {"hidden_size": 64, "intermediate_size": 128, "decoder_hidden_size": 64, "decoder_intermediate_size": 96}
CLASSES = [
    (MAEModel, {}),
    (MAEForPreTraining, {}),
    (MAEForImageClassification, {"num_labels": 10, "pooling": "cls"}),
    (MAEForImageClassification, {"num_labels": 10, "pooling": "mean"}),
]


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_new_model_is_initialised_like_the_official_one(cls, fields):
    torch.manual_seed(0)
    model = cls(tiny_config(**INIT, **fields))
    assert len(check_initialisation(model)) == len(model.state_dict())


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_model_built_on_meta_is_initialised_like_the_official_one(cls, fields):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = cls(tiny_config(**INIT, **fields))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    check_initialisation(model)
    assert model.state_dict().keys() == cls(tiny_config(**INIT, **fields)).state_dict().keys()


@pytest.mark.parametrize("kept", ["weight", "bias", "everything of block 0"])
@pytest.mark.parametrize("cls, fields", CLASSES)
def test_from_pretrained_initialises_missing_tensors_only(cls, fields, kept, tmp_path):
    torch.manual_seed(0)
    cls(tiny_config(**INIT, **fields)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    keep = {name: torch.full_like(value, 7) for name, value in weights.items() if kept.split()[-1] in name}
    keep = {name: value for name, value in keep.items() if kept != "everything of block 0" or "blocks.0." in name}
    save_file(keep, file, metadata={"format": "pt"})
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == weights.keys() - keep.keys()
    for name, value in keep.items():
        assert torch.equal(model.get_parameter(name), value), name
    assert check_initialisation(model, skip=keep) == weights.keys() - keep.keys()


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_positions_are_frozen_except_in_the_classifier(cls, fields):
    model = cls(tiny_config(**fields))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    positions = {name for name in model.state_dict() if name.endswith("pos_embed")}
    assert frozen == (set() if cls is MAEForImageClassification else positions)
