# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
The cross-attention decoder of CrossMAE (Fu et al. 2024, arXiv 2401.14391) for `modeling_mae.py`.

Mask tokens attend to the encoded visible patches, and not to each other. So each patch is predicted alone, and in
training only some of the removed patches need be predicted.

In the docstrings B is the batch size, N the number of patches that are predicted, S the number of visible patches, L
the number of patches in an image, P the number of values in a patch and D the encoder width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer


try:
    from .attention_mae import attend
    from .configuration_mae import MAEConfig
    from .layers_mae import MAEMLP, MAEDecoder, MAEDecoderBase, Predictions
    from .outputs_mae import MAEModelOutput
    from .patches_mae import MaskedPatches, take_patches
except ImportError:
    if __package__:
        raise
    from attention_mae import attend
    from configuration_mae import MAEConfig
    from layers_mae import MAEMLP, MAEDecoder, MAEDecoderBase, Predictions
    from outputs_mae import MAEModelOutput
    from patches_mae import MaskedPatches, take_patches


class MAECrossAttention(nn.Module):
    """Multi-head attention from mask tokens `(B, N, decoder width)` to encoded patches `(B, 1 + S, D)`."""

    is_causal = False  # attention functions of transformers read it

    def __init__(self, config: MAEConfig):
        super().__init__()
        dim = config.decoder_hidden_size
        self.config = config
        self.num_heads = config.decoder_num_attention_heads
        self.scaling = (dim // self.num_heads) ** -0.5
        self.dropout = config.attention_probs_dropout_prob
        self.q = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.kv = nn.Linear(config.hidden_size, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor, features: Tensor) -> Tensor:
        query = self.q(hidden_states).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(features).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(self, query, key, value)[0].flatten(2))


class MAECrossBlock(GradientCheckpointingLayer):
    """Pre-norm block of cross-attention and MLP."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        dim = config.decoder_hidden_size
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = MAECrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, dim, config.decoder_intermediate_size)

    def forward(self, hidden_states: Tensor, features: Tensor) -> Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), features)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class MAEWeightedFeatures(nn.Module):
    """
    A weighted sum of the encoder's feature maps for each block of the decoder, and its norm (Section 3.4,
    "inter-block attention").

    The maps are the input of the first block, the outputs of the blocks and, for the last one, the encoder's output.
    The official code takes the last block before the encoder's norm, which it then does not train.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        num_blocks = config.decoder_num_hidden_layers
        self.weights = nn.Linear(config.num_hidden_layers + 1, num_blocks, bias=False)
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(num_blocks)
        )

    def forward(self, encoded: MAEModelOutput) -> list[Tensor]:
        """The features `(B, 1 + S, D)` of each block."""
        maps = torch.stack([*encoded.hidden_states[:-1], encoded.last_hidden_state])
        sums = torch.einsum("bm,mnsd->bnsd", self.weights.weight.to(maps.dtype), maps)
        return [norm(features) for norm, features in zip(self.norms, sums)]


class MAECrossDecoder(MAEDecoderBase):
    """A decoder whose mask tokens attend to the encoded visible patches only."""

    def __init__(self, config: MAEConfig):
        blocks = nn.ModuleList(MAECrossBlock(config) for _ in range(config.decoder_num_hidden_layers))
        features = {"features": MAEWeightedFeatures(config)} if config.weighted_feature_maps else {}
        super().__init__(config, **features, blocks=blocks)
        self.weighted = config.weighted_feature_maps

    def forward(self, encoded: MAEModelOutput, masked: MaskedPatches, all_patches: bool) -> Predictions:
        ids_removed = masked.ids_shuffle[:, masked.num_visible :]
        positions = self.positions(masked.grid_size)
        if not all_patches:
            return self._predict(encoded, F.embedding(ids_removed + 1, positions)), None
        logits = self._predict(encoded, positions[1:].expand(len(ids_removed), -1, -1))
        return take_patches(logits, ids_removed), logits

    def _predict(self, encoded: MAEModelOutput, positions: Tensor) -> Tensor:
        """Predict the patches at positions `(B, N, decoder width)`: `(B, N, P)`."""
        features = self.features(encoded) if self.weighted else [encoded.last_hidden_state] * len(self.blocks)
        hidden_states = self.mask_token + positions
        for block, its_features in zip(self.blocks, features):
            hidden_states = block(hidden_states, its_features)
        return self.pred(self.norm(hidden_states))


def make_decoder(config: MAEConfig) -> MAEDecoderBase:
    """The decoder that a configuration describes."""
    return MAECrossDecoder(config) if config.decoder_type == "cross_attention" else MAEDecoder(config)


def choose_predicted(masked: MaskedPatches, noise: Tensor | None, prediction_ratio: float) -> MaskedPatches:
    """
    Keep the visible patches and, of the removed ones, `int(L * prediction_ratio)` with the largest noise (Section
    3.3, "partial reconstruction"). They keep their order.

    Args:
        noise: Of shape `(B, L)`. If it is None, it comes from the default generator of torch.
        prediction_ratio: Share of all patches, at least one patch and at most the removed ones.
    """
    batch_size, num_patches = masked.ids_shuffle.shape
    num_removed = num_patches - masked.num_visible
    count = min(max(int(num_patches * prediction_ratio), 1), num_removed)
    noise = torch.rand_like(masked.mask) if noise is None else noise.to(masked.ids_shuffle.device)
    of_removed = noise.gather(1, masked.ids_shuffle[:, masked.num_visible :])
    chosen = of_removed.argsort(dim=1, stable=True)[:, num_removed - count :].sort(dim=1).values
    visible = torch.arange(masked.num_visible, device=chosen.device).expand(batch_size, -1)
    kept = torch.cat([visible, masked.num_visible + chosen], dim=1)
    return masked._replace(patches=take_patches(masked.patches, kept), ids_shuffle=masked.ids_shuffle.gather(1, kept))
