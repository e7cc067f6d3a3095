"""Key tables, against the released files, transformers and timm."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae.conversion.layouts import (
    LAYOUTS,
    OFFICIAL,
    TIMM,
    VIT_MAE,
    VIT_MAE_IN_MEMORY,
    from_native,
    num_unknown,
    spelling_of,
    to_native,
)
from mae.conversion.loading import make_plan
from mae.conversion.saving import full_state_dict
from mae.conversion.weights import Weights
from mae.utils.errors import UserError
from modeling_mae import MAEModel
from tests.support.checkpoints import RELEASED_SHAPES, RELEASED_SIZES, make_model_of_kind, meta_tensors


@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_every_released_tensor_has_a_place_in_vit_mae(size):
    """And every tensor of ViTMAE in a released model."""
    state, _ = to_native(meta_tensors(RELEASED_SHAPES[size]["pretrain_full"]), OFFICIAL)
    fields = {**RELEASED_SIZES[size], "intermediate_size": 4 * RELEASED_SIZES[size]["hidden_size"], "image_size": 224}
    with torch.device("meta"):
        expected = ViTMAEForPreTraining(ViTMAEConfig(**fields)).state_dict()
    actual = from_native(state, VIT_MAE_IN_MEMORY)
    assert {name: tensor.shape for name, tensor in actual.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_every_released_tensor_has_a_place_in_timm(size):
    timm = pytest.importorskip("timm")
    patch_size = RELEASED_SIZES[size]["patch_size"]
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch{patch_size}_224", num_classes=0, global_pool="token")
    plan = make_plan(Weights("timm", vit.state_dict()), layout="timm")
    assert plan.model_class is MAEModel and not plan.report.new and not plan.report.unused
    assert list(vit.state_dict()) == list(RELEASED_SHAPES[size]["pretrain_encoder"])


SPELLINGS = [spelling for spellings in LAYOUTS.values() for spelling in spellings]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_tables_name_each_tensor_once(spelling):
    table = spelling.table([f"{blocks}.1." for blocks in spelling.blocks.values()])
    names = [name for value in table.values() for name in ([value] if isinstance(value, str) else value)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_translation_there_and_back_is_exact(spelling):
    state = {name: tensor for name, tensor in full_state_dict(make_model_of_kind("pretraining")).items()}
    tensors = from_native(state, spelling)
    assert num_unknown(tensors, spelling) == 0
    again, unknown = to_native(tensors, spelling)
    assert not unknown and len(again) == len(state) - (spelling is TIMM) * sum(
        name.startswith("decoder") for name in state
    )
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())


def test_query_key_and_value_are_fused_in_this_order():
    parts = VIT_MAE.block["attn.qkv"]
    tensors = {f"vit.encoder.layer.0.{part}.bias": torch.full((2,), float(i)) for i, part in enumerate(parts)}
    state, _ = to_native(tensors, VIT_MAE)
    assert [part.rsplit(".", 1)[1] for part in parts] == ["query", "key", "value"]
    assert state["mae.blocks.0.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_query_without_its_key_is_unknown():
    tensors = {"vit.encoder.layer.0.attention.attention.query.bias": torch.zeros(2)}
    assert to_native(tensors, VIT_MAE) == ({}, list(tensors))


def test_parts_of_different_shapes_are_refused():
    parts = VIT_MAE.block["attn.qkv"]
    tensors = {f"vit.encoder.layer.0.{part}.bias": torch.zeros(2 + i) for i, part in enumerate(parts)}
    with pytest.raises(UserError, match="must have one shape"):
        to_native(tensors, VIT_MAE)


@pytest.mark.parametrize("spelling", LAYOUTS["vit_mae"])
def test_spelling_is_recognised(spelling):
    tensors = from_native(full_state_dict(make_model_of_kind("pretraining")), spelling)
    assert spelling_of(tensors, "vit_mae") is spelling
