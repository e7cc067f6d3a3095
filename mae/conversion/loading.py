"""
Any Masked Autoencoder checkpoint -> a model of ours.

Every tensor is accounted for: what is not understood is refused, what is newly initialised or left out is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.utils import logging

from configuration_mae import MAEConfig, to_pair, to_size
from mae.conversion.channels import inflate
from mae.conversion.config import _checked, _names_of, _own_config, _wanted_fields, config_type, make_config
from mae.conversion.layouts import LAYOUTS, has_part, spelling_of, to_ours
from mae.conversion.report import LoadReport, fold, listed
from mae.conversion.weights import Weights, read_weights
from mae.utils.errors import UserError, first_line
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, MAEPreTrainedModel


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
    found: LoadReport
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
) -> tuple[MAEPreTrainedModel, LoadReport]:
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
    found = LoadReport(
        weights.source, layout, len(weights.tensors), changed=list(weights.notes), revision=weights.revision
    )

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


def _account(
    weights: Weights,
    layout: str,
    model_class: type[MAEPreTrainedModel],
    config: MAEConfig,
    state: dict[str, Tensor],
    unknown: list[str],
    found: LoadReport,
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
