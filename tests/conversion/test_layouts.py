"""Key tables, against the released files, transformers and timm."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae.conversion.layouts import LAYOUTS, OFFICIAL, VIT_MAE_IN_MEMORY, from_native, to_native
from mae.conversion.loading import make_plan
from mae.conversion.weights import Weights
from modeling_mae import MAEModel
from tests.support.models import RELEASED_SHAPES, RELEASED_SIZES, meta_tensors


@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_every_released_tensor_has_a_place_in_vit_mae(size):
    """Every tensor of a released model has a place in transformers' ViTMAE of that size, and the other way round."""
    state, _ = to_native(meta_tensors(RELEASED_SHAPES[size]["pretrain_full"]), OFFICIAL)
    fields = {**RELEASED_SIZES[size], "intermediate_size": 4 * RELEASED_SIZES[size]["hidden_size"], "image_size": 224}
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(ViTMAEConfig(**fields)).state_dict()
    ours = from_native(state, VIT_MAE_IN_MEMORY)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_every_released_tensor_has_a_place_in_timm(size):
    timm = pytest.importorskip("timm")
    patch_size = RELEASED_SIZES[size]["patch_size"]
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch{patch_size}_224", num_classes=0, global_pool="token")
    plan = make_plan(Weights("timm", vit.state_dict()), layout="timm")
    assert plan.model_class is MAEModel and not plan.report.new and not plan.report.unused
    assert list(vit.state_dict()) == list(RELEASED_SHAPES[size]["pretrain_encoder"])


def test_tables_name_each_tensor_once():
    """No name twice on either side, as many as there are tensors."""
    for layout, spellings in LAYOUTS.items():
        for spelling in spellings:
            names = [f"{theirs}.1." for theirs in spelling.blocks.values()]
            table = spelling.table(names)
            theirs = [name for value in table.values() for name in ([value] if isinstance(value, str) else value)]
            assert len(set(theirs)) == len(theirs), layout
