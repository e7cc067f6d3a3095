"""
Any Masked Autoencoder checkpoint -> a model of ours.

Every tensor is accounted for: what is not understood is refused, what is newly initialised or left out is told.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.utils import logging

from configuration_mae import MAEConfig, to_pair
from mae.conversion.config import LABEL_FIELDS, config_type, make_config, stated_fields
from mae.conversion.layouts import (
    LAYOUTS,
    find_grid,
    fold,
    has_part,
    inflate,
    inflate_values,
    read_sizes,
    spelling_of,
    to_ours,
    to_size,
)
from mae.conversion.weights import Weights, listed, read_weights
from mae.utils.errors import UserError, first_line
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, MAEPreTrainedModel


# What may differ from the checkpoint without making its tensors mean something else: nothing depends on it, or it is
# resampled, inflated or made anew, which is said.
_FREE_FIELDS = {"image_size", "patch_size", "num_channels", "image_mean", "image_std", "mask_ratio", "masking"}
_FREE_FIELDS |= {"norm_pix_loss", "pooling", "head_batch_norm", "drop_path_rate", "attention_probs_dropout_prob"}
_FREE_FIELDS |= {"layer_norm_eps", "initializer_range", *LABEL_FIELDS}
_DECODER_FIELDS = {name for name in MAEConfig.__annotations__ if name.startswith("decoder_")}
# Width -> heads of the released models: the paper's, and DeiT's tiny and small, which timm trains.
_KNOWN_HEADS = {"": {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}, "decoder_": {512: 16}}
# Without these nothing can be said about a checkpoint; name -> number of dimensions.
_ENCODER_TENSORS = {
    "mae.cls_token": 3,
    "mae.pos_embed": 3,
    "mae.patch_embed.proj.weight": 4,
    "mae.blocks.0.mlp.fc1.weight": 2,
}
_DECODER_TENSORS = {"decoder.mask_token": 3, "decoder.blocks.0.mlp.fc1.weight": 2}
# What depends on the size of a patch.
_OF_PATCHES = ("mae.patch_embed.proj.", "decoder.pred.")
# Parts of a checkpoint that a model may leave out.
_LEFT_OUT = {
    MAEModel: ("decoder.", "head.", "head_norm.", "fc_norm.", "mae.norm."),
    MAEForPreTraining: ("head.", "head_norm.", "fc_norm."),
    MAEForImageClassification: ("decoder.", "fc_norm.", "mae.norm."),
}


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
        changed: What was resampled, inflated or ignored.
        new: Names of the model's tensors that were newly initialised.
        unused: Names of tensors, by ours, that the model has no place for.
        revision: The commit, where it comes from the Hub.
    """

    source: str
    layout: str
    num_tensors: int
    description: str = ""
    assumed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    revision: str | None = None

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
    names = list(names)
    whole_decoder = "decoder.mask_token" in names
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        two = parts[0] == "mae" or (parts[0] == "decoder" and not whole_decoder)
        part = ".".join(parts[: 1 + two])
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
        original: The plan of the checkpoint as it is, where something is changed.
    """

    model_class: type[MAEPreTrainedModel]
    config: MAEConfig
    state: dict[str, Tensor]
    image_size: int | tuple[int, int]
    found: Found
    original: "Plan | None" = None


def load_checkpoint(
    name_or_path: str | Path,
    model_class: type[MAEPreTrainedModel] | None = None,
    *,
    layout: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
    inflate_channels: str | None = None,
    retry_minutes: float = 0,
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
        allow_pickle: Whether to read a pickle from the Hub, with `weights_only`, where it has no safetensors.
        dtype: Default: that of the checkpoint, or float32 where it has several.
        inflate_channels: "mean" or "repeat", where `num_channels` is overridden: see [`inflate`].
        retry_minutes: How long faults of the network are waited out.
        overrides:
            Fields of the configuration. Settings that no tensor tells (heads, `norm_pix_loss`) where the checkpoint
            has no configuration. Another `image_size` resamples the positions; another `patch_size` makes the patch
            projections anew, another number or other names of labels the classifier.

    Returns:
        The model, in evaluation mode, and what was found.

    Raises:
        UserError: for what cannot be read, and listing every tensor that is unknown, missing or of the wrong shape.
    """
    weights = read_weights(name_or_path, revision, allow_pickle, retry_minutes)
    plan = make_plan(weights, model_class, layout=layout, inflate_channels=inflate_channels, **overrides)
    return build(plan, dtype), plan.found


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' tables and bars of loading, which our report takes the place of."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def build(plan: Plan, dtype: torch.dtype | None = None) -> MAEPreTrainedModel:
    """The model of a plan; what is newly initialised is drawn from torch's generator."""
    state = plan.state
    if dtype is None:
        dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if plan.model_class is MAEModel:
        state = {name.removeprefix("mae."): tensor for name, tensor in state.items()}
    with quiet():
        model = plan.model_class.from_pretrained(None, config=plan.config, state_dict=state, dtype=dtype)
    model.resize_positions(plan.image_size)
    return model


