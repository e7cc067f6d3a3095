"""Points of the cost benchmark, and the measurement of one."""

from dataclasses import replace

import pytest
import torch

from benchmarks.sweeps import QUICK, SWEEPS, Point, measure, points_of
from modeling_mae import MAEForPreTraining


DEFAULT = Point("tiny", 32, 1, 0.75)


@pytest.mark.parametrize("image_size", SWEEPS["image_size"])
def test_mask_ratio_0_removes_a_single_patch(image_size):
    config = replace(DEFAULT, image_size=image_size, mask_ratio=0.0).config
    config.hidden_size, config.num_attention_heads, config.num_hidden_layers = 4, 1, 1
    config.decoder_hidden_size, config.decoder_num_attention_heads, config.decoder_num_hidden_layers = 4, 1, 1
    with torch.device("meta"):
        model = MAEForPreTraining(config)
    latent = model.mae(torch.empty(1, 3, image_size, image_size, device="meta"), mask_ratio=config.mask_ratio)
    assert latent.last_hidden_state.shape[1] == 1 + (image_size // 16) ** 2 - 1


@pytest.mark.parametrize("sweeps", [SWEEPS, QUICK])
def test_each_sweep_changes_one_value_and_contains_the_default_point(sweeps):
    points = points_of(sweeps, DEFAULT)
    for name, swept in points.items():
        assert DEFAULT in swept and {getattr(point, name) for point in swept} >= set(sweeps[name])
        assert {replace(point, **{name: getattr(DEFAULT, name)}) for point in swept} == {DEFAULT}
        assert [point.flops for point in swept] == sorted(point.flops for point in swept)


def test_memory_of_a_point_holds_weights_gradients_and_moments():
    cost = measure(DEFAULT, "fp32", rounds=1)
    weights = 4 * MAEForPreTraining(DEFAULT.config).num_parameters()
    assert cost.seconds > 0
    assert cost.memory is None or 3 * weights < cost.memory < 8 * weights
