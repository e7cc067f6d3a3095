# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
What the models of `modeling_mae.py` return.

In the docstrings B is the batch size, C the number of channels, H and W the image size in pixels, L the number of
patches in an image, P the number of values in a patch and D the encoder width.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MAEModelOutput(ModelOutput):
    """
    Output of [`MAEModel`]. S is L without a mask, and the number of visible patches with one.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, 1 + S, D)`):
            The cls token, then the patches in raster order. With a mask, only the visible patches, in the order of
            the mask (`latent` in the official code).
        pooler_output (`torch.Tensor` of shape `(B, D)`):
            The cls token or the mean of the patch tokens, as `config.pooling` selects.
        mask (`torch.Tensor` of shape `(B, L)`, *optional*):
            Patches in raster order: 1 = removed, 0 = visible. `None` without a mask.
        ids_restore (`torch.LongTensor` of shape `(B, L)`, *optional*):
            Index of each patch (in raster order) in [visible patches, removed patches]. `None` without a mask.
        hidden_states (`tuple` of `num_hidden_layers + 1` tensors of shape `(B, 1 + S, D)`, *optional*):
            Input of the first block and output of every block, before the final norm.
        attentions (`tuple` of `num_hidden_layers` tensors of shape `(B, heads, 1 + S, 1 + S)`, *optional*):
            Attention probabilities of each block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(ModelOutput):
    """
    Output of [`MAEForPreTraining`]. The other fields are those of the encoder, see [`MAEModelOutput`].

    Args:
        loss (`torch.Tensor`, a scalar): Mean squared error over the pixels of the removed patches.
        logits (`torch.Tensor` of shape `(B, L, P)`):
            Predicted pixels of all patches in raster order, normalised within each patch if `config.norm_pix_loss`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MAEReconstructionOutput(ModelOutput):
    """
    Output of [`MAEForPreTraining.reconstruct`]: images of shape `(B, C, H, W)`, normalised like `pixel_values`.

    Args:
        masked: The input with the removed patches in the mean colour: 0, or of the image if it is standardised.
        reconstruction: The prediction of every patch.
        pasted: The prediction with the visible patches pasted over it.
        mask (`torch.Tensor` of shape `(B, L)`): 1 = removed.
    """

    masked: Tensor | None = None
    reconstruction: Tensor | None = None
    pasted: Tensor | None = None
    mask: Tensor | None = None
