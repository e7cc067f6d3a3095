"""
Any Masked Autoencoder checkpoint -> a model of ours, and back: [`load_checkpoint`] and [`save_checkpoint`].

Every tensor is accounted for: what is not understood is refused, what is newly initialised or left out is told.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTMAEConfig
from transformers.utils import logging

from configuration_mae import MAEConfig, to_pair
from mae.conversion import (
    LAYOUTS,
    find_grid,
    from_ours,
    has_part,
    inflate,
    inflate_values,
    names_in,
    read_sizes,
    spelling_of,
    to_ours,
    to_size,
)
from mae.errors import UserError, first_line
from mae.weights import CONFIG_FILE, Weights, listed, read_weights
from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    MAEPreTrainedModel,
    make_image_processor,
)


TORCH_FILE = "checkpoint.pth"


def recognise(weights: Weights) -> str:
    """The name of the layout that most of the tensors' names belong to. A `UserError` where none do."""
    if weights.config is not None:
        model_type = config_type(weights.config)
        if model_type in LAYOUTS:
            return model_type
        if model_type is not None:
            raise UserError(f"{weights.source} is a model of type {model_type}, not a Masked Autoencoder.")
    known = {
        name: len(weights.tensors) - min(len(to_ours(weights.tensors, spelling)[1]) for spelling in spellings)
        for name, spellings in LAYOUTS.items()
    }
    best = max(known.values())
    if not best:
        raise UserError(
            f"{weights.source} is not a Masked Autoencoder of a known layout ({', '.join(LAYOUTS)}): its tensors are "
            f"{listed(list(weights.tensors))}."
        )
    # The names of an encoder are the same in three of them; without a configuration, it is the official file.
    return "official" if known["official"] == best else next(name for name in LAYOUTS if known[name] == best)


def config_type(config: dict[str, Any] | None) -> str | None:
    """Whose a `config.json` is: "mae", "vit_mae", "timm", or another model's type."""
    config = config or {}
    return "timm" if "architecture" in config and "model_type" not in config else config.get("model_type")


def _stated_fields(weights: Weights) -> dict[str, Any]:
    """What the file, or the configuration beside it, says of the fields of ours."""
    fields: dict[str, Any] = {}
    config, model_type = weights.config, config_type(weights.config)
    names = list(MAEConfig.__annotations__)
    try:
        if model_type == "mae":
            parsed = MAEConfig.from_dict(config)
            names += ["num_labels", "id2label", "label2id", "problem_type"]
            fields = {name: getattr(parsed, name) for name in names}
        elif model_type == "vit_mae":
            parsed = ViTMAEConfig.from_dict(config)
            fields = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
        elif model_type == "timm":
            fields = _timm_fields(config)
    except StrictDataclassError as error:
        raise UserError(f"{weights.source}: {CONFIG_FILE}: {error.__cause__ or error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{weights.source}: {CONFIG_FILE} cannot be understood: {first_line(error)}") from None

    # The processor says what the images were normalised by; our configuration says it too.
    processor = weights.processor or {}
    for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        if model_type != "mae" and isinstance(processor.get(name), list):
            not_used = processor.get("do_normalize") is False
            fields[name] = [neutral] * len(processor[name]) if not_used else processor[name]

    metadata = weights.metadata
    arguments = metadata.get("args")  # of the official trainer
    its_names = {"norm_pix_loss": "norm_pix_loss", "mask_ratio": "mask_ratio", "image_size": "input_size"}
    for ours, theirs in its_names.items() if isinstance(arguments, dict) else ():
        if theirs in arguments:
            fields[ours] = arguments[theirs]
    names = {*MAEConfig.__annotations__, "num_labels", "id2label", "problem_type"}
    return {name: value for name, value in metadata.items() if name in names} | fields