def recognise(weights: Weights) -> str:
    """The name of the layout that most of the tensors' names belong to. A `UserError` where none do."""
    stated = config_type(weights)
    if stated is not None:
        return stated
    known = {name: len(weights.tensors) - _num_unknown(weights, name) for name in LAYOUTS}
    best = max(known.values())
    if not best:
        raise UserError(
            f"{weights.source} is not a Masked Autoencoder of a known layout ({', '.join(LAYOUTS)}): its tensors are "
            f"{listed(list(weights.tensors))}."
        )
    # The names of an encoder are the same in three of them; without a configuration, it is the official file.
    return "official" if known["official"] == best else next(name for name in LAYOUTS if known[name] == best)


def _num_unknown(weights: Weights, layout: str) -> int:
    return len(to_ours(weights.tensors, spelling_of(weights.tensors, layout))[1])


def make_plan(
    weights: Weights,
    model_class: type[MAEPreTrainedModel] | None = None,
    *,
    layout: str | None = None,
    inflate_channels: str | None = None,
    **overrides: Any,
) -> Plan:
    """[`load_checkpoint`] up to the point where a model is built. The tensors may be on the meta device."""
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} is unknown: choose one of {', '.join(LAYOUTS)}.")
    overrides = _checked(overrides)
    layout = layout or recognise(weights)
    state, unknown = _read_names(weights, layout)
    has_decoder = has_part(state, "decoder")
    has_classifier = has_part(state, "head") or has_part(state, "fc_norm")
    own_class = MAEForImageClassification if has_classifier else MAEModel
    own_class = MAEForPreTraining if has_decoder else own_class
    found = Found(weights.source, layout, len(weights.tensors), changed=list(weights.notes), revision=weights.revision)

    own, fields = _own_config(weights, layout, state, overrides, found)
    wanted, image_size = _wanted_fields(weights.source, own, fields, overrides, inflate_channels, found)
    target = make_config(weights.source, {**wanted, "image_size": image_size})
    same_patches = to_pair(target.patch_size) == to_pair(own.patch_size)

    original_state = state
    if not same_patches:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_OF_PATCHES)}
    elif target.num_channels != own.num_channels:
        state = inflate(state, own.num_channels, target.num_channels, inflate_channels)
        found.changed.append(f"{own.num_channels} channels inflated to {target.num_channels} ({inflate_channels})")
    names = _names_of(own), _names_of(target)
    same_classes = target.num_labels == own.num_labels and (None in names or names[0] == names[1])
    if has_part(state, "head") and not (same_classes and target.head_batch_norm == own.head_batch_norm):
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_norm."))}
    for name in ("patch_size", "image_size"):
        if to_pair(getattr(target, name)) != to_pair(getattr(own, name)):
            found.changed.append(f"{name} from {getattr(own, name)} to {getattr(target, name)}")
    if target.grid_size != own.grid_size:
        old, new = (f"{rows} x {columns}" for rows, columns in (own.grid_size, target.grid_size))
        found.changed.append(f"positions resampled from {old} to {new} patches")
    dtypes = sorted({str(tensor.dtype) for tensor in state.values() if tensor.is_floating_point()})
    if len(dtypes) > 1:
        found.changed.append(f"{' and '.join(dtypes)} made torch.float32, where nothing else is asked for")

    # At the checkpoint's own grid; [`build`] resamples the positions.
    size = to_size(count * side for count, side in zip(own.grid_size, to_pair(target.patch_size)))
    config = make_config(weights.source, {**wanted, "image_size": size})
    model_class = model_class or own_class
    state = _account(weights, layout, model_class, config, state, unknown, found)
    found.description = _describe(own, has_decoder, has_classifier)
    plan = Plan(model_class, config, state, image_size, found)
    if found.changed or found.new:
        plan.original = Plan(own_class, own, original_state, own.image_size, found)
    return plan


