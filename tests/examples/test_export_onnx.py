"""examples/export_onnx.py, as a user runs it."""

import onnxruntime
import pytest
import torch

from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from tests.support.data import ROOT
from tests.support.models import make_images, tiny_model
from tests.support.runs import start


SCRIPT = ROOT / "examples" / "export_onnx.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(MAEForPreTraining).save_pretrained(folder)
    return folder


def export(*arguments, code=0):
    done = start(*arguments, script=SCRIPT)
    assert done.returncode == code, done.stderr
    return done


def test_model_of_pre_training_gives_its_encoder(model, tmp_path):
    path = tmp_path / "encoder.onnx"
    done = export("--model", model, "--output", path, "--image_size", 40, 48)
    assert "positions resampled" in done.stdout and "ONNX Runtime differs by up to" in done.stdout
    images = torch.randn(2, 3, 40, 48)
    found = onnxruntime.InferenceSession(path).run(["pooler_output"], {"pixel_values": images.numpy()})[0]
    encoder = MAEModel.from_pretrained(model, image_size=(40, 48))
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), encoder(images).pooler_output, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]


def test_classifier_is_exported_whole(tmp_path):
    classifier = tiny_model(MAEForImageClassification, num_labels=4)
    classifier.save_pretrained(tmp_path / "model")
    export("--model", tmp_path / "model", "--output", tmp_path / "classifier.onnx")
    images = make_images()
    found = onnxruntime.InferenceSession(tmp_path / "classifier.onnx").run(None, {"pixel_values": images.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), classifier(images).logits, atol=1e-5)


@pytest.mark.parametrize(
    "output, message",
    [("there.onnx", "exists already"), ("m.pt", "must end in .onnx"), ("no/m.onnx", "does not exist")],
)
def test_output_that_cannot_be_written_is_refused(output, message, model, tmp_path):
    (tmp_path / "there.onnx").touch()
    done = export("--model", model, "--output", tmp_path / output, code=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