def _timm_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Our fields of a timm configuration."""
    arguments, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or config
    fields = {
        "image_size": arguments.get("img_size") or pretrained.get("input_size", [])[1:],
        "num_attention_heads": arguments.get("num_heads"),
        "pooling": {"avg": "mean", "token": "cls"}.get(config.get("global_pool")),
        "image_mean": pretrained.get("mean"),
        "image_std": pretrained.get("std"),
    }
    if fields["image_size"]:
        fields["image_size"] = to_size(to_pair(fields["image_size"]))
    return {name: value for name, value in fields.items() if value}


# Loading

# What may differ from the checkpoint without making its tensors mean something else: nothing depends on it, or it is
# resampled, inflated or made anew, which is said.
_FREE_FIELDS = {"image_size", "patch_size", "num_channels", "image_mean", "image_std", "mask_ratio", "masking"}
_FREE_FIELDS |= {"norm_pix_loss", "pooling", "num_labels", "id2label", "label2id", "problem_type"}
_FREE_FIELDS |= {"drop_path_rate", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range"}
# Width -> heads of the released models: the paper's, and DeiT's tiny and small, which timm trains.
_KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_KNOWN_DECODER_HEADS = {512: 16}
# Without these nothing can be said about a checkpoint; name -> number of dimensions.
_ENCODER_TENSORS = {
    "mae.cls_token": 3,
    "mae.pos_embed": 3,
    "mae.patch_embed.proj.weight": 4,
    "mae.blocks.0.mlp.fc1.weight": 2,
}
_DECODER_FIELDS = {name for name in MAEConfig.__annotations__ if name.startswith("decoder_")}
_DECODER_TENSORS = {"decoder.mask_token": 3, "decoder.blocks.0.mlp.fc1.weight": 2}


@dataclass
class Found:
    """
    What [`load_checkpoint`] found and did; `str()` of it is a report for the user.

    Args:
        source: What was loaded, with the revision where it comes from the Hub.
        layout: A name of [`LAYOUTS`].
        num_tensors: How many the checkpoint has.
        description: Parts and sizes, in words.
        assumed: Settings that nothing in the checkpoint says.
        changed: What was resampled or inflated.
        new: Names of the model's tensors that were newly initialised.
        unused: Names of tensors, by ours, that the model has no place for.
    """

    source: str
    layout: str
    num_tensors: int
    description: str = ""
    assumed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.layout} layout, {self.num_tensors} tensors, {self.description}"]
        for title, items in (
            ("assumed", self.assumed),
            ("changed", self.changed),
            ("newly initialised", summarise(self.new)),
            ("left out", summarise(self.unused)),
        ):
            if items:
                lines.append(f"  {title}: {'; '.join(items)}")
        return "\n".join(lines)


def summarise(names: Iterable[str]) -> list[str]:
    """Tensor names by their part of the model: ["decoder (104 tensors)", "head (2 tensors)"]."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        part = ".".join(parts[:2]) if parts[0] == "mae" else parts[0]
        counts[part] = counts.get(part, 0) + 1
    return [f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items()]


@dataclass
class Plan:
    """
    A checkpoint understood, before a model is built of it.

    Args:
        model_class: What to build.
        config: Its configuration, at the checkpoint's own patch grid.
        state: Its tensors by our names.
        image_size: What to resample the positions to, in pixels.
        found: What to tell.
    """

    model_class: type[MAEPreTrainedModel]
    config: MAEConfig
    state: dict[str, Tensor]
    image_size: int | tuple[int, int]
    found: Found


