"""Transformer blocks: drop path, dropout, attention, hidden states, pooling."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from layers_mae import drop_path
from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_config, tiny_model


def test_drop_path_rate_of_the_configuration_rises_over_the_blocks():
    model = MAEModel(tiny_config(num_hidden_layers=5, drop_path_rate=0.2))
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx(np.linspace(0, 0.2, 5).tolist())
    assert MAEModel(tiny_config(num_hidden_layers=1, drop_path_rate=0.2)).blocks[0].drop_path_rate == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20000, 3, 2), 0.3, training=True)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert (drop_path(torch.ones(2000, 1, 1), 0.3, training=False) == 1).all()
    assert_close(dropped.flatten(1).unique(dim=0), torch.tensor([[0.0] * 6, [1 / 0.7] * 6]))  # whole samples


def test_drop_path_acts_in_training_and_in_the_encoder_only():
    model = tiny_model(MAEModel, drop_path_rate=0.5)
    plain = tiny_model(MAEModel)
    images = make_images(batch_size=8)
    assert_close(model(images).last_hidden_state, plain(images).last_hidden_state, 0)
    trained = model.train()(images).last_hidden_state
    assert not torch.equal(trained, model(images).last_hidden_state)
    decoder = tiny_model(drop_path_rate=0.5).train().decoder
    assert all(block.drop_path_rate == 0 for block in decoder.blocks)


def test_attention_dropout_acts_in_training_only():
    model = tiny_model(MAEModel, attention_probs_dropout_prob=0.5)
    images = make_images()
    assert torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)
    assert not torch.equal(model.train()(images).last_hidden_state, model(images).last_hidden_state)


def test_qkv_bias_false_leaves_out_the_bias():
    model = tiny_model(qkv_bias=False)
    assert not [name for name in model.state_dict() if name.endswith("qkv.bias")]
    assert model(make_images()).loss.isfinite()


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_hidden_states_are_those_before_and_after_each_block(cls):
    model = tiny_model(cls, num_hidden_layers=3)
    encoder = model if cls is MAEModel else model.mae
    images, noise = make_images(), make_noise()
    mask = {} if cls is MAEForImageClassification else {"noise": noise}
    hidden_states = model(images, output_hidden_states=True, **mask).hidden_states
    assert len(hidden_states) == 4
    assert_close(encoder.norm(hidden_states[-1]), encoder(images, **mask).last_hidden_state)
    tokens = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    if mask:
        ids_keep = noise.argsort(dim=1)[:, :4]
        tokens = torch.stack([tokens[i, ids_keep[i]] for i in range(2)])
    assert_close(hidden_states[0][:, 1:], tokens)
    assert_close(hidden_states[0][:, 0], (encoder.cls_token + encoder.pos_embed[:, :1])[:, 0].expand(2, -1))
    assert_close(encoder.blocks[1](hidden_states[1])[0], hidden_states[2])
    assert model(images, **mask).hidden_states is None


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_attentions_are_the_same_for_sdpa_and_eager(cls):
    sdpa, eager = (tiny_model(cls, attn_implementation=name) for name in ("sdpa", "eager"))
    images = make_images()
    mask = {} if cls is MAEForImageClassification else {"noise": make_noise()}
    length = 5 if mask else 17
    outputs = sdpa(images, output_attentions=True, **mask)
    assert len(outputs.attentions) == 2
    for actual, expected in zip(outputs.attentions, eager(images, output_attentions=True, **mask).attentions):
        assert actual.shape == (2, 4, length, length)
        assert_close(actual.sum(-1), torch.ones(2, 4, length))
        assert_close(actual, expected)
    plain = sdpa(images, **mask)
    assert plain.attentions is None
    assert_close(outputs[0], plain[0])
    assert_close(eager(images, **mask)[0], plain[0])


@pytest.mark.parametrize("attention, calls", [("sdpa", 4), ("eager", 0)])
def test_attention_implementation_is_used(attention, calls, monkeypatch):
    model = tiny_model(attn_implementation=attention)
    counted, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: counted.append(1) or sdpa(*a, **k))
    model(make_images())
    assert len(counted) == calls  # blocks of encoder and decoder
    model.mae(make_images(), output_attentions=True)
    assert len(counted) == calls


def test_attention_probabilities_equal_closed_form():
    model = tiny_model(MAEModel)
    outputs = model(make_images(), output_attentions=True, output_hidden_states=True)
    block = model.blocks[0]
    query, key, _ = (x.view(2, 17, 4, 8) for x in block.attn.qkv(block.norm1(outputs.hidden_states[0])).chunk(3, -1))
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(8)
    assert_close(outputs.attentions[0], scores.exp() / scores.exp().sum(-1, keepdim=True))


def test_output_hidden_states_defaults_to_the_configuration():
    model = tiny_model(MAEModel, output_hidden_states=True)
    assert len(model(make_images()).hidden_states) == 3
    assert model(make_images(), output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_selects_cls_token_or_mean(pooling):
    model = tiny_model(MAEModel, pooling=pooling)
    outputs = model(make_images(), output_hidden_states=True)
    last = outputs.hidden_states[-1]
    if pooling == "cls":
        assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    else:
        assert not any(name.startswith("norm.") for name in model.state_dict())
        assert_close(outputs.last_hidden_state, last)
        assert_close(outputs.pooler_output, last[:, 1:].mean(1))
    pretraining = tiny_model(pooling=pooling)
    assert "mae.norm.weight" in pretraining.state_dict()


def test_no_weight_decay_holds_for_cls_token_and_positions_of_the_classifier_only():
    assert tiny_model().no_weight_decay() == tiny_model(MAEModel).no_weight_decay() == set()
    model = tiny_model(MAEForImageClassification)
    assert model.no_weight_decay() == {"mae.cls_token", "mae.pos_embed"} <= model.state_dict().keys()


def test_set_drop_path_rate_changes_blocks_and_configuration():
    model = tiny_model(MAEModel, num_hidden_layers=5, drop_path_rate=0.4)
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    model.set_drop_path_rate(0.2)
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert model.config.drop_path_rate == 0.2
