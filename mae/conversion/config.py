"""What the files around a checkpoint say of its model: configurations, processors, arguments of the trainer."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import ViTMAEConfig

from configuration_mae import MAEConfig, to_pair
from mae.conversion.layouts import to_size
from mae.conversion.weights import CONFIG_FILE, Weights
from mae.utils.errors import UserError, first_line


# Fields of the configuration that come with a classifier.
LABEL_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")
# What of config.json is not the model's.
_OF_THE_FILE = {"architectures", "auto_map", "dtype", "torch_dtype", "model_type", "transformers_version"}
# What timm's model_args may hold: read off the tensors, translated below, or without a part in what the model computes
# of an image of its own size.
_TIMM_FROM_TENSORS = {"patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "num_classes"}
_TIMM_FROM_TENSORS |= {"fc_norm", "class_token"}
_TIMM_TRANSLATED = {"img_size", "num_heads", "global_pool", "act_layer"}
_TIMM_UNUSED = {"drop_rate", "proj_drop_rate", "pos_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"}
_TIMM_UNUSED |= {"dynamic_img_size", "strict_img_size", "patch_drop_rate"}


def make_config(source: str, fields: dict[str, Any]) -> MAEConfig:
    """The configuration of some fields; a `UserError` that names the source where it is impossible."""
    try:
        return MAEConfig(**fields)
    except StrictDataclassError as error:
        raise UserError(f"{source}: {error.__cause__ or error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise UserError(f"{source}: {first_line(error)}") from None


def config_type(weights: Weights) -> str | None:
    """Whose the `config.json` is: "mae", "vit_mae", "timm"; None where there is none."""
    if weights.config is None:
        return None
    model_type = weights.config.get("model_type")
    if model_type is None and "architecture" in weights.config:
        return "timm"
    if model_type not in ("mae", "vit_mae"):
        raise UserError(
            f"{weights.source} is not a Masked Autoencoder: the model_type in its {CONFIG_FILE} is {model_type!r}, "
            "not mae, vit_mae or timm's."
        )
    return model_type


def stated_fields(weights: Weights) -> dict[str, Any]:
    """Fields of our configuration, as far as anything beside the tensors says them."""
    fields: dict[str, Any] = {}
    model_type, config = config_type(weights), weights.config or {}
    names = list(MAEConfig.__annotations__)
    try:
        if model_type == "mae":
            parsed = MAEConfig.from_dict(config)
            fields = {name: getattr(parsed, name) for name in (*names, *LABEL_FIELDS)}
            more = config.keys() - fields.keys() - _OF_THE_FILE
            fields |= {name: config[name] for name in more if not name.startswith("_")}
        elif model_type == "vit_mae":
            parsed = ViTMAEConfig.from_dict(config)
            fields = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
        elif model_type == "timm":
            fields = _timm_fields(weights.source, config)
    except StrictDataclassError as error:
        raise UserError(f"{weights.source}: {CONFIG_FILE}: {error.__cause__ or error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{weights.source}: {CONFIG_FILE} cannot be understood: {first_line(error)}") from None

    # What images are normalised by is the processor's to say, also where a user changed it in a directory of ours.
    processor = weights.processor or {}
    if "image_mean" in processor and "image_std" in processor:
        mean, std = processor["image_mean"], processor["image_std"]
        if processor.get("do_normalize", True) is False:
            mean, std = (0.0, 1.0) if fields.get("num_channels", 3) == 3 else (None, None)
        fields |= {"image_mean": mean, "image_std": std}

    stated = {name: value for name, value in weights.metadata.items() if name in (*names, *LABEL_FIELDS)}
    arguments = weights.metadata.get("args")  # of the official trainer
    its_names = {"norm_pix_loss": "norm_pix_loss", "mask_ratio": "mask_ratio", "image_size": "input_size"}
    for ours, theirs in its_names.items() if isinstance(arguments, dict) else ():
        if theirs in arguments:
            stated[ours] = arguments[theirs]
    fields = stated | fields
    if not isinstance(fields.get("id2label") or {}, dict):
        raise UserError(f"{weights.source}: id2label={fields['id2label']!r} must be a dictionary.")
    return fields


def _timm_fields(source: str, config: dict[str, Any]) -> dict[str, Any]:
    """Our fields of a timm configuration."""
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