def load_checkpoint(
    name_or_path: str | Path,
    model_class: type[MAEPreTrainedModel] | None = None,
    *,
    layout: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    inflate_channels: str | None = None,
    **overrides: Any,
) -> tuple[MAEPreTrainedModel, Found]:
    """
    A model from any Masked Autoencoder checkpoint: official, timm's, transformers' ViTMAE or ours.

    Args:
        name_or_path: A file (.safetensors, .pth, .pt, .bin), a directory with a configuration, or a model on the Hub.
        model_class:
            Default: what the checkpoint is, [`MAEForPreTraining`] with a decoder, [`MAEForImageClassification`] with a
            classifier, else [`MAEModel`]. Of another class, what the checkpoint lacks is newly initialised.
        layout: A name of [`LAYOUTS`]; recognised by default.
        revision: Branch, tag or commit on the Hub.
        dtype: Default: that of the checkpoint, or float32 where it has several.
        inflate_channels: "mean" or "repeat", where `num_channels` is overridden: see [`inflate`].
        overrides:
            Fields of the configuration. Settings that no tensor tells (heads, `norm_pix_loss`) where the checkpoint
            has no configuration. Another `image_size` resamples the positions; another `patch_size` or `num_labels`
            makes the patch projections or the classifier anew.

    Returns:
        The model, in evaluation mode, and what was found.

    Raises:
        UserError: for what cannot be read, and listing every tensor that is unknown, missing or of the wrong shape.
    """
    weights = read_weights(name_or_path, revision)
    plan = make_plan(weights, model_class, layout=layout, inflate_channels=inflate_channels, **overrides)
    return build(plan, dtype), plan.found


def build(plan: Plan, dtype: torch.dtype | None = None) -> MAEPreTrainedModel:
    """The model of a plan; what is newly initialised is drawn from torch's generator."""
    state = plan.state
    if dtype is None:
        dtypes = {tensor.dtype for tensor in state.values()}
        dtype = torch.float32
        if len(dtypes) == 1:
            (dtype,) = dtypes
        else:
            plan.found.changed.append(f"{' and '.join(sorted(map(str, dtypes)))} made torch.float32")
    if plan.model_class is MAEModel:
        state = {name.removeprefix("mae."): tensor for name, tensor in state.items()}
    # What is newly initialised is in our report; transformers would print a table of it.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model = plan.model_class.from_pretrained(None, config=plan.config, state_dict=state, dtype=dtype)
    finally:
        logging.set_verbosity(verbosity)
    model.resize_positions(plan.image_size)
    return model


def make_plan(
    weights: Weights,
    model_class: type[MAEPreTrainedModel] | None = None,
    *,
    layout: str | None = None,
    inflate_channels: str | None = None,
    **overrides: Any,
) -> Plan:
    """[`load_checkpoint`] up to the point where a model is built. The tensors may be on the meta device."""
    source = weights.source
    layout = layout or recognise(weights)
    state, unknown = _read_names(weights, layout)
    has_decoder = has_part(state, "decoder")
    has_classifier = has_part(state, "head") or has_part(state, "fc_norm")
    if model_class is None:
        model_class = MAEForImageClassification if has_classifier else MAEModel
        model_class = MAEForPreTraining if has_decoder else model_class
    found = Found(source, layout, len(weights.tensors))

    # The checkpoint as it is.
    fields = _stated_fields(weights)
    sizes = read_sizes(state)
    if layout == "vit_mae":
        sizes["pooling"] = "cls"  # it has no other, and so no encoder without a last norm
    # An encoder of ours may be stored with the norm that its pooling does without.
    for name in sizes.keys() & fields.keys() - ({"pooling"} if layout == "mae" else set()):
        if _comparable(fields[name]) != _comparable(sizes[name]):
            raise UserError(f"{source} says {name}={fields[name]!r}, but its tensors have {sizes[name]!r}.")
    fields = {**sizes, **fields}
    _refuse_contradictions(source, fields, overrides, has_decoder)
    _complete(source, fields, overrides, state["mae.pos_embed"], found)
    own = _make_config(source, fields)
    if own.num_patches != state["mae.pos_embed"].shape[1] - 1:
        raise UserError(
            f"{source} has positions for {state['mae.pos_embed'].shape[1] - 1} patches; images of {own.image_size} "
            f"pixels in patches of {own.patch_size} have {own.num_patches}: give the image_size it was trained at."
        )
    if (weights.config or {}).get("hidden_dropout_prob"):
        found.changed.append("hidden_dropout_prob left out, which this model does not have")

    # As it is wanted.
    wanted = {**fields, **overrides}
    if "num_labels" in overrides and overrides["num_labels"] != sizes.get("num_labels"):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        wanted = {name: wanted[name] for name in wanted if name in overrides or name not in ("id2label", "label2id")}
    if wanted["num_channels"] != own.num_channels or inflate_channels is not None:
        state = inflate(state, own.num_channels, wanted["num_channels"], inflate_channels)
        found.changed.append(f"{own.num_channels} channels inflated to {wanted['num_channels']} ({inflate_channels})")
        for name in ("image_mean", "image_std"):
            if name not in overrides and getattr(own, name) is not None:
                statistics = inflate_values(torch.tensor(getattr(own, name)), wanted["num_channels"], inflate_channels)
                wanted[name] = statistics.tolist()
    patch_size = to_pair(wanted["patch_size"])
    if patch_size != to_pair(own.patch_size):
        of_patches = ("mae.patch_embed.proj.", "decoder.pred.")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(of_patches)}
    image_size = overrides.get("image_size", own.image_size)
    target = _make_config(source, {**wanted, "image_size": image_size})
    if target.grid_size != own.grid_size:
        old, new = (f"{rows} x {columns}" for rows, columns in (own.grid_size, target.grid_size))
        found.changed.append(f"positions resampled from {old} to {new} patches")
    size = tuple(count * side for count, side in zip(own.grid_size, patch_size))
    config = _make_config(source, {**wanted, "image_size": to_size(size)})

    state = _account(weights, layout, model_class, config, state, unknown, found)
    found.description = _describe(own, has_decoder, has_classifier)
    return Plan(model_class, config, state, target.image_size, found)


