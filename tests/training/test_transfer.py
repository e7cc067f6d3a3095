"""What tasks on a pre-trained encoder share: frozen weights, seeds of batches."""

import pytest
import torch

from mae.data.batch import Batch
from mae.training.transfer import batch_seed, freeze_encoder
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEForSemanticSegmentation
from tests.support.models import tiny_model


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("model_class", [MAEForImageClassification, MAEForSemanticSegmentation])
@pytest.mark.parametrize("count", [0, 0.5, 1])
def test_only_the_last_blocks_and_the_head_are_trained(model_class, count):
    model = tiny_model(model_class, num_labels=3, pooling="cls")
    freeze_encoder(model, count)
    last = f"mae.blocks.{len(model.mae.blocks) - 1}."
    expected = {name for name, _ in model.named_parameters() if not name.startswith("mae.")}
    if count:
        parts = (f"{last}norm2", f"{last}mlp") if count == 0.5 else (last,)
        expected |= {name for name, _ in model.named_parameters() if name.startswith((*parts, "mae.norm."))}
    assert trainable(model) == expected


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(UserError, match="--num_trainable_blocks 99 must be 0.5, or a whole number up to"):
        freeze_encoder(tiny_model(MAEForSemanticSegmentation, num_labels=3), 99)


def test_seed_follows_from_the_run_and_the_first_position():
    def batch(position):
        return Batch(torch.zeros(1), 1.0, 1, position.to_bytes(8, "big") + bytes(16), [], [])

    seeds = [batch_seed(seed, batch(position)) for seed in (1, 2) for position in (0, 8)]
    assert len(set(seeds)) == 4 and batch_seed(1, batch(8)) == seeds[1]
    assert all(0 <= seed < 2**63 for seed in seeds)
