"""
The configuration of a checkpoint: what its tensors fix, what its files state, and which of them wins.

Fields are those of [`MAEConfig`]. Settings that nothing states are assumed, and reported.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import ViTMAEConfig

from configuration_mae import CONFIG_FIELDS, DENSE_FIELDS, FILE_FIELDS, LABEL_FIELDS, MAEConfig, to_pair, to_size
from mae.conversion.channels import inflate_values
from mae.conversion.layouts import count_blocks, has_part
from mae.conversion.report import LoadReport
from mae.conversion.weights import Weights
from mae.utils.errors import UserError, configuration_errors
from mae.utils.files import CONFIG_FILE
from modeling_mae import sincos_positions


# Entries of config.json that are about the file, not about the model.
_OF_THE_FILE = {"architectures", "auto_map", "dtype", "torch_dtype", "model_type", "transformers_version"}
# Entries of timm's model_args: read from the tensors, translated below, or without effect on what the model computes
# of an image of its own size.
_TIMM_FROM_TENSORS = {"patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "num_classes"}
_TIMM_FROM_TENSORS |= {"fc_norm", "class_token"}
_TIMM_TRANSLATED = {"img_size", "num_heads", "global_pool", "act_layer"}
_TIMM_UNUSED = {"drop_rate", "proj_drop_rate", "pos_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"}
_TIMM_UNUSED |= {"dynamic_img_size", "strict_img_size", "patch_drop_rate"}
# Arguments of the official trainer -> fields.
_TRAINER_ARGUMENTS = {"norm_pix_loss": "norm_pix_loss", "mask_ratio": "mask_ratio", "input_size": "image_size"}
# Fields that may differ from the checkpoint, whose tensors then still mean the same: no tensor depends on them, or it
# is resampled, inflated or newly initialised, which is reported.
_FREE_FIELDS = {"image_size", "patch_size", "num_channels", "image_mean", "image_std", "mask_ratio", "masking"}
_FREE_FIELDS |= {
    "norm_pix_loss",
    "prediction_ratio",
    "standardize_images",
    "pooling",
    "head_batch_norm",
    "drop_path_rate",
    "attention_probs_dropout_prob",
}
_FREE_FIELDS |= {"layer_norm_eps", "initializer_range", *DENSE_FIELDS, *FILE_FIELDS, *LABEL_FIELDS}
_DECODER_FIELDS = {name for name in CONFIG_FIELDS if name.startswith("decoder_")} | {"weighted_feature_maps"}
# Width -> heads of the released models: the paper's, and DeiT's tiny and small, which timm trains.
_KNOWN_HEADS = {"": {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}, "decoder_": {512: 16}}


# What tensors fix


def read_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Read the fields that tensors with native names fix. They may be on the meta device."""
    height, width = state["mae.patch_embed.proj.weight"].shape[2:]
    sizes: dict[str, Any] = {
        "hidden_size": state["mae.patch_embed.proj.weight"].shape[0],
        "num_channels": state["mae.patch_embed.proj.weight"].shape[1],
        "patch_size": to_size((height, width)),
        "num_hidden_layers": count_blocks(state, "mae.blocks"),
        "intermediate_size": state["mae.blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "mae.blocks.0.attn.qkv.bias" in state,
    }
    if "decoder.mask_token" in state:
        sizes["decoder_hidden_size"] = state["decoder.mask_token"].shape[-1]
        sizes["decoder_num_hidden_layers"] = count_blocks(state, "decoder.blocks")
        sizes["decoder_intermediate_size"] = state["decoder.blocks.0.mlp.fc1.weight"].shape[0]
        is_cross = "decoder.blocks.0.attn.kv.weight" in state
        sizes["decoder_type"] = "cross_attention" if is_cross else "self_attention"
        sizes["weighted_feature_maps"] = has_part(state, "decoder.features")
    else:  # a pre-training model has a norm with any pooling
        sizes["pooling"] = "cls" if has_part(state, "mae.norm") else "mean"
    if has_part(state, "head") or has_part(state, "fc_norm"):
        heads = [state[name].shape[0] for name in ("head.weight", "head.bias") if name in state]
        sizes["num_labels"] = heads[0] if heads else 0
    return sizes | _read_segmentation(state)


def _read_segmentation(state: dict[str, Tensor]) -> dict[str, Any]:
    fields: dict[str, Any] = {"feature_pyramid": True} if has_part(state, "pyramid") else {}
    if "decode_head.classifier.weight" in state:
        fields["num_labels"], width = state["decode_head.classifier.weight"].shape[:2]
        fields["segmentation_head"] = "linear" if has_part(state, "decode_head.batch_norm") else "upernet"
        if width != state["mae.patch_embed.proj.weight"].shape[0]:
            fields["segmentation_hidden_size"] = width
        if fields["segmentation_head"] == "upernet" and not has_part(state, "auxiliary_head"):
            fields["auxiliary_loss_weight"] = 0
    return fields


def find_grid(pos_embed: Tensor) -> tuple[tuple[int, int] | None, bool]:
    """
    Find the patch grid (rows, columns) of a position table `(1, 1 + L, D)`, and whether it is certain: the grid whose
    sin-cos table it is, else the square one, else None.
    """
    num_patches, dim = pos_embed.shape[1] - 1, pos_embed.shape[2]
    if not pos_embed.is_meta and dim % 4 == 0:
        for rows in range(1, num_patches + 1):
            if num_patches % rows == 0:
                table = sincos_positions(dim, (rows, num_patches // rows))
                if torch.allclose(pos_embed.float(), table, atol=1e-2):  # of bfloat16 too
                    return (rows, num_patches // rows), True
    side = math.isqrt(num_patches)
    return ((side, side), False) if side and side * side == num_patches else (None, False)


# What files state


def config_type(weights: Weights) -> str | None:
    """The kind of a `config.json`: "mae", "vit_mae" or "timm"; None if there is none."""
    if weights.config is None:
        return None
    model_type = weights.config.get("model_type")
    if model_type is None and "architecture" in weights.config:
        return "timm"
    if model_type not in ("mae", "vit_mae"):
        raise UserError(
            f"{weights.source} is not a Masked Autoencoder: the model_type in its {CONFIG_FILE} is {model_type!r}, "
            "not mae or vit_mae, and it is not of timm."
        )
    return model_type


def stated_fields(weights: Weights) -> dict[str, Any]:
    """Read the fields that anything beside the tensors states."""
    model_type = config_type(weights)
    with configuration_errors(f"{weights.source}: {CONFIG_FILE}: "):
        fields = _config_fields(weights.source, model_type, weights.config or {})

    # mean and std come from the processor, which wins over config.json: users edit it.
    processor = weights.processor or {}
    if "image_mean" in processor and "image_std" in processor:
        mean, std = processor["image_mean"], processor["image_std"]
        if processor.get("do_normalize", True) is False:
            mean, std = (0.0, 1.0) if fields.get("num_channels", 3) == 3 else (None, None)
        fields |= {"image_mean": mean, "image_std": std}

    stated = {name: value for name, value in weights.metadata.items() if name in (*CONFIG_FIELDS, *LABEL_FIELDS)}
    arguments = weights.metadata.get("args")
    if isinstance(arguments, dict):
        stated |= {field: arguments[name] for name, field in _TRAINER_ARGUMENTS.items() if name in arguments}
    fields = stated | fields
    if not isinstance(fields.get("id2label") or {}, dict):
        raise UserError(f"{weights.source}: id2label={fields['id2label']!r} must be a dictionary.")
    return fields


def _config_fields(source: str, model_type: str | None, config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `config.json`."""
    if model_type == "mae":
        parsed = MAEConfig.from_dict(config)
        fields = {name: getattr(parsed, name) for name in (*CONFIG_FIELDS, *LABEL_FIELDS)}
        more = config.keys() - fields.keys() - _OF_THE_FILE
        return fields | {name: config[name] for name in more if not name.startswith("_")}
    if model_type == "vit_mae":
        parsed = ViTMAEConfig.from_dict(config)
        return {name: getattr(parsed, name) for name in CONFIG_FIELDS if hasattr(parsed, name)}
    return _timm_fields(source, config) if model_type == "timm" else {}


def _timm_fields(source: str, config: dict[str, Any]) -> dict[str, Any]:
    arguments, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or config
    known = _TIMM_FROM_TENSORS | _TIMM_TRANSLATED | _TIMM_UNUSED
    other = [f"{name}={value!r}" for name, value in arguments.items() if name not in known and value is not None]
    if other:
        raise UserError(f"{source}: timm's model_args {', '.join(other)} have no counterpart in this model.")
    pooling = arguments.get("global_pool") or config.get("global_pool")
    labels = config.get("label_names") or pretrained.get("label_names")
    image_size = arguments.get("img_size") or pretrained.get("input_size", [])[1:]
    fields = {
        "image_size": to_size(to_pair(image_size)) if image_size else None,
        "num_attention_heads": arguments.get("num_heads"),
        "hidden_act": arguments.get("act_layer"),
        "pooling": {"avg": "mean", "token": "cls"}.get(pooling),
        "image_mean": pretrained.get("mean"),
        "image_std": pretrained.get("std"),
        "id2label": dict(enumerate(labels)) if labels else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


# Which one wins


def make_config(source: str, fields: dict[str, Any]) -> MAEConfig:
    """Make a configuration; a `UserError` names the source if its fields are impossible."""
    with configuration_errors(f"{source}: "):
        return MAEConfig(**fields)


def check_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    """Check that overrides are fields of the configuration, each by itself of the right type."""
    overrides = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    scratch = MAEConfig()
    for name, value in overrides.items():
        if name not in (*CONFIG_FIELDS, *DENSE_FIELDS, *LABEL_FIELDS):
            raise UserError(f"{name} is not a field of the configuration.")
        if name not in (*LABEL_FIELDS, "out_features", "out_indices"):  # these depend on other fields
            with configuration_errors(f"{name}={value!r}: "):
                setattr(scratch, name, value)
    id2label, num_labels = overrides.get("id2label"), overrides.get("num_labels")
    if id2label is not None:
        if not isinstance(id2label, dict) or num_labels not in (None, len(id2label)):
            raise UserError(f"id2label={id2label!r} must name each of num_labels={num_labels} labels.")
        overrides["num_labels"] = len(id2label)
    if num_labels is not None and (type(num_labels) is not int or num_labels < 0):
        raise UserError(f"num_labels={num_labels!r} must be a number of labels, or 0 for features alone.")
    if overrides.get("num_channels", 1) < 1:
        raise UserError(f"num_channels={overrides['num_channels']} must be positive.")
    return overrides


def own_fields(
    weights: Weights, layout: str, state: dict[str, Tensor], overrides: dict[str, Any], report: LoadReport
) -> dict[str, Any]:
    """The fields of the checkpoint as it is. Overrides count only if nothing in it states a field."""
    source, sizes = weights.source, read_sizes(state)
    if layout == "vit_mae":
        sizes["pooling"] = "cls"  # its only one, so that its encoder always has a last norm
    fields = _merge(weights, sizes)
    has_decoder = "decoder_hidden_size" in sizes
    for name, value in overrides.items():
        free = name in _FREE_FIELDS or (name in _DECODER_FIELDS and not has_decoder)
        if not free and name in fields and fields[name] != value:
            raise UserError(f"{source} has {name}={fields[name]!r}, which its weights are made for, not {value!r}.")
    for prefix in ("", "decoder_") if has_decoder else ("",):
        name = f"{prefix}num_attention_heads"
        if name not in fields:
            fields[name] = overrides[name] if name in overrides else _known_heads(source, prefix, fields, report)
    fields["image_size"] = _own_image_size(source, fields, overrides.get("image_size"), state["mae.pos_embed"], report)
    _report_assumptions(fields, overrides, has_decoder, report)
    if (weights.config or {}).get("hidden_dropout_prob"):
        report.changed.append("hidden_dropout_prob left out, which this model does not have")
    return fields


def _merge(weights: Weights, sizes: dict[str, Any]) -> dict[str, Any]:
    """Stated fields and sizes of tensors together; a `UserError` if they contradict each other."""
    source, fields = weights.source, stated_fields(weights)
    for name in sizes.keys() & fields.keys():
        # A native encoder may be stored with the norm that its pooling does without, and has no labels.
        optional = name == "pooling" and config_type(weights) == "mae"
        if not optional and _comparable(fields[name]) != _comparable(sizes[name]):
            raise UserError(f"{source} says {name}={fields[name]!r}, but its tensors have {sizes[name]!r}.")
    fields = {**sizes, **fields}
    if fields.get("id2label") and len(fields["id2label"]) != fields.get("num_labels", len(fields["id2label"])):
        raise UserError(f"{source} has {fields['num_labels']} labels, but names of {len(fields['id2label'])}.")
    return fields


def _comparable(value: Any) -> Any:
    return to_pair(value) if isinstance(value, (list, tuple)) else (value, value) if type(value) is int else value


def _known_heads(source: str, prefix: str, fields: dict[str, Any], report: LoadReport) -> int:
    """The number of heads of the released models of this width; `prefix` is "" or "decoder_"."""
    name, width, known = f"{prefix}num_attention_heads", fields.get(f"{prefix}hidden_size"), _KNOWN_HEADS[prefix]
    if width not in known:
        raise UserError(
            f"{source} does not say how many heads its attention has, and {width} is no width of the released models "
            f"({', '.join(map(str, known))}): give {name}."
        )
    report.assumed.append(f"{name}={known[width]}, as in the released models of this width")
    return known[width]


def _own_image_size(
    source: str, fields: dict[str, Any], asked: int | tuple[int, int] | None, pos_embed: Tensor, report: LoadReport
) -> int | tuple[int, int]:
    """The image size of the position table: as stated, as the table shows, as asked for, or the square one."""
    patch_size, num_patches = to_pair(fields["patch_size"]), pos_embed.shape[1] - 1

    def grid_of(size: Any) -> tuple[int, ...]:
        return tuple(side // patch for side, patch in zip(to_pair(size), patch_size))

    stated = fields.get("image_size")
    try:
        if stated is not None and math.prod(grid_of(stated)) == num_patches:
            return stated
    except (TypeError, ValueError):
        raise UserError(f"{source} says image_size={stated!r}, which is no size.") from None
    grid, certain = find_grid(pos_embed)
    if stated is None and certain:
        return to_size(count * side for count, side in zip(grid, patch_size))
    if asked is not None and math.prod(grid_of(asked)) == num_patches:
        rows, columns = grid_of(asked)
        report.assumed.append(f"positions for {rows} x {columns} patches, as image_size={asked} has them")
        return asked
    if stated is not None:
        raise UserError(
            f"{source} has positions for {num_patches} patches; images of {stated} pixels in patches of "
            f"{fields['patch_size']} have {math.prod(grid_of(stated))}: give the image_size that it was trained at."
        )
    if grid is None:
        raise UserError(
            f"{source} has positions for {num_patches} patches, which make no square: give the image_size (height, "
            "width) that it was trained at."
        )
    size = to_size(count * side for count, side in zip(grid, patch_size))
    report.assumed.append(f"image_size={size}")
    return size


def _report_assumptions(
    fields: dict[str, Any], overrides: dict[str, Any], has_decoder: bool, report: LoadReport
) -> None:
    known = {**fields, **overrides}
    if not has_decoder and fields["pooling"] == "mean" and "num_labels" not in fields:
        report.assumed.append("pooling=mean, because there is no last norm")
    if has_decoder and "norm_pix_loss" not in known:
        report.assumed.append("norm_pix_loss=False")
    if "image_mean" not in known and fields["num_channels"] == 3:
        report.assumed.append("image_mean and image_std of ImageNet")


def target_fields(
    source: str,
    own: MAEConfig,
    fields: dict[str, Any],
    overrides: dict[str, Any],
    inflate_channels: str | None,
    report: LoadReport,
) -> dict[str, Any]:
    """The fields of the model that the user asks for: those of the checkpoint, with overrides."""
    target = {**fields, **overrides}
    if "num_labels" in overrides and overrides["num_labels"] != fields.get("num_labels"):
        target = {name: target[name] for name in target if name in overrides or name not in ("id2label", "label2id")}
    selection = {"out_features", "out_indices"}
    if selection & overrides.keys():  # one of them decides the other
        target = {name: value for name, value in target.items() if name in overrides or name not in selection}
    channels = target["num_channels"]
    if inflate_channels is not None and channels == own.num_channels:
        raise UserError(f"inflate_channels={inflate_channels} has nothing to do: {source} has {channels} channels.")
    if channels != own.num_channels and not {"image_mean", "image_std"} <= overrides.keys():
        target["image_mean"], target["image_std"] = _inflate_statistics(own, channels, inflate_channels)
        report.changed.append(f"image_mean={target['image_mean']} and image_std={target['image_std']}")
    return target


def _inflate_statistics(
    own: MAEConfig, channels: int, inflate_channels: str | None
) -> tuple[list[float] | None, list[float] | None]:
    """The mean and std of images with another number of channels; None leaves them open."""
    if own.image_mean is None and channels == 3:  # not those of ImageNet, which are the default of three channels
        return [0.0] * channels, [1.0] * channels
    if own.image_mean is None or inflate_channels not in ("mean", "repeat"):
        return None, None
    mean, std = (
        inflate_values(torch.tensor(values), channels, inflate_channels).tolist()
        for values in (own.image_mean, own.image_std)
    )
    return mean, std


def class_names(config: MAEConfig) -> list[str] | None:
    """The names of the classes; None if they are only numbers."""
    names = list((config.id2label or {}).values())
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names
