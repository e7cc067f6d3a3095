"""A model with mask tokens in its encoder: what it sees, what it computes, and the ceilings of the paper."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.mask_tokens import BASELINE, ONE_BLOCK, OURS, MaskTokensInEncoder, ceilings, configurations, main
from mae.training.flops import forward_flops
from tests.support.models import assert_close, tiny_config, tiny_model


def test_encoder_sees_mask_tokens_instead_of_removed_pixels():
    model = MaskTokensInEncoder(tiny_model())
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    removed = noise.argsort(dim=1).argsort(dim=1) >= 4
    loss, logits = model(images, noise)
    pixels = removed.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    _, others = model(torch.where(pixels, torch.randn_like(images), images), noise)
    assert_close(others, logits, 1e-6)
    _, others = model(torch.where(pixels, images, torch.randn_like(images)), noise)
    assert (others - logits).abs().max() > 1e-2
    target = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    assert_close(loss, (logits - target)[removed].square().mean())
    loss.backward()
    assert model.mask_token.grad.abs().sum() > 0


def test_encoder_computes_as_much_as_without_a_mask():
    config = tiny_config(attn_implementation="eager", image_size=64)
    with torch.device("meta"):
        model = MaskTokensInEncoder(tiny_model(attn_implementation="eager", image_size=64).to("meta"))
        images, noise = torch.empty(2, 3, 64, 64), torch.empty(2, 64)
    with FlopCounterMode(display=False) as counter:
        model(images, noise)
    assert counter.get_total_flops() == pytest.approx(2 * forward_flops(config, 64, 64), rel=0.02)


def test_ceilings_of_vit_large_follow_from_flops():
    limits = ceilings(configurations("large", 224))
    assert limits == {BASELINE: 1.0, OURS: pytest.approx(3.23, abs=0.05), ONE_BLOCK: pytest.approx(4.15, abs=0.08)}


def test_table_has_a_row_for_each_encoder_and_decoder(capsys):
    main(["--model_size", "tiny", "--image_size", "32", "--batch_size", "1", "--rounds", "1", "--precisions", "bf16"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| bf16")]
    assert [row[1] for row in rows] == [BASELINE, OURS, ONE_BLOCK]
    assert rows[0][3] == "1.00"
