"""The model that a recipe names: from scratch or from any checkpoint, with the statistics of the images it is for."""

import hashlib
from typing import Any

import torch
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError

from configuration_mae import MAEConfig
from mae.arguments.recipes import Recipe, RunArguments, parse_overrides, parse_statistics
from mae.conversion.loading import Found, build, make_plan
from mae.conversion.weights import Weights, read_weights
from mae.data.loader import measure_statistics
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.utils.errors import UserError, first_line
from modeling_mae import MAEForPreTraining, MAEPreTrainedModel


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
) -> tuple[MAEPreTrainedModel, Found | None]:
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
    return build(plan, torch.float32), plan.found


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


def hash_weights(model: MAEPreTrainedModel) -> str:
    """A hash of a model's tensors."""
    weights = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return weights.hexdigest()
