"""
The Masked Autoencoder as the official implementation builds it, from the blocks of a current timm.

A peer of the step, and independent of the model files. Parameters have the official names, so official checkpoints
load. Positions are left at zero: a checkpoint brings them, and their values do not change the time of a step.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block, PatchEmbed
from torch import Tensor, nn

from configuration_mae import MAEConfig


class TimmMAE(nn.Module):
    """Masked Autoencoder of square images. Blocks come from timm, with its default attention."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.config = config
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        width, decoder_width = config.hidden_size, config.decoder_hidden_size

        def blocks(count: int, dim: int, heads: int, hidden: int) -> nn.ModuleList:
            options = {"mlp_ratio": hidden / dim, "qkv_bias": config.qkv_bias, "norm_layer": norm}
            return nn.ModuleList(Block(dim, heads, **options) for _ in range(count))

        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, config.num_channels, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width), requires_grad=False)
        self.blocks = blocks(
            config.num_hidden_layers, width, config.num_attention_heads, config.intermediate_size
        )  # fmt: skip
        self.norm = norm(width)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_width) * 0.02)
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, decoder_width), requires_grad=False
        )
        self.decoder_blocks = blocks(
            config.decoder_num_hidden_layers, decoder_width, config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )  # fmt: skip
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, config.patch_size**2 * config.num_channels)

    def forward(self, pixel_values: Tensor, noise: Tensor) -> Tensor:
        """The loss for images `(B, C, H, W)` and noise `(B, L)`: the patches of smallest noise stay visible."""
        shuffled = noise.argsort(dim=1)
        restored = shuffled.argsort(dim=1)
        num_visible = int(noise.shape[1] * (1 - self.config.mask_ratio))
        latent = self.encode(pixel_values, shuffled[:, :num_visible])
        prediction = self.decode(latent, restored)
        return self.loss(pixel_values, prediction, removed=(restored >= num_visible).float())

    def encode(self, pixel_values: Tensor, visible: Tensor) -> Tensor:
        """Latent `(B, 1 + visible, D)` of the patches with the indices `visible`."""
        tokens = self.patch_embed(pixel_values) + self.pos_embed[:, 1:]
        tokens = _take(tokens, visible)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def decode(self, latent: Tensor, restored: Tensor) -> Tensor:
        """Pixels `(B, L, P)` of all patches in raster order."""
        tokens = self.decoder_embed(latent)
        num_removed = restored.shape[1] - (tokens.shape[1] - 1)
        mask_tokens = self.mask_token.expand(len(tokens), num_removed, -1).to(tokens.dtype)
        patches = _take(torch.cat([tokens[:, 1:], mask_tokens], dim=1), restored)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def loss(self, pixel_values: Tensor, prediction: Tensor, removed: Tensor) -> Tensor:
        """Mean squared error over the removed patches."""
        side = self.config.patch_size
        patches = pixel_values.unfold(2, side, side).unfold(3, side, side)  # (B, C, rows, columns, side, side)
        target = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        errors = (prediction - target).square().mean(dim=-1)
        return (errors * removed).sum() / removed.sum()


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens `(B, N, D)` with the given indices `(B, M)`."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