def _comparable(value: Any) -> Any:
    return to_pair(value) if isinstance(value, (list, tuple)) else (value, value) if type(value) is int else value


def _make_config(source: str, fields: dict[str, Any]) -> MAEConfig:
    try:
        return MAEConfig(**fields)
    except StrictDataclassError as error:
        raise UserError(f"{source}: {error.__cause__ or error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {first_line(error)}") from None


def _read_names(weights: Weights, layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and the unknown ones; a `UserError` where they are not even an encoder."""
    state, unknown = to_ours(weights.tensors, spelling_of(weights.tensors, layout))
    needed = dict(_ENCODER_TENSORS)
    if has_part(state, "decoder"):
        needed |= _DECODER_TENSORS
    missing = [name for name in needed if name not in state]
    misshaped = [
        f"{name} has {state[name].ndim} dimensions instead of {ndim}"
        for name, ndim in needed.items()
        if name in state and state[name].ndim != ndim
    ]
    if missing or misshaped:
        _refuse(weights, layout, unknown, missing, misshaped)
    return state, unknown


def _refuse(weights: Weights, layout: str, unknown: list[str], missing: list[str], misshaped: list[str]) -> NoReturn:
    kinds = (("unknown", unknown), ("missing (by our names)", missing), ("of the wrong shape", misshaped))
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
    raise UserError(f"{weights.source} is no whole checkpoint of the {layout} layout. Tensors {'; '.join(problems)}.")


def _refuse_contradictions(source: str, fields: dict, overrides: dict, has_decoder: bool) -> None:
    """Refuses overrides that would make the checkpoint's tensors mean something else."""
    known_fields = {*MAEConfig.__annotations__, "num_labels", "id2label", "label2id", "problem_type"}
    for name, value in overrides.items():
        if name not in known_fields:
            raise UserError(f"{name} is not a field of the configuration.")
        free = name in _FREE_FIELDS or (name in _DECODER_FIELDS and not has_decoder)
        if not free and name in fields and fields[name] != value:
            raise UserError(f"{source} has {name}={fields[name]!r}, which its weights are made for, not {value!r}.")


def _complete(source: str, fields: dict, overrides: dict, pos_embed: Tensor, found: Found) -> None:
    """Adds to the fields what neither the tensors nor the file say: from the overrides, else what is likely."""
    has_decoder = "decoder_hidden_size" in fields
    for prefix, known in (("", _KNOWN_HEADS), ("decoder_", _KNOWN_DECODER_HEADS if has_decoder else None)):
        name, width = f"{prefix}num_attention_heads", fields.get(f"{prefix}hidden_size")
        if known is None or name in fields:
            continue
        if name not in overrides and width not in known:
            raise UserError(
                f"{source} does not say how many heads its attention has, and {width} is no width of the released "
                f"models ({', '.join(map(str, known))}): give {name}."
            )
        if name not in overrides:
            found.assumed.append(f"{name}={known[width]}, as in the released models of this width")
        fields[name] = overrides.get(name, known.get(width))

    if "image_size" not in fields:
        patch_size = to_pair(fields["patch_size"])
        grid, certain = find_grid(pos_embed)
        size = overrides.get("image_size")
        if not certain and size is not None:
            given = tuple(side // patch for side, patch in zip(to_pair(size), patch_size))
            if math.prod(given) == pos_embed.shape[1] - 1:  # it says what the table is for
                grid, certain = given, True
        if grid is None:
            raise UserError(
                f"{source} has positions for {pos_embed.shape[1] - 1} patches, which make no square: give the "
                "image_size (height, width) it was trained at."
            )
        fields["image_size"] = to_size(count * side for count, side in zip(grid, patch_size))
        if not certain:
            found.assumed.append(f"image_size={fields['image_size']}")

    if not has_decoder and fields["pooling"] == "mean" and "num_labels" not in fields:
        found.assumed.append("pooling=mean, because there is no last norm")
    if has_decoder and "norm_pix_loss" not in {**fields, **overrides}:
        found.assumed.append("norm_pix_loss=False")
    if "image_mean" not in {**fields, **overrides} and fields["num_channels"] == 3:
        found.assumed.append("image_mean and image_std of ImageNet")


def _account(
    weights: Weights,
    layout: str,
    model_class: type[MAEPreTrainedModel],
    config: MAEConfig,
    state: dict[str, Tensor],
    unknown: list[str],
    found: Found,
) -> dict[str, Tensor]:
    """The tensors that the model takes; whole parts may be new or left out, anything else is refused."""
    try:
        with torch.device("meta"):
            expected = model_class(config).state_dict()
    except ValueError as error:  # a mask that removes nothing, say
        raise UserError(f"{weights.source}: {first_line(error)}") from None
    if model_class is MAEModel:
        expected = {f"mae.{name}": tensor for name, tensor in expected.items()}
    # Parts that a checkpoint of another model lacks, or that were dropped because they do not fit what is wanted.
    may_be_new = ["decoder", "head", "fc_norm", "mae.patch_embed.proj", "decoder.pred"]
    if model_class is MAEForPreTraining:
        may_be_new.append("mae.norm")
    may_be_new = [f"{part}." for part in may_be_new if not has_part(state, part)]
    new = [name for name in expected if name not in state and name.startswith(tuple(may_be_new))]
    missing = [name for name in expected if name not in state and name not in new]
    misshaped = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    left_out = {
        MAEModel: ("decoder.", "head.", "fc_norm.", "mae.norm."),
        MAEForPreTraining: ("head.", "fc_norm."),
        MAEForImageClassification: ("decoder.", "fc_norm.", "mae.norm."),
    }[model_class]
    unused = [name for name in state if name not in expected]
    surplus = [name for name in unused if not name.startswith(left_out)]
    if unknown or missing or misshaped or surplus:
        _refuse(weights, layout, unknown + surplus, missing, misshaped)
    found.new, found.unused = new, unused
    return {name: tensor for name, tensor in state.items() if name in expected}


def _describe(config: MAEConfig, has_decoder: bool, has_classifier: bool) -> str:
    (height, width), (patch_height, patch_width) = to_pair(config.image_size), to_pair(config.patch_size)
    parts = "encoder" + " and decoder" * has_decoder + " and classifier" * has_classifier
    return (
        f"{parts}: {config.num_hidden_layers} blocks, {config.hidden_size} wide, {config.num_attention_heads} heads; "
        f"{height} x {width} pixels, {config.num_channels} channels, patches of {patch_height} x {patch_width}"
    )


# Writing


def our_state(model: MAEPreTrainedModel) -> dict[str, Tensor]:
    """The tensors of any of our models, named as in the larger ones."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def save_checkpoint(model: MAEPreTrainedModel, folder: Path, layout: str) -> list[str]:
    """
    Writes a model into an empty directory, in a layout of [`LAYOUTS`].

    "mae": all that `from_pretrained` and the Auto classes need. "vit_mae": for transformers' `from_pretrained`.
    "timm": for `timm.create_model("local-dir:...")`. "official": `checkpoint.pth`, as its trainer writes; the
    configuration is beside the weights, where the official code ignores it.

    Returns:
        Names of tensors that the layout has no place for.

    Raises:
        UserError: where the other code has no such model.
    """
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "mae":
        model.save_pretrained(folder)
        return []
    if layout == "vit_mae":
        _check_vit_mae(model)
    elif config.hidden_act != "gelu":
        raise UserError(f"The {layout} code has no {config.hidden_act}, only gelu.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in our_state(model).items()}
    names = names_in(LAYOUTS[layout][0], state)
    tensors = from_ours(state, LAYOUTS[layout][0])
    if layout == "official":
        names = [*MAEConfig.__annotations__, "problem_type"]
        if isinstance(model, MAEForImageClassification):
            names += ["id2label"]
        torch.save({"model": tensors, "config": {name: getattr(config, name) for name in names}}, folder / TORCH_FILE)
        return []
    if layout == "timm":
        _save_timm(model, folder)
    else:
        tensors = _save_vit_mae(model, folder, tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return [name for name in state if name not in names]


def _save_timm(model: MAEPreTrainedModel, folder: Path) -> None:
    """timm's config.json: every size is an argument of its VisionTransformer."""
    config = model.config
    has_classifier = isinstance(model, MAEForImageClassification)
    if config.pooling == "mean" and isinstance(model, MAEModel):
        raise UserError("timm has no encoder without a last norm: convert the classifier, or load with pooling=cls.")
    num_classes = config.num_labels if has_classifier else 0
    pool = "avg" if config.pooling == "mean" and has_classifier else "token"
    height, width = to_pair(config.image_size)
    arguments = {
        "img_size": (height, width),
        "patch_size": to_pair(config.patch_size),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "global_pool": pool,
        "num_classes": num_classes,
    }
    pretrained = {
        "input_size": (config.num_channels, height, width),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875 if height == width <= 224 else 1.0,
        "num_classes": num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if config.image_mean is not None:
        pretrained |= {"mean": config.image_mean, "std": config.image_std}
    content = {
        "architecture": "vit_base_patch16_224",  # of which only the class counts
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_vit_mae(model: MAEPreTrainedModel) -> None:
    config = model.config
    if isinstance(model, MAEForImageClassification) or (isinstance(model, MAEModel) and config.pooling == "mean"):
        raise UserError("ViTMAE has no classifier and no mean pooling: convert to official or timm.")
    if not all(isinstance(size, int) for size in (config.image_size, config.patch_size)):
        raise UserError(
            f"ViTMAE takes square images and patches only, not {config.image_size} pixels in patches of "
            f"{config.patch_size}."
        )


def _save_vit_mae(model: MAEPreTrainedModel, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViTMAE's configuration and processor; its tensors."""
    config = model.config
    names = [name for name in MAEConfig.__annotations__ if name in ViTMAEConfig.__annotations__]
    theirs = ViTMAEConfig(**{name: getattr(config, name) for name in names})
    theirs.architectures = ["ViTMAEForPreTraining"]
    if isinstance(model, MAEModel):
        theirs.architectures = ["ViTMAEModel"]
        tensors = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    theirs.dtype = model.dtype
    theirs.save_pretrained(folder)
    make_image_processor(config).save_pretrained(folder)
    return tensors
