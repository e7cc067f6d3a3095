"""Models as ONNX: what ONNX Runtime computes is what the model computes."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from mae.conversion.onnx_export import OUTPUTS, compare_onnx, export_onnx
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEForSemanticSegmentation, MAEModel
from tests.support.models import make_images, tiny_model


def run(path, images):
    return onnxruntime.InferenceSession(path).run(None, {"pixel_values": images.numpy()})


@pytest.mark.parametrize("cls", list(OUTPUTS))
def test_file_gives_the_outputs_of_the_model_for_any_batch_and_size(cls, tmp_path):
    model = tiny_model(cls, num_labels=3)
    export_onnx(model, tmp_path / "model.onnx", any_size=True)
    for size, shape in ((1, (32, 32)), (3, (16, 40))):
        images = torch.randn(size, 3, *shape)
        options = {} if cls is MAEForSemanticSegmentation else {"interpolate_pos_encoding": True}
        with torch.no_grad():
            expected = model(images, **options)
        for name, actual in zip(OUTPUTS[cls], run(tmp_path / "model.onnx", images), strict=True):
            assert np.abs(actual - expected[name].numpy()).max() < 1e-5
        compared = compare_onnx(model, tmp_path / "model.onnx", images)
        assert all(difference < 1e-5 < largest for difference, largest in compared.values())


def test_uint8_images_are_normalised_in_the_file(tmp_path):
    model = tiny_model(MAEForImageClassification, num_labels=3, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    export_onnx(model, tmp_path / "model.onnx", uint8=True)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    with torch.no_grad():
        expected = model((images / 255 - mean) / std).logits
    assert np.abs(run(tmp_path / "model.onnx", images)[0] - expected.numpy()).max() < 1e-5


def test_difference_of_another_model_is_seen(tmp_path):
    export_onnx(tiny_model(MAEModel), tmp_path / "model.onnx")
    other = tiny_model(MAEModel)
    torch.nn.init.ones_(other.blocks[0].mlp.fc2.bias)
    assert compare_onnx(other, tmp_path / "model.onnx", make_images())["last_hidden_state"][0] > 1e-2


def test_metadata_says_how_images_are_prepared(tmp_path):
    names = {0: "ant", 1: "bee", 2: "crème"}
    export_onnx(tiny_model(MAEForImageClassification, num_labels=3, id2label=names), tmp_path / "model.onnx")
    metadata = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    facts = json.loads(metadata["mae"])
    assert facts["id2label"] == {str(index): name for index, name in names.items()}
    assert facts["image_size"] == [32, 32] and facts["image_mean"] == [0.485, 0.456, 0.406]


def test_upernet_of_any_size_is_refused(tmp_path):
    model = tiny_model(MAEForSemanticSegmentation, num_hidden_layers=4, segmentation_head="upernet")
    with pytest.raises(UserError, match="--any_size.*--image_size"):
        export_onnx(model, tmp_path / "model.onnx", any_size=True)
    assert not list(tmp_path.iterdir())
