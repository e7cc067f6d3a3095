"""The step of every implementation, at tiny sizes."""

import pytest
import torch

from benchmarks.step import FLOOR, OFFICIAL, OURS, VIT_MAE, compare, main, make_models, training_step
from tests.support.models import TINY, tiny_config


def test_peers_have_the_configuration_of_this_package():
    pytest.importorskip("timm")
    models = make_models(tiny_config())
    assert list(models) == [OURS, VIT_MAE, OFFICIAL]
    assert {name: getattr(models[VIT_MAE].config, name) for name in TINY} == TINY
    official = models[OFFICIAL]
    assert (len(official.blocks), len(official.decoder_blocks)) == (2, 2)
    assert (official.blocks[0].attn.num_heads, official.decoder_blocks[0].attn.num_heads) == (4, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_are_alike(precision):
    """The learning rate is 0, the gradient is cleared, and each model trains on the images that it is given."""
    torch.manual_seed(0)
    config = tiny_config()
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, config.num_patches)
    for name, model in make_models(config).items():
        step, larger = (training_step(model, pixels, noise, precision) for pixels in (images, 3 * images))
        losses = [step().item(), step().item(), larger().item()]
        assert losses[0] == losses[1] < losses[2], name
        assert all(parameter.grad is None for parameter in model.parameters())


def test_each_implementation_and_the_floor_has_a_row():
    pytest.importorskip("timm")
    rows = compare(tiny_config(), 2, rounds=1, precision="bf16", device=torch.device("cpu"))
    assert [row[:2] for row in rows] == [["bf16", name] for name in (OURS, VIT_MAE, OFFICIAL, FLOOR)]
    assert rows[0][5] == "1.00" and all(float(row[5]) > 0 for row in rows)


@pytest.mark.slow
def test_table_has_both_precisions(capsys):
    main(["--model_size", "tiny", "--image_size", "32", "--batch_size", "1", "--rounds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| fp32 |", "| bf16 |"))]
    assert len(rows) in (6, 8)  # without and with timm
