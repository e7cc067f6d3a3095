"""The official implementation on timm's blocks, against outputs and gradients that the official code gave."""

from ast import literal_eval

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from configuration_mae import MAEConfig
from tests.support.data import FIXTURES
from tests.support.models import assert_close


@pytest.mark.parametrize("name", ["official_pretrain_raw_pixels", "official_pretrain_norm_pixels"])
def test_loss_and_gradients_are_those_of_the_official_code(name):
    pytest.importorskip("timm")
    from benchmarks.timm_mae import TimmMAE

    path = FIXTURES / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        fields = {key: literal_eval(value) for key, value in file.metadata().items()}
    model = TimmMAE(MAEConfig(**fields))
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    loss = model(tensors["pixel_values"], tensors["noise"])
    assert_close(loss, tensors["loss"][0])
    loss.backward()
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {key[5:]: value for key, value in tensors.items() if key.startswith("grad.")}
    assert trained.keys() == expected.keys()
    for key in expected:
        assert_close(trained[key], expected[key])
