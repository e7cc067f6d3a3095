"""The model that a recipe names: from scratch or from any checkpoint, with the statistics of the images it is for."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError

from configuration_mae import MAEConfig
from mae.arguments.data import FeatureArguments
from mae.arguments.overrides import parse_overrides, parse_statistics
from mae.arguments.recipes import ClassificationRecipe, Recipe
from mae.arguments.run import RunArguments
from mae.conversion.layouts import has_part
from mae.conversion.loading import build, load_checkpoint, make_plan
from mae.conversion.report import LoadReport
from mae.conversion.weights import Weights, read_weights
from mae.data.labels import Labels
from mae.data.normalization import measure_statistics
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.training.classification import freeze_encoder
from mae.utils.errors import UserError, first_line
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, MAEPreTrainedModel


logger = logging.getLogger(__name__)


def load_encoder(arguments: FeatureArguments, accelerator: Accelerator) -> tuple[MAEModel, LoadReport]:
    """
    The encoder that flags name, on its device, and what was found in the checkpoint. A pooling that none names is
    the encoder's.

    Raises:
        UserError: as [`load_checkpoint`], and for a layer that it does not have.
    """
    size, fields = arguments.image_size, {}
    if size is not None:
        fields["image_size"] = size[0] if len(size) == 1 else tuple(size)
    encoder, found = load_checkpoint(
        arguments.model_name_or_path,
        MAEModel,
        revision=arguments.model_revision,
        allow_pickle=arguments.allow_pickle,
        dtype=torch.float32,
        retry_minutes=arguments.data_retry_minutes,
        **fields,
    )
    depth = len(encoder.blocks)
    if arguments.layer is not None and not -depth <= arguments.layer <= depth:
        raise UserError(f"--layer {arguments.layer}: this encoder has {depth} blocks, 0 to {depth} or -{depth} to -1.")
    if encoder.config.num_channels != 3 and encoder.config.image_mean is None:
        logger.info("Note: images are not normalised, because nothing says what mean and deviation the model is for.")
    arguments.pooling = arguments.pooling or encoder.config.pooling
    return encoder.to(accelerator.device).eval(), found


def build_classifier(
    recipe: ClassificationRecipe, weights: Weights | None, labels: Labels
) -> tuple[MAEForImageClassification, LoadReport | None]:
    """
    The classifier that a recipe names, for these labels: settings of the protocol that the recipe leaves open are
    resolved by the model's size.

    Raises:
        UserError: where there is no model to start from, and as [`build_model`].
    """
    if weights is None and not recipe.from_scratch:
        raise UserError(
            "--model_name_or_path names the pre-trained model to start from; --from_scratch trains one of random "
            "weights, the baseline."
        )
    defaults: dict[str, Any] = {
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: index for index, name in enumerate(labels.names)},
        "num_labels": len(labels.names),
        "problem_type": labels.problem_type,
        "head_batch_norm": recipe.protocol == "linear",
    }
    # The official protocols': the mean of the patch tokens, but for a linear probe cls. A classifier keeps its own.
    if weights is None or not any(has_part(weights.tensors, part) for part in ("head", "fc_norm")):
        defaults["pooling"] = "cls" if recipe.protocol == "linear" else "mean"
    if labels.is_multi_label:
        if recipe.label_smoothing_factor:
            raise UserError("--label_smoothing_factor is for images with one label; these have several.")
        recipe.label_smoothing_factor = 0.0
    model, found = build_model(recipe, weights, MAEForImageClassification, defaults)
    recipe.resolve(model.config)
    model.mae.set_drop_path_rate(recipe.drop_path_rate)
    if recipe.protocol != "finetune":
        freeze_encoder(model, recipe.num_trainable_blocks or 0)
    return model, found


# How many images --image_mean auto looks at.
STATISTICS_IMAGES = 1000


def read_checkpoint(recipe: Recipe, retry_minutes: float = 0) -> Weights | None:
    """The checkpoint that a recipe names, not yet understood; None where it names none."""
    if recipe.model_name_or_path is None:
        return None
    return read_weights(recipe.model_name_or_path, recipe.model_revision, recipe.allow_pickle, retry_minutes)


def find_num_channels(recipe: Recipe, weights: Weights | None) -> int:
    """Of the model that a recipe names, before it is built: of folders of arrays it must be known."""
    fields = parse_overrides(recipe.config_overrides)
    if "num_channels" in fields or weights is None:
        return fields.get("num_channels", 3)
    # The kernel of the patch projection, whatever it is called.
    return next((tensor.shape[1] for tensor in weights.tensors.values() if tensor.ndim == 4), 3)


def build_model(
    recipe: Recipe,
    weights: Weights | None,
    model_class: type[MAEPreTrainedModel] = MAEForPreTraining,
    defaults: dict[str, Any] | None = None,
) -> tuple[MAEPreTrainedModel, LoadReport | None]:
    """
    The model that a recipe names, from scratch, or from a checkpoint with what was found in it. The seed decides the
    weights that are new.

    Args:
        weights: What [`read_checkpoint`] gave.
        defaults: Fields of the configuration that the recipe's own go before.

    Raises:
        UserError: for an impossible configuration, and for one that does not fit the checkpoint.
    """
    set_seed(recipe.seed)
    fields = (defaults or {}) | parse_overrides(recipe.config_overrides)
    for name in ("image_size", "patch_size", "mask_ratio", "norm_pix_loss"):
        value = getattr(recipe, name, None)  # the last two are of pre-training
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else tuple(value)
        if value is not None:
            fields[name] = value
    for name in ("image_mean", "image_std"):
        values = parse_statistics(name, getattr(recipe, name))
        if values is not None:
            fields[name] = values[0] if len(values) == 1 else values
    try:
        if weights is None:
            return model_class(MAEConfig.from_size(recipe.model_size or "base", **fields)), None
        if recipe.model_size is not None:  # must be the checkpoint's
            size = MAEConfig.from_size(recipe.model_size)
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            fields = {name: getattr(size, name) for name in names} | fields
    except StrictDataclassError as error:
        raise UserError(str(error.__cause__ or error)) from None
    except ValueError as error:
        raise UserError(first_line(error)) from None
    plan = make_plan(weights, model_class, inflate_channels=recipe.inflate_channels, **fields)
    return build(plan, torch.float32), plan.report


def choose_statistics(
    model: MAEPreTrainedModel, source: Source, recipe: Recipe, arguments: RunArguments
) -> str | None:
    """
    Sets the mean and std that images are normalised by where they are to be measured, and says so.

    Raises:
        UserError: where nobody has said what they are, for another number of channels than 3.
    """
    config = model.config
    if recipe.image_mean == ["auto"]:
        order = SampleOrder(source.group_sizes, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)
        config.image_mean, config.image_std, count = measure_statistics(
            source, order, config, STATISTICS_IMAGES, arguments.data_retry_minutes
        )
        mean, std = ([round(value, 4) for value in values] for values in (config.image_mean, config.image_std))
        return f"Measured on {count} images: --image_mean {mean}, --image_std {std}"
    if config.image_mean is None:
        raise UserError(
            f"Images of {config.num_channels} channels have no usual mean and std: give --image_mean and --image_std, "
            "or --image_mean auto to measure them. 0 and 1 leave pixels as they are, in [0, 1]."
        )
    return None
