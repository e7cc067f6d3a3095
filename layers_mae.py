# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
Positions, Transformer blocks and the decoder for `modeling_mae.py`.

In the docstrings B is the batch size, C the number of channels, H and W the image size in pixels, L the number of
patches in an image, P the number of values in a patch and D the encoder width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


try:
    from .attention_mae import MAEAttention
    from .configuration_mae import MAEConfig, to_pair
    from .outputs_mae import MAEModelOutput
    from .patches_mae import MaskedPatches, resample_prediction, resample_projection, take_patches
except ImportError:
    if __package__:
        raise
    from attention_mae import MAEAttention
    from configuration_mae import MAEConfig, to_pair
    from outputs_mae import MAEModelOutput
    from patches_mae import MaskedPatches, resample_prediction, resample_projection, take_patches

# Of the removed patches (B, removed, P), and of all patches (B, L, P) if they are wanted.
Predictions = tuple[Tensor, Tensor | None]


# Positions


def sincos_positions(dim: int, grid_size: tuple[int, int]) -> Tensor:
    """
    Create the official 2-D sin-cos table with a zero row for cls, of shape `(1, 1 + L, dim)`, float32. The first half
    of the channels encodes the column and the second half the row, each as [sin | cos]. The released weights have this
    order because `meshgrid` in the official code puts width first.
    """
    # An explicit device, because a model may be built under `torch.device("meta")`.
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim / 4))
    rows, columns = (torch.arange(side, dtype=torch.float64, device="cpu") for side in grid_size)
    row_angles = torch.outer(rows, omega).repeat_interleave(len(columns), dim=0)
    column_angles = torch.outer(columns, omega).repeat(len(rows), 1)
    table = torch.cat([column_angles.sin(), column_angles.cos(), row_angles.sin(), row_angles.cos()], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float()[None]


def resample_positions(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """
    Resample a position table `(1, 1 + L, D)` to another patch grid: bicubic in 2-D and float32, without antialiasing,
    as in the official fine-tuning code. The cls row is unchanged.
    """
    if old_grid == new_grid:
        return pos_embed
    cls_row, patch_rows = pos_embed[:, :1], pos_embed[:, 1:]
    patch_rows = patch_rows.float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    patch_rows = F.interpolate(patch_rows, size=new_grid, mode="bicubic", align_corners=False)
    patch_rows = patch_rows.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([cls_row, patch_rows.to(pos_embed.dtype)], dim=1)


# Blocks


def drop_path(residual: Tensor, rate: float, training: bool) -> Tensor:
    """Apply stochastic depth: in training, drop whole samples with probability `rate` and rescale the others."""
    if rate == 0 or not training:
        return residual
    keep = residual.new_empty(residual.shape[0], 1, 1).bernoulli_(1 - rate)
    return residual * keep / (1 - rate)


class MAEMLP(nn.Module):
    def __init__(self, config: MAEConfig, dim: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class MAEBlock(GradientCheckpointingLayer):
    """Pre-norm Transformer block, for encoder and decoder."""

    drop_path_rate = 0.0

    def __init__(self, config: MAEConfig, dim: int, num_heads: int, intermediate_size: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = MAEAttention(config, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, dim, intermediate_size)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        residual, attentions = self.attn(self.norm1(hidden_states), output_attentions)
        hidden_states = hidden_states + drop_path(residual, self.drop_path_rate, self.training)
        residual = self.mlp(self.norm2(hidden_states))
        return hidden_states + drop_path(residual, self.drop_path_rate, self.training), attentions


class MAEPatchProjection(nn.Conv2d):
    """A convolution of images `(B, C, H, W)`, or the same product of patches `(B, N, P)` -> `(B, N, D)`."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.ndim == 3:  # as a product, which takes a fifth of the time of a convolution on a CPU
            # Of contiguous patches, because for a slice torch adds the bias afterwards, which rounds otherwise.
            patches = pixel_values.contiguous()
            return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return super().forward(pixel_values)


class MAEPatchEmbeddings(nn.Module):
    """
    Linear projection of patches: images `(B, C, H, W)` -> `(B, L, D)` in raster order, or patches `(B, N, P)` ->
    `(B, N, D)`.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        patch_size = to_pair(config.patch_size)
        self.proj = MAEPatchProjection(config.num_channels, config.hidden_size, patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.proj(pixel_values)
        return embeddings if pixel_values.ndim == 3 else embeddings.flatten(2).transpose(1, 2)

    def resize_patches(self, old_size: tuple[int, int], new_size: tuple[int, int]) -> None:
        """Resample the projection to another patch size."""
        weight = resample_projection(self.proj.weight, new_size)
        self.proj.weight = nn.Parameter(weight, requires_grad=self.proj.weight.requires_grad)
        self.proj.kernel_size = self.proj.stride = new_size


class MAEDecoderBase(nn.Module):
    """
    What all decoders have: a mask token, positions, and a layer that predicts pixels.

    Args:
        modules: The other modules of a decoder, by name.
    """

    def __init__(self, config: MAEConfig, **modules: nn.Module):
        super().__init__()
        dim = config.decoder_hidden_size
        patch_height, patch_width = to_pair(config.patch_size)
        self.grid_size = config.grid_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, dim))
        for name, module in modules.items():
            self.add_module(name, module)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.pred = nn.Linear(dim, patch_height * patch_width * config.num_channels)

    def forward(self, encoded: MAEModelOutput, masked: MaskedPatches, all_patches: bool) -> Predictions:
        """
        Predict the pixels of the removed patches `(B, removed, P)`, in the order of `masked`, and with `all_patches`
        those of all patches `(B, L, P)`, in raster order, else None.
        """
        raise NotImplementedError

    def positions(self, grid_size: tuple[int, int]) -> Tensor:
        """The table of positions `(1 + L, D)` of a grid. Row 0 is that of cls."""
        return resample_positions(self.pos_embed, self.grid_size, grid_size)[0]

    def resize_patches(self, old_size: tuple[int, int], new_size: tuple[int, int]) -> None:
        """Resample the prediction to another patch size."""
        for name, values in list(self.pred.named_parameters()):
            resampled = resample_prediction(values, old_size, new_size)
            setattr(self.pred, name, nn.Parameter(resampled, requires_grad=values.requires_grad))
        self.pred.out_features = len(self.pred.weight)


class MAEDecoder(MAEDecoderBase):
    """
    The light decoder (Section 3, "MAE decoder"). It appends mask tokens for the removed patches, adds positions and
    predicts pixels. Tokens stay in the order [visible, removed], because attention is blind to the order. The official
    code restores the raster order first.
    """

    def __init__(self, config: MAEConfig):
        dim = config.decoder_hidden_size
        embed = nn.Linear(config.hidden_size, dim)
        blocks = nn.ModuleList(
            MAEBlock(config, dim, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        super().__init__(config, embed=embed, blocks=blocks)

    def forward(self, encoded: MAEModelOutput, masked: MaskedPatches, all_patches: bool) -> Predictions:
        hidden_states = self.embed(encoded.last_hidden_state)
        num_removed = masked.ids_shuffle.shape[1] - masked.num_visible
        mask_tokens = self.mask_token.to(hidden_states.dtype).expand(hidden_states.shape[0], num_removed, -1)
        hidden_states = torch.cat([hidden_states, mask_tokens], dim=1)
        rows = F.pad(masked.ids_shuffle + 1, (1, 0))
        hidden_states = hidden_states + F.embedding(rows, self.positions(masked.grid_size))
        for block in self.blocks:
            hidden_states, _ = block(hidden_states)
        num_skipped = 0 if all_patches else masked.num_visible
        predictions = self.pred(self.norm(hidden_states[:, 1 + num_skipped :]))
        logits = take_patches(predictions, masked.ids_restore) if all_patches else None
        return predictions[:, masked.num_visible - num_skipped :], logits
