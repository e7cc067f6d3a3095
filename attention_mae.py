# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
Multi-head self-attention for `modeling_mae.py`.

In the docstrings B is the batch size, N the number of tokens and d the width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# The implementation if the user requests none. It is "sdpa", with a faster gradient where `has_faster_gradient`.
DEFAULT_ATTENTION = "mae_sdpa"
# Attention scores of one step of the gradient, in bytes per thread. Two such matrices fit in the cache of a core.
_CHUNK_BYTES = 2**21


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """
    Compute attention by plain matrix products, with the signature of the attention functions of transformers:
    `(B, heads, N, d)` each -> output `(B, N, heads, d)` and probabilities `(B, heads, N, N)`.
    """
    probabilities = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(probabilities, p=dropout, training=module.training) @ value
    return output.transpose(1, 2), probabilities


def has_faster_gradient(qkv: Tensor) -> bool:
    """
    Whether [`ProductGradient`] is faster than the fused kernel's gradient: for bfloat16 on a CPU. Without a gradient,
    in float32 and on a GPU the fused kernel is as fast or faster. A traced graph keeps the fused operation, and the
    transforms of `torch.func` know no other.
    """
    return (
        qkv.dtype == torch.bfloat16
        and qkv.device.type == "cpu"
        and qkv.requires_grad
        and torch.is_grad_enabled()
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch._C._are_functorch_transforms_active()
    )


class ProductGradient(torch.autograd.Function):
    """
    Attention `(B, N, 3, heads, d)` -> `(B, N, heads, d)` with the output of `F.scaled_dot_product_attention` and a
    gradient of plain batched products.

    The fused kernel of torch computes the gradient on a CPU in bfloat16 three to seven times as slowly as such
    products. Probabilities are computed again in the gradient, for a few heads at a time. No matrix of N x N is
    kept, so this takes no more memory than the fused kernel.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.scaling = scaling
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # by create_graph=True
            raise RuntimeError(
                "This attention has no second derivative. Load the model with attn_implementation='eager', or call "
                "model.set_attn_implementation('eager')."
            )
        (qkv,) = ctx.saved_tensors
        batch_size, length, _, num_heads, _ = qkv.shape
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        matrices = max(1, _CHUNK_BYTES * torch.get_num_threads() // (length * length * qkv.element_size()))
        images, heads = max(1, matrices // num_heads), min(matrices, num_heads)
        with torch.autocast("cpu", enabled=False):
            for image in range(0, batch_size, images):
                for head in range(0, num_heads, heads):
                    part = (slice(image, image + images), ..., slice(head, head + heads), slice(None))
                    grad_qkv[part] = _gradient(qkv[part], grad_output[part], ctx.scaling)
        return grad_qkv, None


def _gradient(qkv: Tensor, grad_output: Tensor, scaling: float) -> Tensor:
    """Gradient of attention for `qkv` of shape `(B, N, 3, heads, d)`, of the same shape."""
    batch_size, length, _, num_heads, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, -1, length, width)
    grad_output = grad_output.transpose(1, 2).reshape(-1, length, width)
    scores = qkv.new_empty(len(query), length, length)
    torch.baddbmm(scores, query, key.mT, beta=0, alpha=scaling, out=scores)
    probabilities = torch.softmax(scores, dim=-1, out=scores)
    grads = qkv.new_empty(3, *query.shape)
    grad_query, grad_key, grad_value = grads
    torch.bmm(probabilities.mT, grad_output, out=grad_value)
    grad_scores = torch.bmm(grad_output, value.mT)
    torch._softmax_backward_data(grad_scores, probabilities, -1, qkv.dtype, grad_input=grad_scores)
    torch.baddbmm(grad_query, grad_scores, key, beta=0, alpha=scaling, out=grad_query)
    torch.baddbmm(grad_key, grad_scores.mT, query, beta=0, alpha=scaling, out=grad_key)
    return grads.view(3, batch_size, num_heads, length, width).permute(1, 3, 0, 2, 4)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, eagerly: bool = False) -> tuple[Tensor, Any]:
    """
    Attention of query, key and value, `(B, heads, N, d)` each, by the implementation of `module.config`: the output
    `(B, N, heads, d)`, and the probabilities if the implementation returns them. Only the eager function does.
    """
    attention = eager_attention_forward
    if not eagerly:
        implementation = module.config._attn_implementation
        implementation = "sdpa" if implementation == DEFAULT_ATTENTION else implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, attention)
    dropout = module.dropout if module.training else 0.0
    return attention(module, query, key, value, None, scaling=module.scaling, dropout=dropout)


class MAEAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    is_causal = False  # attention functions of transformers read it

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (dim // num_heads) ** -0.5
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        output, probabilities = self._attend(self.qkv(hidden_states), output_attentions)
        return self.proj(output.flatten(2)), probabilities if output_attentions else None

    def _attend(self, qkv: Tensor, output_attentions: bool) -> tuple[Tensor, Any]:
        """Return the output `(B, N, heads, d)`, and the probabilities if the implementation returns them."""
        qkv = qkv.unflatten(2, (3, self.num_heads, -1))
        has_dropout = self.training and self.dropout > 0
        if self.config._attn_implementation == DEFAULT_ATTENTION and not (output_attentions or has_dropout):
            if has_faster_gradient(qkv):
                return ProductGradient.apply(qkv, self.scaling), None
        return attend(self, *qkv.permute(2, 0, 3, 1, 4), eagerly=output_attentions)
