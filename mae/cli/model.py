"""Build the model that flags name: from scratch or from any checkpoint, with the statistics of its images."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import BaseImageProcessor, PreTrainedConfig

from configuration_mae import CONFIG_FIELDS, DENSE_FIELDS, FILE_FIELDS, MAEConfig, to_size
from mae.arguments.classification import ClassificationFlags, ClassificationRecipe
from mae.arguments.model import EncoderArguments, ModelArguments
from mae.arguments.overrides import parse_overrides, parse_statistics
from mae.arguments.recipes import Recipe
from mae.arguments.run import RunArguments
from mae.cli.data import set_cache
from mae.conversion.layouts import has_part
from mae.conversion.loading import build, load_checkpoint, make_plan
from mae.conversion.report import LoadReport
from mae.conversion.weights import Weights, read_weights
from mae.data.bands import Bands, bands_of
from mae.data.labels import Labels
from mae.data.mixture import make_order
from mae.data.normalization import measure_range, measure_statistics
from mae.data.sources import Source
from mae.training.transfer import freeze_encoder
from mae.utils.errors import UserError, configuration_errors, first_line
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, MAEPreTrainedModel


logger = logging.getLogger(__name__)


# Images that --image_mean auto and --value_range auto measure.
STATISTICS_IMAGES = 1000
RANGE_IMAGES = 200


def load_encoder(arguments: EncoderArguments, accelerator: Accelerator) -> tuple[MAEModel, LoadReport]:
    """
    Load the encoder that flags name, on its device, with the report of its loading.

    Raises:
        UserError: as [`load_checkpoint`], and for a layer that it does not have.
    """
    set_cache(arguments.cache_dir)
    fields = {} if arguments.image_size is None else {"image_size": to_size(arguments.image_size)}
    encoder, report = load_checkpoint(
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
        raise UserError(
            f"--layer {arguments.layer} must be from 0 to {depth} or from -{depth} to -1: this encoder has {depth} "
            "blocks."
        )
    if encoder.config.num_channels != 3 and encoder.config.image_mean is None:
        logger.info("Note: images are not normalised, because neither the model nor a flag has their mean and std.")
    return encoder.to(accelerator.device).eval(), report


def read_checkpoint(recipe: ModelArguments, retry_minutes: float = 0) -> Weights | None:
    """Read the checkpoint that a recipe names, without interpreting it; None if it names none."""
    set_cache(recipe.cache_dir)
    if recipe.model_name_or_path is None:
        return None
    return read_weights(recipe.model_name_or_path, recipe.model_revision, recipe.allow_pickle, retry_minutes)


def find_bands(recipe: ModelArguments, weights: Weights | None) -> Bands:
    """What the model that a recipe names reads of files, before it is built, because opening a folder needs it."""
    fields = (weights.config or {}) if weights is not None else {}
    if recipe.config_name is not None:
        fields = _config_fields(recipe.config_name)
    fields = {name: fields[name] for name in FILE_FIELDS if name in fields} | recipe.file_fields()
    num_channels = parse_overrides(recipe.config_overrides).get("num_channels") or _num_channels(recipe, weights)
    with configuration_errors():
        return bands_of(MAEConfig(num_channels=num_channels, **fields))


def _num_channels(recipe: ModelArguments, weights: Weights | None) -> int:
    """Channels of the model that a recipe names, unless --config_overrides names them."""
    if weights is not None:
        # The kernel of the patch projection, whose name has this in every layout. Heads have kernels too.
        kernels = (tensor for name, tensor in weights.tensors.items() if "patch_embed" in name and tensor.ndim == 4)
        return next((kernel.shape[1] for kernel in kernels), 3)
    if recipe.channels is not None:
        return len(recipe.channels)
    return 3 if recipe.config_name is None else _config_fields(recipe.config_name).get("num_channels", 3)


def build_model(
    recipe: ModelArguments,
    weights: Weights | None,
    model_class: type[MAEPreTrainedModel] = MAEForPreTraining,
    defaults: dict[str, Any] | None = None,
) -> tuple[MAEPreTrainedModel, LoadReport | None]:
    """
    Build the model that a recipe names: from scratch, or from a checkpoint with the report of its loading. The seed
    decides the weights that are new.

    Args:
        weights: As from [`read_checkpoint`].
        defaults: Fields of the configuration that the recipe may replace.

    Raises:
        UserError: for an impossible configuration, and for one that does not fit the checkpoint.
    """
    set_seed(recipe.seed)
    fields = (defaults or {}) | _processor_fields(recipe) | recipe.file_fields()
    if weights is None and recipe.channels is not None:
        fields["num_channels"] = len(recipe.channels)
    fields |= parse_overrides(recipe.config_overrides)
    for name in ("image_size", "patch_size", "mask_ratio", "norm_pix_loss", "standardize_images"):
        value = getattr(recipe, name, None)  # the last three are of pre-training
        if value is not None:
            fields[name] = to_size(value) if isinstance(value, list) else value
    for name in ("image_mean", "image_std"):
        values = parse_statistics(name, getattr(recipe, name))
        if values is not None:
            fields[name] = values[0] if len(values) == 1 else values
    with configuration_errors():
        if weights is None and recipe.config_name is not None:
            return model_class(MAEConfig(**_config_fields(recipe.config_name) | fields)), None
        if weights is None:
            return model_class(MAEConfig.from_size(recipe.model_size or "base", **fields)), None
        if recipe.model_size is not None:  # must be the checkpoint's
            size = MAEConfig.from_size(recipe.model_size)
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            fields = {name: getattr(size, name) for name in names} | fields
    plan = make_plan(weights, model_class, inflate_channels=recipe.inflate_channels, **fields)
    return build(plan, torch.float32), plan.report


def _config_fields(name: str) -> dict[str, Any]:
    """The fields of a configuration, of this model or of transformers' ViTMAE."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise UserError(f"--config_name {name} cannot be read: {first_line(error)}") from None
    if not config:  # a folder without the file
        raise UserError(f"--config_name {name} has no config.json.")
    if config.get("model_type") not in ("mae", "vit_mae"):
        raise UserError(f"--config_name {name} is of a {config.get('model_type')} model, not of a Masked Autoencoder.")
    return {field: config[field] for field in (*CONFIG_FIELDS, *DENSE_FIELDS) if field in config}


