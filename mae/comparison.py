"""A checkpoint in the code that it is for, against ours: the same images, the same masks."""

import copy
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
from transformers.utils import logging

from configuration_mae import MAEConfig, to_pair
from mae.conversion import OFFICIAL, VIT_MAE, from_ours
from mae.loading import our_state
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, MAEPreTrainedModel


@torch.no_grad()
def compare_forward(model: MAEPreTrainedModel, tensors: dict[str, Tensor], layout: str) -> tuple[str, float, float]:
    """
    Runs one random image through a model of ours and through another implementation, in float32.

    Args:
        model: Ours.
        tensors: Its weights by the names of `layout`, as they are in a file.

    Returns:
        The other implementation's name, the largest difference of the outputs, and the largest output. A `LookupError`
        where no other implementation that is installed has such a model.
    """
    model = copy.deepcopy(model).float().eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, config.num_channels, *to_pair(config.image_size), generator=generator)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if isinstance(model, MAEForPreTraining):
        noise = torch.rand(1, config.num_patches, generator=generator)
        ours = model(pixel_values, noise=noise).logits
        theirs = _vit_mae(model, tensors, layout)(pixel_values, noise=noise).logits
        name = "transformers' ViTMAE"
    elif layout != "vit_mae" and importlib.util.find_spec("timm"):
        if layout == "mae":
            tensors = from_ours(our_state(model), OFFICIAL)
        vit = _timm(model, tensors)
        ours, theirs = _features(model, pixel_values), vit(pixel_values)
        if isinstance(model, MAEModel):
            theirs = vit.forward_features(pixel_values)
        name = "timm"
    elif isinstance(model, MAEModel) and config.pooling == "cls":
        ours = _features(model, pixel_values)
        # It always masks: with a ratio of 0 and rising noise nothing is removed or moved.
        noise = torch.arange(config.num_patches, dtype=torch.float)[None]
        theirs = _vit_mae(model, tensors, layout)(pixel_values, noise=noise).last_hidden_state
        name = "transformers' ViTMAE"
    else:
        raise LookupError("timm, which has this model, is not installed")
    return name, (ours - theirs).abs().max().item(), theirs.abs().max().item()


def _features(model: MAEPreTrainedModel, pixel_values: Tensor) -> Tensor:
    outputs = model(pixel_values)
    return outputs.logits if isinstance(model, MAEForImageClassification) else outputs.last_hidden_state


def _vit_mae(model: MAEPreTrainedModel, tensors: dict[str, Tensor], layout: str) -> nn.Module:
    config = model.config
    if not all(height == width for height, width in (to_pair(config.image_size), to_pair(config.patch_size))):
        raise LookupError("no other implementation that is installed takes rectangles")
    fields: dict[str, Any] = {name: getattr(config, name) for name in MAEConfig.__annotations__}
    fields |= {"image_size": to_pair(config.image_size)[0], "patch_size": to_pair(config.patch_size)[0]}
    fields = {name: value for name, value in fields.items() if name in ViTMAEConfig.__annotations__}
    cls = ViTMAEForPreTraining
    if isinstance(model, MAEModel):
        cls, fields["mask_ratio"] = ViTMAEModel, 0.0
    if layout != "vit_mae":  # the official code is not a package
        tensors = from_ours(our_state(model), VIT_MAE)
    # transformers itself reads the names.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return cls.from_pretrained(None, config=ViTMAEConfig(**fields), state_dict=tensors).eval()
    finally:
        logging.set_verbosity(verbosity)


def _timm(model: MAEPreTrainedModel, tensors: dict[str, Tensor]) -> nn.Module:
    from timm.models import VisionTransformer

    config = model.config
    pool = "avg" if config.pooling == "mean" else "token"
    if isinstance(model, MAEModel) and pool == "avg":
        raise LookupError("no other implementation has an encoder without a last norm")
    vit = VisionTransformer(
        img_size=to_pair(config.image_size),
        patch_size=to_pair(config.patch_size),
        in_chans=config.num_channels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=config.qkv_bias,
        num_classes=config.num_labels if isinstance(model, MAEForImageClassification) else 0,
        global_pool=pool,
    )
    vit.load_state_dict(tensors)
    return vit.eval()
