"""The identity of a run: everything that changes its results."""

from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from configuration_mae import CONFIG_FIELDS, FILE_FIELDS, MAEConfig
from mae.arguments.recipes import Recipe, recipe_identity
from mae.arguments.run import RunArguments
from mae.data.mixture import mixture_of
from mae.data.sources import Source
from mae.utils.text import flatten


def run_identity(
    recipe: Recipe,
    arguments: RunArguments,
    accelerator: Accelerator,
    source: Source,
    config: MAEConfig,
    batch_size: int,
    initial_weights: str | None,
    of_the_task: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """
    The identity of a run, as JSON values. It holds neither how the batch is divided nor where files lie.

    Args:
        batch_size: Images of an optimizer step, over all ranks.
        initial_weights: Hash of the weights that training starts from, if they come from a checkpoint.
        of_the_task: What the task adds to "data" and "model".
    """
    identity: dict[str, Any] = {
        "recipe": recipe_identity(recipe),
        "effective_batch_size": batch_size,
        "mixed_precision": accelerator.mixed_precision,
        "tf32": arguments.tf32,
        "initial_weights": initial_weights,
        "data": {"fingerprint": source.fingerprint, "images": len(source)},
        "model": {name: getattr(config, name) for name in CONFIG_FIELDS},
    }
    # Runs from before these fields resume.
    for name in ("standardize_images", "decoder_type", "prediction_ratio", "weighted_feature_maps", *FILE_FIELDS):
        if getattr(config, name) == getattr(MAEConfig, name):
            del identity["model"][name]
    mixture = mixture_of(source)
    if mixture is not None:
        identity["data"]["parts"] = mixture.describe()
    for name, values in of_the_task.items():
        identity[name] |= values
    return identity


def resolved_recipe(
    recipe: Recipe, arguments: RunArguments, accelerator: Accelerator, source: Source, config: MAEConfig
) -> dict[str, Any]:
    """The flags that repeat a run, with the revision of the data and what was measured of its images."""
    flags = asdict(recipe) | asdict(arguments)
    # The launcher may have set the precision.
    flags |= {precision: accelerator.mixed_precision == precision for precision in ("bf16", "fp16")}
    where = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"}
    for name in [name for name in flags if name in where or name.startswith(("hub_", "push_to_hub"))]:
        del flags[name]
    if recipe.train_dir is None:
        flags["dataset_revision"] = source.revision
        mixture = mixture_of(source)
        if mixture is not None:
            flags["dataset_name"] = mixture.paths
    if recipe.value_range is not None:
        flags["value_range"] = [number for pair in config.value_range for number in pair]
    if recipe.image_mean is not None:
        flags |= {name: list(getattr(config, name)) for name in ("image_mean", "image_std")}
    return {name: value for name, value in flags.items() if value is not None}


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Describe in what two identities differ, one entry per value."""
    stored, current = flatten(stored), flatten(current)
    return [
        f"{name} was {stored.get(name)!r}, now {current.get(name)!r}"
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name) != current.get(name)
    ]