def _processor_fields(recipe: ModelArguments) -> dict[str, Any]:
    """The mean and std of the image processor that a recipe names."""
    name = recipe.image_processor_name
    if name is None:
        return {}
    try:
        processor, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError as error:
        raise UserError(f"--image_processor_name {name} cannot be read: {first_line(error)}") from None
    return {field: processor[field] for field in ("image_mean", "image_std") if field in processor}


def build_classifier(
    flags: ClassificationFlags, weights: Weights | None, labels: Labels
) -> tuple[MAEForImageClassification, LoadReport | None, ClassificationRecipe]:
    """
    Build the classifier that flags name, for these labels. Returns it with the report of its loading, and with the
    recipe in which the model's size has decided the values that the flags leave open.

    Raises:
        UserError: if there is no model to start from, and as [`build_model`].
    """
    if weights is None and not flags.from_scratch:
        raise UserError(
            "--model_name_or_path is missing: it names the pre-trained model to start from. Pass --from_scratch to "
            "train random weights, the baseline."
        )
    defaults: dict[str, Any] = {
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: index for index, name in enumerate(labels.names)},
        "num_labels": len(labels.names),
        "problem_type": labels.problem_type,
        "head_batch_norm": flags.protocol == "linear",
    }
    # As in the official protocols: cls for a linear probe, else the mean of the patch tokens. A classifier that
    # training continues from keeps its own.
    if weights is None or not any(has_part(weights.tensors, part) for part in ("head", "fc_norm")):
        defaults["pooling"] = "cls" if flags.protocol == "linear" else "mean"
    if labels.is_multi_label:
        if flags.label_smoothing_factor:
            raise UserError(
                f"--label_smoothing_factor {flags.label_smoothing_factor} is for images with one label, but these "
                "have several. Leave it out."
            )
        flags.label_smoothing_factor = 0.0
    model, report = build_model(flags, weights, MAEForImageClassification, defaults)
    recipe = flags.resolve(model.config)
    if report is not None:
        recipe.model_revision = report.revision
    model.mae.set_drop_path_rate(recipe.drop_path_rate)
    if recipe.protocol != "finetune":
        freeze_encoder(model, recipe.num_trainable_blocks or 0)
    return model, report, recipe


def choose_statistics(
    model: MAEPreTrainedModel, source: Source, recipe: Recipe, arguments: RunArguments
) -> str | None:
    """
    Measure the mean and std of the images if the recipe asks for it, set them in the model, and return a note.

    Raises:
        UserError: if the images have other than 3 channels, and neither the model nor a flag has their mean and std.
    """
    config, notes = model.config, []
    if recipe.value_range == ["auto"] or recipe.image_mean == ["auto"]:
        order = make_order(source, recipe.seed, recipe.lanes, recipe.shuffle_buffer_size)
    if recipe.value_range == ["auto"]:
        config.value_range, found = measure_range(source, order, config, RANGE_IMAGES, arguments.data_retry_minutes)
        numbers = " ".join(f"{number:g}" for pair in config.value_range for number in pair)
        notes.append(f"Measured on {found} images: --value_range {numbers}")
    if recipe.image_mean == ["auto"]:
        statistics = measure_statistics(source, order, config, STATISTICS_IMAGES, arguments.data_retry_minutes)
        config.image_mean, config.image_std = statistics.mean, statistics.std
        mean, std = ([round(value, 4) for value in values] for values in statistics[:2])
        missing = f"; {statistics.missing:.2%} of their values are missing data" if statistics.missing else ""
        notes.append(f"Measured on {statistics.num_images} images: --image_mean {mean}, --image_std {std}{missing}")
    if config.image_mean is None:
        raise UserError(
            f"Images of {config.num_channels} channels have no default mean and std. Pass --image_mean and "
            "--image_std, or --image_mean auto to measure them. 0 and 1 leave pixels as they are, in [0, 1]."
        )
    return "\n".join(notes) or None
