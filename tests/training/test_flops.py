"""FLOPs of a model against torch's counter, the paper and the table of peaks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from configuration_mae import MAEConfig, to_pair
from mae.training import flops as throughput
from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_type": "cross_attention"},
        {"decoder_type": "cross_attention", "prediction_ratio": 0.25, "weighted_feature_maps": True},
        {"image_size": (64, 96), "patch_size": (8, 16), "mask_ratio": 0.6, "num_channels": 1}
        | {"image_mean": 0.5, "image_std": 0.5},
    ],
)
def test_flops_are_those_of_torch_s_counter(fields):
    # The counter sees no attention but this one.
    config = MAEConfig.from_size("tiny", attn_implementation="eager", **fields)
    model = MAEForPreTraining(config)
    height, width = to_pair(config.image_size)
    images = torch.randn(2, config.num_channels, height, width)
    with FlopCounterMode(display=False) as forward:
        loss = model(images, return_logits=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() == 2 * throughput.forward_flops(config)
    # Pixels have no gradient.
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == pytest.approx(2 * throughput.training_flops(config), rel=3e-3)


def test_encoder_takes_a_quarter_of_the_vit_as_in_the_paper():
    """ViT-L/16 with 1/4 of the patches: the encoder takes about a quarter of 61.6 GFLOPs (multiply-adds)."""
    config = MAEConfig.from_size("large")
    encoder = throughput._block_flops(24, 50, 1024, 4096)
    assert encoder / 2 / 61.6e9 == pytest.approx(0.25, abs=0.02)
    assert encoder < throughput.forward_flops(config)


def test_peak_of_a_device_by_its_name():
    peak = throughput._peak_of
    assert peak("NVIDIA H100 80GB HBM3", "bf16", tf32=False) == 989e12
    assert peak("NVIDIA H100 PCIe", "fp16", tf32=False) == 756e12
    assert peak("NVIDIA A100-SXM4-80GB", "no", tf32=True) == 156e12
    assert peak("NVIDIA L4", "no", tf32=False) == 30.3e12
    assert peak("NVIDIA L40S", "bf16", tf32=False) == 362e12
    assert peak("Tesla T4", "no", tf32=True) is None and peak("GeForce", "bf16", tf32=False) is None
    assert throughput.peak_flops(torch.device("cpu"), "bf16", tf32=False) is None


def test_tables_of_docs_scaling_are_those_of_the_benchmark(capsys):
    text = (ROOT / "docs" / "scaling.md").read_text()
    scaling.main([])
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 4 and all(table in text for table in tables)
