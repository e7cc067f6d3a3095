"""
Load any Masked Autoencoder checkpoint.

Every tensor is accounted for: an unknown one is refused, a newly initialised or left out one is reported.
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
from mae.conversion.config import check_overrides, class_names, config_type, make_config, own_fields, target_fields
from mae.conversion.layouts import DENSE_PARTS, LAYOUTS, has_part, num_unknown, spelling_of, to_native
from mae.conversion.patches import resample
from mae.conversion.report import LoadReport, fold_blocks
from mae.conversion.weights import Weights, read_weights
from mae.utils.errors import UserError, first_line
from mae.utils.text import listed
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    MAEPreTrainedModel,
)


# Tensors that any checkpoint must have, because sizes are read from them; name -> number of dimensions.
_ENCODER_TENSORS = {
    "mae.cls_token": 3,
    "mae.pos_embed": 3,
    "mae.patch_embed.proj.weight": 4,
    "mae.blocks.0.mlp.fc1.weight": 2,
}
_DECODER_TENSORS = {"decoder.mask_token": 3, "decoder.blocks.0.mlp.fc1.weight": 2}
# Parts of a checkpoint that a model may leave out.
_CLASSIFIER = ("head.", "head_norm.", "fc_norm.")
_LEFT_OUT = {
    MAEModel: ("decoder.", "mae.norm.", *_CLASSIFIER, *DENSE_PARTS),
    MAEForPreTraining: (*_CLASSIFIER, *DENSE_PARTS),
    MAEForImageClassification: ("decoder.", "mae.norm.", "fc_norm.", *DENSE_PARTS),
    MAEBackbone: ("decoder.", "mae.norm.", *_CLASSIFIER, *DENSE_PARTS),
    MAEForSemanticSegmentation: ("decoder.", "mae.norm.", *_CLASSIFIER, *DENSE_PARTS),
}


@dataclass
class Plan:
    """
    How to build a model from a checkpoint that is understood.

    Args:
        model_class: The class to build.
        config: Its configuration, at the checkpoint's own patch grid.
        state: Its tensors by native names.
        image_size: Pixels that the positions are resampled for.
        report: What was found and will be done.
        original: The plan of the checkpoint as it is, if something is changed.
    """

    model_class: type[MAEPreTrainedModel]
    config: MAEConfig
    state: dict[str, Tensor]
    image_size: int | tuple[int, int]
    report: LoadReport
    original: "Plan | None" = None


def load_checkpoint(
    name_or_path: str | Path,
    model_class: type[MAEPreTrainedModel] | None = None,
    *,
    layout: str | None = None,
    state_key: str | None = None,
    prefix: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
    inflate_channels: str | None = None,
    retry_minutes: float = 0,
    **overrides: Any,
) -> tuple[MAEPreTrainedModel, LoadReport]:
    """
    Load a model from any Masked Autoencoder checkpoint: official, timm's, transformers' ViTMAE or this package's.

    Args:
        name_or_path:
            A file (.safetensors, .pth, .pt, .bin, .ckpt), a directory with a configuration, or a model on the Hub.
        model_class:
            Default: that of the checkpoint, which is [`MAEForPreTraining`] with a decoder,
            [`MAEForImageClassification`] with a classifier, [`MAEForSemanticSegmentation`] with a segmentation head,
            [`MAEBackbone`] with a feature pyramid alone, else [`MAEModel`]. If it is another class, the parts that the
            checkpoint lacks are newly initialised.
        layout: A name of [`LAYOUTS`]. Default: recognised by the names of the tensors.
        state_key:
            The entry of a torch file that holds the weights, such as "teacher". Default: "model" or "state_dict", or
            the only one.
        prefix:
            What stands before the names of the weights, such as "backbone."; tensors without it are left out. Default:
            the prefix that all names have in common.
        revision: Branch, tag or commit on the Hub.
        allow_pickle: Whether to read a pickle from the Hub, with `weights_only`, if there are no safetensors.
        dtype: Default: that of the checkpoint, or float32 if it has several.
        inflate_channels: "mean" or "repeat", if `num_channels` is overridden: see [`inflate`].
        retry_minutes: How long network errors are retried.
        overrides:
            Fields of the configuration. If the checkpoint has no configuration, they give the settings that no tensor
            tells (heads, `norm_pix_loss`). Another `image_size` resamples the positions, another `patch_size` the
            patch projections too. Another number or other names of labels initialise a new classifier or segmentation
            head.

    Returns:
        The model, in evaluation mode, and a report of what was found.

    Raises:
        UserError: if it cannot be read, or if tensors are unknown, missing or of the wrong shape, all of which it
            lists.
    """
    weights = read_weights(name_or_path, revision, allow_pickle, retry_minutes, state_key, prefix)
    plan = make_plan(weights, model_class, layout=layout, inflate_channels=inflate_channels, **overrides)
    return build(plan, dtype), plan.report


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' tables and progress bars of loading, which a [`LoadReport`] replaces."""
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
    """Build the model of a plan. New weights are drawn from torch's generator."""
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
    """The layout that knows most of the tensors' names; a `UserError` if none does."""
    stated = config_type(weights)
    if stated is not None:
        return stated
    num_known = {
        name: len(weights.tensors) - num_unknown(weights.tensors, spelling_of(weights.tensors, name))
        for name in LAYOUTS
    }
    best = max(num_known.values())
    if not best:
        raise UserError(
            f"{weights.source} is not a Masked Autoencoder of a known layout ({', '.join(LAYOUTS)}): its tensors are "
            f"{listed(list(weights.tensors), 8)}."
        )
    # Three layouts name an encoder alike; a file without a configuration is the official one.
    return "official" if num_known["official"] == best else next(name for name in LAYOUTS if num_known[name] == best)


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
    overrides = check_overrides(overrides)
    layout = layout or recognise(weights)
    state, unknown = _read_names(weights, layout)
    report = LoadReport(
        weights.source, layout, len(weights.tensors), changed=list(weights.notes), revision=weights.revision
    )
    fields = own_fields(weights, layout, state, overrides, report)
    own = make_config(weights.source, fields)
    fields_asked = target_fields(weights.source, own, fields, overrides, inflate_channels, report)
    target = make_config(weights.source, fields_asked)

    adapted = _adapt(state, own, target, inflate_channels, report)
    _report_changes(adapted, own, target, report)
    # At the checkpoint's own grid; [`build`] resamples the positions.
    size = to_size(count * side for count, side in zip(own.grid_size, to_pair(target.patch_size)))
    config = make_config(weights.source, {**fields_asked, "image_size": size})
    own_class = _class_of(state)
    taken = _account(weights, layout, model_class or own_class, config, adapted, unknown, report)
    report.description = _describe(own, state)
    plan = Plan(model_class or own_class, config, taken, target.image_size, report)
    if report.changed or report.new:
        plan.original = Plan(own_class, own, state, own.image_size, report)
    return plan


