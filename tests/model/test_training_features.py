"""Gradient checkpointing, compilation, export, half precision, Trainer, and learning a toy task."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_config, tiny_model


def gradients(model, **arguments):
    model.zero_grad()
    model(make_images(), **arguments).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("cls", [MAEForPreTraining, MAEForImageClassification])
def test_gradient_checkpointing_recomputes_and_keeps_the_gradients(cls):
    model = tiny_model(cls).train()
    arguments = {"noise": make_noise()} if cls is MAEForPreTraining else {"labels": torch.tensor([0, 1])}
    expected = gradients(model, **arguments)
    model.gradient_checkpointing_enable()
    calls = []
    model.mae.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for name, gradient in gradients(model, **arguments).items():
        assert_close(gradient, expected[name], 1e-6)
    assert len(calls) == 2  # forward, and once more in the backward


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "cls, arguments",
    [(MAEModel, {}), (MAEModel, {"noise": make_noise()}), (MAEForPreTraining, {"noise": make_noise()})],
)
def test_compiled_model_equals_the_eager_one(cls, arguments, compiled):
    model = tiny_model(cls)
    expected, actual = model(make_images(), **arguments), compiled(model)(make_images(), **arguments)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert_close(actual[key], value)


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_compiled_gradients_equal_the_eager_ones(masking, compiled):
    model = tiny_model(masking=masking).train()
    expected = gradients(model, noise=make_noise())
    for name, gradient in gradients(compiled(model), noise=make_noise()).items():
        assert_close(gradient, expected[name.removeprefix("_orig_mod.")])


@pytest.mark.parametrize("cls, masked", [(MAEModel, False), (MAEForPreTraining, True)])
def test_exported_model_takes_other_batch_sizes(cls, masked):
    model = tiny_model(cls)
    batch = torch.export.Dim("batch", min=2)
    inputs = {"pixel_values": make_images(batch_size=3)}
    if masked:
        inputs["noise"] = make_noise(3)
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    other = {"pixel_values": make_images(batch_size=5)}
    if masked:
        other["noise"] = make_noise(5)
    expected, actual = model(**other), program.module()(**other)
    for key, value in expected.items():
        assert_close(actual[key], value)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_has_a_float32_loss(dtype, norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss)
    images, noise = make_images(), make_noise()
    expected = model(images, noise=noise).loss
    model.to(dtype)
    outputs = model(images.to(dtype), noise=noise)
    assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=0.02)
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.reconstruct(images.to(dtype), noise=noise).pasted.dtype == dtype


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_of_half_precision_is_computed_in_float32(norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss)
    patches, predictions = torch.randn(2, 2, 12, 192).bfloat16()
    assert model.loss(patches, predictions) == model.loss(patches.float(), predictions.float())


def test_bfloat16_autocast_keeps_the_mask_and_a_float32_loss():
    model = tiny_model()
    images, noise = make_images(), make_noise()
    expected = model(images, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, noise=noise)
    assert outputs.loss.dtype == torch.float32 and outputs.logits.dtype == torch.bfloat16
    assert torch.equal(outputs.mask, expected.mask)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)


def test_half_precision_classifier_has_a_float32_loss():
    model = tiny_model(MAEForImageClassification, num_labels=5)
    labels = torch.tensor([1, 4])
    expected = model(make_images(), labels=labels).loss.item()
    loss = model.bfloat16()(make_images().bfloat16(), labels=labels).loss
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.05)


def test_return_dict_false_returns_tuples():
    model = tiny_model(return_dict=True)
    images, noise = make_images(), make_noise()
    outputs = model(images, noise=noise)
    tuple_ = model(images, noise=noise, return_dict=False)
    assert isinstance(tuple_, tuple) and len(tuple_) == 4
    for value, key in zip(tuple_, ("loss", "logits", "mask", "ids_restore")):
        assert torch.equal(value, outputs[key])
    last_hidden_state, pooler_output = model.mae(images, return_dict=False)
    assert last_hidden_state.shape == (2, 17, 32) and pooler_output.shape == (2, 32)
    by_configuration = tiny_model(return_dict=False)(images, noise=noise)
    assert isinstance(by_configuration, tuple) and torch.equal(by_configuration[1], outputs.logits)
    loss, logits = tiny_model(MAEForImageClassification)(images, labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.ndim == 0 and logits.shape == (2, 2)


def test_trainer_evaluates_without_labels(tmp_path):
    model = tiny_model()
    nn.init.zeros_(model.decoder.pred.weight)
    nn.init.zeros_(model.decoder.pred.bias)
    images = make_images(batch_size=6).sign() * 3  # predicting zero costs 9 everywhere
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=4, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments, eval_dataset=[{"pixel_values": image} for image in images])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(9)


def test_learns_a_toy_task():
    """Gradients between two random colours, which the visible quarter of an image determines."""
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=256,
        decoder_hidden_size=32,
        decoder_intermediate_size=128,
    )
    model = MAEForPreTraining(config).train()
    ramp = torch.linspace(0, 1, 32)

    def batch(size):
        start, end = torch.randn(2, size, 3, 1, 1)
        vertical = torch.rand(size, 1, 1, 1) < 0.5
        weight = torch.where(vertical, ramp[:, None], ramp[None, :])
        return start + (end - start) * weight

    mean_prediction = ((1 - ramp) ** 2 + ramp**2).mean().item()  # variance of a pixel, 0.68
    assert batch(4000).square().mean().item() == pytest.approx(mean_prediction, rel=0.05)
    assert model.eval()(batch(64)).loss > 0.9 * mean_prediction
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=300)
    for _ in range(300):
        model(batch(64)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        assert model.eval()(batch(512)).loss < 0.2 * mean_prediction
