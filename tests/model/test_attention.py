"""Attention: gradients against closed forms, and where which implementation is used."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import attention_mae
from attention_mae import DEFAULT_ATTENTION, ProductGradient
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from tests.support.models import tiny_config, tiny_model


SHAPES = [(3, 17, 4, 8), (2, 5, 2, 32), (1, 50, 3, 16), (5, 1, 2, 8)]  # images, tokens, heads, width of a head


def make_qkv(images, tokens, heads, width, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(images, tokens, 3, heads, width, generator=generator).to(dtype)
    return qkv, torch.randn(images, tokens, heads, width, generator=generator).to(dtype)


def gradient(function, qkv, grad_output):
    qkv = qkv.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(qkv), qkv, grad_output)
    return grad


def by_products(qkv):
    return ProductGradient.apply(qkv, qkv.shape[-1] ** -0.5)


def closed_form(qkv, grad_output):
    """Output and gradient of softmax attention, written out in float64."""
    query, key, value = qkv.double().permute(2, 0, 3, 1, 4)
    grad_output = grad_output.double().transpose(1, 2)
    scale = qkv.shape[-1] ** -0.5
    exponentials = torch.exp(scale * torch.einsum("bhqd,bhkd->bhqk", query, key))
    probabilities = exponentials / exponentials.sum(-1, keepdim=True)
    output = torch.einsum("bhqk,bhkd->bhqd", probabilities, value)
    grad_probabilities = torch.einsum("bhqd,bhkd->bhqk", grad_output, value)
    mean = (probabilities * grad_probabilities).sum(-1, keepdim=True)
    grad_scores = scale * probabilities * (grad_probabilities - mean)
    grads = (
        torch.einsum("bhqk,bhkd->bhqd", grad_scores, key),
        torch.einsum("bhqk,bhqd->bhkd", grad_scores, query),
        torch.einsum("bhqk,bhqd->bhkd", probabilities, grad_output),
    )
    return output.transpose(1, 2), torch.stack(grads).permute(1, 3, 0, 2, 4)


def uses_products(loss):
    """Whether the graph of a loss has the gradient of plain products."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return any(type(node).__name__ == "ProductGradientBackward" for node in seen)


def loss_in_bfloat16(model, images=None):
    images = torch.randn(2, 3, 32, 32) if images is None else images
    with torch.autocast("cpu", torch.bfloat16):
        return model(images)[0].float().square().mean()


