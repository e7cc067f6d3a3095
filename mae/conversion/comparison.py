"""Compare a model of this package with another implementation: the same images and masks through both."""

import copy
import importlib.util
from functools import partial

import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining, ViTMAEModel

from configuration_mae import to_pair
from mae.conversion.layouts import OFFICIAL, VIT_MAE, from_native
from mae.conversion.loading import quiet
from mae.conversion.saving import check_expressible, full_state_dict, timm_arguments, vit_mae_config
from mae.utils.errors import UserError
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    MAEPreTrainedModel,
)


@torch.no_grad()
def compare_forward(model: MAEPreTrainedModel, tensors: dict[str, Tensor], layout: str) -> tuple[str, float, float]:
    """
    Run one random image, with one random mask, through a model and another implementation of it, in float32.

    Args:
        model: A model of this package.
        tensors: Its weights by the names of `layout`, as they are in a file. ViTMAE and timm load them by themselves.
            If the layout has no installed implementation, they get the model's own tensors by the key tables.

    Returns:
        The other implementation's name, the largest difference of the outputs, and its largest output.

    Raises:
        LookupError: if no installed implementation has such a model.
    """
    if isinstance(model, (MAEBackbone, MAEForSemanticSegmentation)):
        raise LookupError("no other implementation has these feature maps or this segmentation")
    model = copy.deepcopy(model).float().eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, config.num_channels, *to_pair(config.image_size), generator=generator)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if isinstance(model, MAEForPreTraining):
        config.masking = "random"  # the only kind that other implementations have
        noise = torch.rand(1, config.num_patches, generator=generator)
        expected = _vit_mae(model, tensors, layout)(pixel_values, noise=noise).logits
        return "transformers' ViTMAE", *_difference(model(pixel_values, noise=noise).logits, expected)
    outputs = model(pixel_values)
    actual = outputs.logits if isinstance(model, MAEForImageClassification) else outputs.last_hidden_state
    if layout != "vit_mae" and config.hidden_act == "gelu" and importlib.util.find_spec("timm"):
        vit = _timm(model, tensors, layout)
        expected = vit.forward_features(pixel_values) if isinstance(model, MAEModel) else vit(pixel_values)
        return "timm", *_difference(actual, expected)
    if isinstance(model, MAEForImageClassification):
        raise LookupError("timm, which has this model, is not installed or has no such activation")
    # ViTMAE always masks: with a ratio of 0 and rising noise nothing is removed or moved.
    noise = torch.arange(config.num_patches, dtype=torch.float)[None]
    expected = _vit_mae(model, tensors, layout)(pixel_values, noise=noise).last_hidden_state
    return "transformers' ViTMAE", *_difference(actual, expected)


def _difference(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    return (actual - expected).abs().max().item(), expected.abs().max().item()


def _vit_mae(model: MAEPreTrainedModel, tensors: dict[str, Tensor], layout: str) -> nn.Module:
    try:
        check_expressible(model, "vit_mae")
    except UserError as error:
        raise LookupError(f"no other implementation that is installed has this model ({error})") from None
    config, cls = vit_mae_config(model), ViTMAEForPreTraining
    if isinstance(model, MAEModel):
        cls, config.mask_ratio = ViTMAEModel, 0.0
    if layout != "vit_mae":
        tensors = from_native(full_state_dict(model), VIT_MAE)
    with quiet():
        return cls.from_pretrained(None, config=config, state_dict=tensors).eval()


def _timm(model: MAEPreTrainedModel, tensors: dict[str, Tensor], layout: str) -> nn.Module:
    from timm.models import VisionTransformer

    if isinstance(model, MAEModel) and model.config.pooling == "mean":
        raise LookupError("no other implementation has an encoder without a last norm")
    if isinstance(getattr(model, "head_norm", None), nn.BatchNorm1d):
        raise LookupError("no other implementation has a batch norm before the classifier")
    norm_layer = partial(nn.LayerNorm, eps=model.config.layer_norm_eps)
    vit = VisionTransformer(**timm_arguments(model), norm_layer=norm_layer)
    vit.load_state_dict(from_native(full_state_dict(model), OFFICIAL) if layout == "mae" else tensors)
    return vit.eval()