def _checked(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides that are fields of the configuration, each by itself of the right type."""
    overrides = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    scratch = MAEConfig()
    for name, value in overrides.items():
        if name not in MAEConfig.__annotations__ and name not in LABEL_FIELDS:
            raise UserError(f"{name} is not a field of the configuration.")
        try:
            if name in MAEConfig.__annotations__:
                setattr(scratch, name, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"{name}={value!r}: {first_line(error.__cause__ or error)}") from None
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
    if not missing and not misshaped and state["mae.pos_embed"].shape[1] < 2:
        misshaped = [f"mae.pos_embed is {tuple(state['mae.pos_embed'].shape)}, without a patch"]
    if missing or misshaped:
        _refuse(weights, layout, unknown, missing, misshaped)
    return state, unknown


def _refuse(weights: Weights, layout: str, unknown: list[str], missing: list[str], misshaped: list[str]) -> NoReturn:
    kinds = (("unknown", unknown), ("missing (by our names)", missing), ("of the wrong shape", misshaped))
    problems = [f"{kind}: {', '.join(fold(names))}" for kind, names in kinds if names]
    raise UserError(f"{weights.source} is no whole checkpoint of the {layout} layout. Tensors {'; '.join(problems)}.")


def _own_config(
    weights: Weights, layout: str, state: dict[str, Tensor], overrides: dict[str, Any], found: Found
) -> tuple[MAEConfig, dict[str, Any]]:
    """The configuration of the checkpoint as it is, and its fields; overrides say what nothing else does."""
    source, pos_embed = weights.source, state["mae.pos_embed"]
    fields, sizes = stated_fields(weights), read_sizes(state)
    has_decoder = "decoder_hidden_size" in sizes
    if layout == "vit_mae":
        sizes["pooling"] = "cls"  # it has no other, and so no encoder without a last norm
    for name in sizes.keys() & fields.keys():
        # An encoder of ours may be stored with the norm that its pooling does without, and has no labels.
        optional = name == "pooling" and config_type(weights) == "mae"
        if not optional and _comparable(fields[name]) != _comparable(sizes[name]):
            raise UserError(f"{source} says {name}={fields[name]!r}, but its tensors have {sizes[name]!r}.")
    fields = {**sizes, **fields}
    for name, value in overrides.items():
        free = name in _FREE_FIELDS or (name in _DECODER_FIELDS and not has_decoder)
        if not free and name in fields and fields[name] != value:
            raise UserError(f"{source} has {name}={fields[name]!r}, which its weights are made for, not {value!r}.")

    for prefix, known in _KNOWN_HEADS.items():
        name, width = f"{prefix}num_attention_heads", fields.get(f"{prefix}hidden_size")
        if name in fields or (prefix and not has_decoder):
            continue
        if name not in overrides and width not in known:
            raise UserError(
                f"{source} does not say how many heads its attention has, and {width} is no width of the released "
                f"models ({', '.join(map(str, known))}): give {name}."
            )
        if name not in overrides:
            found.assumed.append(f"{name}={known[width]}, as in the released models of this width")
        fields[name] = overrides.get(name, known.get(width))
    fields["image_size"] = _own_image_size(source, fields, overrides.get("image_size"), pos_embed, found)
    if not has_decoder and fields["pooling"] == "mean" and "num_labels" not in fields:
        found.assumed.append("pooling=mean, because there is no last norm")
    if has_decoder and "norm_pix_loss" not in {**fields, **overrides}:
        found.assumed.append("norm_pix_loss=False")
    if "image_mean" not in {**fields, **overrides} and fields["num_channels"] == 3:
        found.assumed.append("image_mean and image_std of ImageNet")
    if (weights.config or {}).get("hidden_dropout_prob"):
        found.changed.append("hidden_dropout_prob left out, which this model does not have")
    if fields.get("id2label") and len(fields["id2label"]) != fields.get("num_labels", len(fields["id2label"])):
        raise UserError(f"{source} has {fields['num_labels']} labels, but names of {len(fields['id2label'])}.")
    return make_config(source, fields), fields


def _names_of(config: MAEConfig) -> list[str] | None:
    """The names of its classes; None where they have none but their numbers."""
    names = list((config.id2label or {}).values())
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names


def _comparable(value: Any) -> Any:
    return to_pair(value) if isinstance(value, (list, tuple)) else (value, value) if type(value) is int else value


def _own_image_size(
    source: str, fields: dict[str, Any], asked: int | tuple[int, int] | None, pos_embed: Tensor, found: Found
) -> int | tuple[int, int]:
    """What images the position table is for: as stated, as it shows itself, as asked for, or the square."""
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
        found.assumed.append(f"positions for {rows} x {columns} patches, as image_size={asked} has them")
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
    found.assumed.append(f"image_size={size}")
    return size


def _wanted_fields(
    source: str,
    own: MAEConfig,
    fields: dict[str, Any],
    overrides: dict[str, Any],
    inflate_channels: str | None,
    found: Found,
) -> tuple[dict[str, Any], int | tuple[int, int]]:
    """The fields of the wanted model, and its image size."""
    wanted = {**fields, **overrides}
    if "num_labels" in overrides and overrides["num_labels"] != fields.get("num_labels"):
        wanted = {name: wanted[name] for name in wanted if name in overrides or name not in ("id2label", "label2id")}
    channels = wanted["num_channels"]
    if inflate_channels is not None and channels == own.num_channels:
        raise UserError(f"inflate_channels={inflate_channels} has nothing to do: {source} has {channels} channels.")
    if channels != own.num_channels and not {"image_mean", "image_std"} <= overrides.keys():
        if own.image_mean is None:
            statistics = ([0.0] * channels, [1.0] * channels) if channels == 3 else (None, None)
        elif inflate_channels in ("mean", "repeat"):
            own_statistics = (torch.tensor(own.image_mean), torch.tensor(own.image_std))
            statistics = [inflate_values(values, channels, inflate_channels).tolist() for values in own_statistics]
        else:
            statistics = (None, None)
        wanted["image_mean"], wanted["image_std"] = statistics
        found.changed.append(f"image_mean={wanted['image_mean']} and image_std={wanted['image_std']}")
    return wanted, overrides.get("image_size", own.image_size)


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
    may_be_new = ["decoder.", "head.", "head_norm.", "fc_norm.", *_OF_PATCHES]
    if model_class is MAEForPreTraining:
        may_be_new.append("mae.norm.")
    may_be_new = [part for part in may_be_new if not has_part(state, part[:-1])]
    new = [name for name in expected if name not in state and name.startswith(tuple(may_be_new))]
    missing = [name for name in expected if name not in state and name not in new]
    misshaped = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    unused = [name for name in state if name not in expected]
    surplus = [name for name in unused if not name.startswith(_LEFT_OUT[model_class])]
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
