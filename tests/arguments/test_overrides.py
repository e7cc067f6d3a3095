"""Values that are written as text on the command line."""

import pytest

from mae.arguments.overrides import parse_overrides, parse_statistics
from mae.utils.errors import UserError


def test_overrides_have_the_types_of_the_configuration():
    text = "hidden_size=192, mask_ratio=0.6,qkv_bias=false,norm_pix_loss=TRUE,hidden_act=gelu,image_mean=0.5,"
    assert parse_overrides(text) == {
        "hidden_size": 192,
        "mask_ratio": 0.6,
        "qkv_bias": False,
        "norm_pix_loss": True,
        "hidden_act": "gelu",
        "image_mean": 0.5,
    }


@pytest.mark.parametrize("text", [None, "", " , "])
def test_no_override_is_no_field(text):
    assert parse_overrides(text) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("hidden_sizes=192", "--config_overrides hidden_sizes=192 .* Did you mean hidden_size?"),
        ("hidden_size", "--config_overrides hidden_size must set a field"),
        ("qkv_bias=perhaps", "--config_overrides qkv_bias=perhaps"),
    ],
)
def test_wrong_override_is_named(text, message):
    with pytest.raises(UserError, match=message):
        parse_overrides(text)


def test_statistics_are_numbers_or_measured():
    assert parse_statistics("image_mean", ["0.5", "1e-1"]) == [0.5, 0.1]
    assert parse_statistics("image_mean", ["auto"]) is parse_statistics("image_mean", None) is None
    with pytest.raises(UserError, match="--image_std 0.5 half must be numbers, or auto"):
        parse_statistics("image_std", ["0.5", "half"])
