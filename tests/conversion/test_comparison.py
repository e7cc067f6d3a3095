"""Comparison with other implementations: equal models pass, any difference shows."""

import pytest
import torch

from mae.conversion.comparison import compare_forward
from mae.conversion.layouts import LAYOUTS, from_native
from mae.conversion.saving import full_state_dict
from tests.support.checkpoints import make_model_of_kind
from tests.support.models import DENSE_KINDS, model_of_kind


@pytest.mark.parametrize(
    ("kind", "layout", "name"),
    [
        ("pretraining", "mae", "transformers' ViTMAE"),
        ("pretraining", "vit_mae", "transformers' ViTMAE"),
        ("encoder", "vit_mae", "transformers' ViTMAE"),
        ("encoder", "official", "timm"),
        ("classification_mean", "timm", "timm"),
    ],
)
def test_same_model_in_another_implementation_gives_the_same_outputs(kind, layout, name):
    pytest.importorskip("timm")
    model = make_model_of_kind(kind)
    tensors = from_native(full_state_dict(model), LAYOUTS[layout][0])
    other, difference, largest = compare_forward(model, tensors, layout)
    assert other == name and difference < 1e-5 < largest


@pytest.mark.parametrize(("kind", "layout"), [("pretraining", "vit_mae"), ("classification_cls", "timm")])
def test_tensor_that_differs_shows(kind, layout):
    pytest.importorskip("timm")
    model = make_model_of_kind(kind)
    tensors = from_native(full_state_dict(model), LAYOUTS[layout][0])
    name = next(name for name in tensors if name.endswith("1.norm1.bias") or name.endswith("1.layernorm_before.bias"))
    tensors[name] = tensors[name] + 0.1
    assert compare_forward(model, tensors, layout)[1] > 1e-3


def test_model_that_nobody_else_has_is_not_compared():
    with pytest.raises(LookupError, match="no other implementation"):
        compare_forward(make_model_of_kind("pretraining", image_size=(32, 16)), {}, "mae")


def test_comparison_leaves_the_model_as_it_is():
    model = make_model_of_kind("pretraining", masking="block").bfloat16()
    compare_forward(model, {}, "mae")
    assert model.config.masking == "block" and model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", DENSE_KINDS)
def test_dense_model_has_no_other_implementation(kind):
    model = model_of_kind(kind)
    with pytest.raises(LookupError, match="no other implementation"):
        compare_forward(model, full_state_dict(model), "mae")