# The gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_output_and_gradient_equal_closed_form(shape, dtype, tolerance):
    qkv, grad_output = make_qkv(*shape, dtype)
    output, grad = closed_form(qkv, grad_output)
    for actual, expected in ((by_products(qkv), output), (gradient(by_products, qkv, grad_output), grad)):
        assert actual.dtype == dtype and actual.shape == expected.shape
        # The gradient of a single token through its own softmax is 0.
        assert (actual.double() - expected).abs().max() <= tolerance * max(expected.abs().max(), 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_is_that_of_the_fused_kernel_to_the_last_bit(shape):
    qkv, _ = make_qkv(*shape)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    assert torch.equal(by_products(qkv), F.scaled_dot_product_attention(query, key, value).transpose(1, 2))


@pytest.mark.parametrize("matrices", [1, 2, 3, 4, 7, 8])
def test_gradient_in_parts_equals_the_gradient_at_once(matrices, monkeypatch):
    qkv, grad_output = make_qkv(3, 17, 4, 8)
    at_once = gradient(by_products, qkv, grad_output)
    monkeypatch.setattr(attention_mae, "_CHUNK_BYTES", matrices * 17 * 17 * 2 // torch.get_num_threads() + 1)
    torch.testing.assert_close(gradient(by_products, qkv, grad_output), at_once)


def test_gradient_of_strided_tensors_is_that_of_contiguous_ones():
    qkv, grad_output = make_qkv(3, 17, 4, 8)
    strided = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    grad = gradient(by_products, strided, grad_output.mT.contiguous().mT)
    assert torch.equal(grad, gradient(by_products, qkv, grad_output))


def test_gradient_keeps_no_attention_matrix():
    qkv, _ = make_qkv(2, 50, 4, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        by_products(qkv.requires_grad_())
    assert kept == [qkv.numel()]


def test_second_derivative_is_refused():
    qkv, grad_output = make_qkv(2, 5, 2, 8)
    with pytest.raises(RuntimeError, match="second derivative.*attn_implementation='eager'"):
        torch.autograd.grad(by_products(qkv.requires_grad_()), qkv, grad_output, create_graph=True)


def test_backward_inside_autocast_equals_backward_outside():
    qkv, grad_output = make_qkv(2, 17, 4, 8)
    outside = gradient(by_products, qkv, grad_output)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(by_products, qkv, grad_output), outside)


# Where it is used


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
@pytest.mark.parametrize("training", [False, True])
def test_default_attention_has_gradients_by_products_in_bfloat16_on_a_cpu(cls, training):
    model = tiny_model(cls).train(training)
    assert model.config._attn_implementation == DEFAULT_ATTENTION
    assert uses_products(loss_in_bfloat16(model))
    assert uses_products(model.bfloat16()(torch.randn(2, 3, 32, 32).bfloat16())[0].sum())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_requested_attention_is_not_replaced(attention):
    for model in (tiny_model(attn_implementation=attention), tiny_model()):
        model.set_attn_implementation(attention)
        assert not uses_products(loss_in_bfloat16(model))
        assert model.config._attn_implementation == attention


def test_default_attention_survives_copies_of_the_configuration():
    model = tiny_model()
    for config in (model.config, copy.deepcopy(model.config), type(model.config).from_dict(model.config.to_dict())):
        assert uses_products(loss_in_bfloat16(MAEModel(config)))
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation(DEFAULT_ATTENTION)
    assert uses_products(loss_in_bfloat16(model))


def test_fused_kernel_keeps_float32_and_inference():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 32)
    assert not uses_products(model(images).loss)
    with torch.no_grad():
        assert loss_in_bfloat16(model, images).grad_fn is None


def test_dropout_and_attention_probabilities_keep_their_implementation():
    model = tiny_model(MAEModel, attention_probs_dropout_prob=0.5).train()
    assert not uses_products(loss_in_bfloat16(model))
    assert uses_products(loss_in_bfloat16(model.eval()))
    model = tiny_model(MAEModel, output_attentions=True, attn_implementation="eager")
    model.set_attn_implementation(DEFAULT_ATTENTION)
    assert not uses_products(loss_in_bfloat16(model))


def test_traced_graphs_and_function_transforms_have_the_fused_operation():
    attention = attention_mae.MAEAttention(tiny_config(attn_implementation=DEFAULT_ATTENTION), 32, 4).bfloat16()
    tokens = torch.randn(2, 5, 32).bfloat16()
    expected = attention(tokens)[0]
    assert uses_products(expected)
    graphs = []
    compiled = torch.compile(attention, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    assert torch.equal(compiled(tokens)[0], expected)
    assert "scaled_dot_product_attention" in graphs[0].code
    exported = torch.export.export(attention, (tokens,))
    assert "scaled_dot_product_attention" in exported.graph_module.code
    attention.requires_grad_(False)
    traced = torch.jit.trace(lambda x: attention(x)[0], (tokens.requires_grad_(),), check_trace=False)
    assert "scaled_dot_product_attention" in str(traced.graph)
    norms = torch.func.vmap(torch.func.grad(lambda x: attention(x[None])[0].float().sum()))(tokens)
    assert norms.shape == tokens.shape


def test_gradients_of_the_model_are_those_of_the_fused_kernel_within_bfloat16():
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    losses, grads = [], []
    for attention in (DEFAULT_ATTENTION, "sdpa"):
        model = tiny_model(attn_implementation=attention).train()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(images, noise=noise).loss)
        losses[-1].backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(*losses)  # the forward pass is the same
    for name, expected in grads[1].items():
        assert (grads[0][name] - expected).norm() <= 0.02 * expected.norm() + 1e-4, name


def test_gradient_checkpointing_keeps_the_gradient():
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    grads = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.autocast("cpu", torch.bfloat16):
            model(images, noise=noise).loss.backward()
        grads.append(nn.utils.parameters_to_vector(p.grad for p in model.parameters() if p.grad is not None))
    assert torch.equal(*grads)
