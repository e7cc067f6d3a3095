"""Weights at another patch size, without a model."""

import torch

from mae.conversion.loading import make_plan
from mae.conversion.patches import resample
from mae.conversion.weights import Weights
from tests.support.checkpoints import full_state_dict, make_model_of_kind


def test_only_patch_projections_change_and_the_given_state_stays():
    state = full_state_dict(make_model_of_kind("pretraining"))
    found = resample(state, (8, 8), (16, 4))
    changed = {name for name, values in found.items() if values is not state[name]}
    assert changed == {"mae.patch_embed.proj.weight", "decoder.pred.weight", "decoder.pred.bias"}
    assert found["mae.patch_embed.proj.weight"].shape[2:] == (16, 4)
    assert state["mae.patch_embed.proj.weight"].shape[2:] == (8, 8)


def test_plan_of_a_checkpoint_on_the_meta_device():
    """Plans are made of the headers of files, too."""
    state = full_state_dict(make_model_of_kind("pretraining"))
    state = {name: values.to("meta") for name, values in state.items()}
    plan = make_plan(
        Weights("it", state),
        layout="mae",
        num_attention_heads=3,
        decoder_num_attention_heads=2,
        patch_size=16,
        image_size=32,
    )
    assert plan.state["mae.patch_embed.proj.weight"].shape[2:] == (16, 16)
    assert plan.state["decoder.pred.weight"].shape == torch.Size((16 * 16 * 3, 16))