def _class_of(state: dict[str, Tensor]) -> type[MAEPreTrainedModel]:
    if has_part(state, "decoder"):
        return MAEForPreTraining
    if has_part(state, "decode_head"):
        return MAEForSemanticSegmentation
    if has_part(state, "pyramid"):
        return MAEBackbone
    return MAEForImageClassification if _has_classifier(state) else MAEModel


def _has_classifier(state: dict[str, Tensor]) -> bool:
    return has_part(state, "head") or has_part(state, "fc_norm")


def _read_names(weights: Weights, layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by native names, and the unknown ones; a `UserError` if they are not even an encoder."""
    state, unknown = to_native(weights.tensors, spelling_of(weights.tensors, layout))
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


def _adapt(
    state: dict[str, Tensor], own: MAEConfig, target: MAEConfig, inflate_channels: str | None, report: LoadReport
) -> dict[str, Tensor]:
    """
    Inflate channels and resample patches, and drop the tensors that do not fit the target, which are then newly
    initialised.
    """
    if target.num_channels != own.num_channels:
        state = inflate(state, own.num_channels, target.num_channels, inflate_channels)
        report.changed.append(f"{own.num_channels} channels inflated to {target.num_channels} ({inflate_channels})")
    if (old := to_pair(own.patch_size)) != (new := to_pair(target.patch_size)):
        state = resample(state, old, new)
        sizes = [f"{height} x {width}" for height, width in (old, new)]
        report.changed.append(f"patch projections resampled from {sizes[0]} to {sizes[1]} pixels (pseudo-inverse)")
    names = class_names(own), class_names(target)
    same_classes = target.num_labels == own.num_labels and (None in names or names[0] == names[1])
    if has_part(state, "head") and not (same_classes and target.head_batch_norm == own.head_batch_norm):
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_norm."))}
    if has_part(state, "decode_head") and not (same_classes and _segmentation(own) == _segmentation(target)):
        heads = ("decode_head.", "auxiliary_head.")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
    return state


def _segmentation(config: MAEConfig) -> tuple[str, int]:
    """The kind and the width of the segmentation head."""
    return config.segmentation_head, config.segmentation_hidden_size or config.hidden_size


def _report_changes(state: dict[str, Tensor], own: MAEConfig, target: MAEConfig, report: LoadReport) -> None:
    for name in ("patch_size", "image_size"):
        if to_pair(getattr(target, name)) != to_pair(getattr(own, name)):
            report.changed.append(f"{name} from {getattr(own, name)} to {getattr(target, name)}")
    if target.grid_size != own.grid_size:
        old, new = (f"{rows} x {columns}" for rows, columns in (own.grid_size, target.grid_size))
        report.changed.append(f"positions resampled from {old} to {new} patches")
    dtypes = sorted({str(tensor.dtype) for tensor in state.values() if tensor.is_floating_point()})
    if len(dtypes) > 1:
        report.changed.append(f"{' and '.join(dtypes)} made torch.float32, unless another type is asked for")


def _refuse(weights: Weights, layout: str, unknown: list[str], missing: list[str], misshaped: list[str]) -> NoReturn:
    kinds = (("unknown", unknown), ("missing (by their native names)", missing), ("of the wrong shape", misshaped))
    problems = [f"{kind}: {', '.join(fold_blocks(names))}" for kind, names in kinds if names]
    raise UserError(f"{weights.source} is no whole checkpoint of the {layout} layout. Tensors {'; '.join(problems)}.")


def _account(
    weights: Weights,
    layout: str,
    model_class: type[MAEPreTrainedModel],
    config: MAEConfig,
    state: dict[str, Tensor],
    unknown: list[str],
    report: LoadReport,
) -> dict[str, Tensor]:
    """The tensors that the model takes. Whole parts may be new or left out; anything else is refused."""
    try:
        with torch.device("meta"):
            expected = model_class(config).state_dict()
    except ValueError as error:  # for example, a mask that removes nothing
        raise UserError(f"{weights.source}: {first_line(error)}") from None
    if model_class is MAEModel:
        expected = {f"mae.{name}": tensor for name, tensor in expected.items()}
    # Parts that a checkpoint of another model lacks, or that were dropped because they do not fit the target.
    may_be_new = ["decoder.", *_CLASSIFIER, *DENSE_PARTS]
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
    report.new, report.unused = new, unused
    return {name: tensor for name, tensor in state.items() if name in expected}


def _describe(config: MAEConfig, state: dict[str, Tensor]) -> str:
    (height, width), (patch_height, patch_width) = to_pair(config.image_size), to_pair(config.patch_size)
    parts = "encoder" + " and decoder" * has_part(state, "decoder") + " and classifier" * _has_classifier(state)
    parts += " and feature pyramid" * has_part(state, "pyramid")
    parts += " and segmentation head" * has_part(state, "decode_head")
    return (
        f"{parts}: {config.num_hidden_layers} blocks, {config.hidden_size} wide, {config.num_attention_heads} heads; "
        f"{height} x {width} pixels, {config.num_channels} channels, patches of {patch_height} x {patch_width}"
    )
