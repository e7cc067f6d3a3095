"""Save a model in the layout of any implementation."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ViTMAEConfig

from configuration_mae import CONFIG_FIELDS, FILE_FIELDS, LABEL_FIELDS, to_pair
from mae.conversion.layouts import LAYOUTS, from_native, names_in
from mae.utils.errors import UserError, first_line
from mae.utils.files import CONFIG_FILE, WEIGHTS_FILE, write_json
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    MAEPreTrainedModel,
    make_image_processor,
)


TORCH_FILE = "checkpoint.pth"
# Settings that an implementation fixes, and that change what a model computes.
_FIXED = {
    "official": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True},
    "timm": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "vit_mae": {},
    "mae": {},
}


def full_state_dict(model: MAEPreTrainedModel) -> dict[str, Tensor]:
    """The tensors of any model of this package by their native names, which are those of the larger models."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


@torch.no_grad()
def fold_head_norm(model: MAEPreTrainedModel) -> None:
    """Multiply the batch norm of a linear probe into its classifier, in place: only this package has such a norm."""
    if not isinstance(getattr(model, "head_norm", None), nn.BatchNorm1d):
        return
    norm, head = model.head_norm, model.head
    head.weight.mul_((norm.running_var + norm.eps).rsqrt())
    head.bias.sub_(head.weight @ norm.running_mean)
    model.head_norm = nn.Identity()
    model.config.head_batch_norm = False


def check_expressible(model: MAEPreTrainedModel, layout: str) -> None:
    """Raise a `UserError` if the implementation of a layout has no such model."""
    config = model.config
    for name, value in _FIXED[layout].items():
        if getattr(config, name) != value:
            raise UserError(f"The {layout} code has {name}={value!r} only, not {getattr(config, name)!r}.")
    if layout != "mae" and isinstance(model, (MAEBackbone, MAEForSemanticSegmentation)):
        raise UserError(f"{layout} has no feature maps and no segmentation: load_checkpoint(..., MAEModel) first.")
    if layout != "mae" and isinstance(model, MAEForImageClassification) and config.head_batch_norm:
        raise UserError(f"The {layout} code has no batch norm before the classifier: fold_head_norm(model) first.")
    has_decoder = layout in ("official", "vit_mae") and isinstance(model, MAEForPreTraining)
    if has_decoder and config.decoder_type != "self_attention":
        raise UserError(
            f"The {layout} code has no {config.decoder_type} decoder. Convert the encoder alone: --to timm, or "
            "load_checkpoint(..., MAEModel)."
        )
    if layout != "mae" and config.standardize_images:
        raise UserError(
            f"The {layout} code does not standardise images, which this model does (standardize_images). Standardise "
            "them before the model there, and convert with --config_overrides standardize_images=false."
        )
    encoder_without_norm = isinstance(model, MAEModel) and config.pooling == "mean"
    if layout == "timm" and encoder_without_norm:
        raise UserError("timm has no encoder without a last norm: convert the classifier, or load with pooling=cls.")
    if layout == "vit_mae":
        if isinstance(model, MAEForImageClassification) or encoder_without_norm:
            raise UserError("ViTMAE has no classifier and no mean pooling: convert to official or timm.")
        if not all(height == width for height, width in (to_pair(config.image_size), to_pair(config.patch_size))):
            raise UserError(
                f"ViTMAE takes square images and patches only, not {config.image_size} pixels in patches of "
                f"{config.patch_size}."
            )


def lost_in(model: MAEPreTrainedModel, layout: str) -> list[str]:
    """Names of tensors, and settings of training, that the implementation of a layout has no place for."""
    names = full_state_dict(model)
    known = names_in(LAYOUTS[layout][0], names)
    lost = [name for name in names if name not in known]
    if isinstance(model, MAEForPreTraining) and layout == "vit_mae":
        for name, value in (("masking", "random"), ("pooling", "cls")):
            if getattr(model.config, name) != value:
                lost.append(f"{name}={getattr(model.config, name)}")
    if layout in ("timm", "vit_mae"):
        values = {name: getattr(model.config, name) for name in FILE_FIELDS}
        lost += [f"{name}={value}" for name, value in values.items() if value is not None]
    return lost


def save_checkpoint(model: MAEPreTrainedModel, folder: Path, layout: str) -> None:
    """
    Write a model into a directory, in a layout of [`LAYOUTS`].

    "mae": all that `from_pretrained` and the Auto classes need. "vit_mae": for transformers' `from_pretrained`.
    "timm": for `timm.create_model("local-dir:...")`. "official": `checkpoint.pth`, as the official trainer writes it;
    the configuration is an entry beside the weights, which the official code ignores. [`lost_in`] lists what is lost.

    Raises:
        UserError: if the other implementation has no such model.
    """
    check_expressible(model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    if layout == "mae":
        model.save_pretrained(folder)
        return
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in full_state_dict(model).items()}
    tensors = from_native(state, LAYOUTS[layout][0])
    if layout == "official":
        names = CONFIG_FIELDS + LABEL_FIELDS if isinstance(model, MAEForImageClassification) else CONFIG_FIELDS
        content = {"model": tensors, "config": {name: getattr(config, name) for name in names}}
        try:
            torch.save(content, folder / TORCH_FILE)
        except RuntimeError as error:  # torch's error for a full disk
            raise OSError(first_line(error)) from error
        return
    if layout == "timm":
        write_json(folder / CONFIG_FILE, timm_config(model))
    else:
        vit_mae_config(model).save_pretrained(folder)
        make_image_processor(config).save_pretrained(folder)
        if isinstance(model, MAEModel):
            tensors = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def vit_mae_config(model: MAEPreTrainedModel) -> ViTMAEConfig:
    """The configuration of the same model in transformers."""
    config = model.config
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS if name in ViTMAEConfig.__annotations__}
    fields |= {name: to_pair(fields[name])[0] for name in ("image_size", "patch_size")}
    vit_mae = ViTMAEConfig(**fields)
    vit_mae.architectures = ["ViTMAEModel" if isinstance(model, MAEModel) else "ViTMAEForPreTraining"]
    vit_mae.dtype = model.dtype
    return vit_mae


def timm_arguments(model: MAEPreTrainedModel) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer for the same encoder, and classifier if there is one."""
    config = model.config
    has_classifier = isinstance(model, MAEForImageClassification)
    return {
        "img_size": to_pair(config.image_size),
        "patch_size": to_pair(config.patch_size),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm takes int(width * ratio), which the exact ratio may miss by one.
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "global_pool": "avg" if has_classifier and config.pooling == "mean" else "token",
        "num_classes": config.num_labels if has_classifier else 0,
    }


def timm_config(model: MAEPreTrainedModel) -> dict[str, Any]:
    """timm's config.json, with every size as an argument."""
    config, arguments = model.config, timm_arguments(model)
    height, width = to_pair(config.image_size)
    pretrained = {
        "input_size": (config.num_channels, height, width),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875 if height == width <= 224 else 1.0,
        "mean": config.image_mean or [0.0] * config.num_channels,
        "std": config.image_std or [1.0] * config.num_channels,
        "num_classes": arguments["num_classes"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    content = {
        "architecture": "vit_base_patch16_224",  # only its class counts
        "num_classes": arguments["num_classes"],
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    if arguments["num_classes"]:
        content["label_names"] = [config.id2label[label] for label in range(config.num_labels)]
    return content
