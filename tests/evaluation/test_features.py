"""Features of a frozen encoder against the model itself."""

import pytest
import torch
from accelerate import Accelerator

from mae.data.folders import open_folder
from mae.evaluation.features import compute_features, encode, log_skipped
from mae.evaluation.inference import Outputs
from mae.utils.errors import DataError
from modeling_mae import MAEModel
from tests.support.models import assert_close, tiny_model
from tests.support.samples import BrokenSource


@pytest.mark.parametrize("layer", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_are_tokens_of_the_layer(pooling, layer):
    encoder = tiny_model(MAEModel)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        outputs = encoder(pixels, output_hidden_states=True)
        found = encode(encoder, pixels, pooling, layer)
    tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    assert tokens.shape[1] == 17
    expected = torch.stack([image[0] if pooling == "cls" else image[1:].sum(dim=0) / 16 for image in tokens])
    assert found.dtype == torch.float32 and found.shape == (3, 32)
    assert_close(found, expected)


def test_size_of_the_batches_and_mode_of_the_model_change_nothing(image_folder):
    encoder = tiny_model(MAEModel).train()
    source = open_folder(str(image_folder), "--train_dir")
    first, second = (
        compute_features(encoder, source, Accelerator(cpu=True), "training", "cls", batch_size=size, num_workers=0)
        for size in (7, 64)
    )
    assert encoder.training and first.rows.tolist() == list(range(60))
    assert_close(first.outputs["features"], second.outputs["features"])
    assert not first.outputs["features"].requires_grad


def test_data_without_a_readable_image_is_an_error():
    with pytest.raises(DataError, match="None of the 2 training images"):
        compute_features(
            tiny_model(MAEModel), BrokenSource([b"no image"] * 2), Accelerator(cpu=True), "training", "cls",
            num_workers=0,
        )  # fmt: skip


def test_many_unreadable_images_are_counted(caplog):
    caplog.set_level("INFO", logger="mae")
    log_skipped(Outputs([], {}, [((f"f{index}.png", 0), "broken") for index in range(1007)]))
    assert len(caplog.records) == 6 and "f4.png row 0: broken" in caplog.text and "1,002 more" in caplog.text
