"""Parse a command line: dataclasses, a recipe file, and the flags of the transformers Trainer."""

import argparse
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from mae.arguments.overrides import _nearest, parse_overrides
from mae.utils.errors import UserError


# A flag on the command line -> what of a recipe file it takes the place of, beside itself.
_REPLACED = {
    "model_name_or_path": ("model_revision", "model_size", "config_overrides", "image_size", "patch_size"),
    "model_size": ("config_overrides",),
}
# Flags of transformers' Trainer that commands for its run_mae.py hold, and why they change nothing here.
_TRAINER_FLAGS = {
    "do_train": "training is what this script does",
    "do_eval": "held-out images are looked at wherever the data has them",
    "model_type": "the model is a Masked Autoencoder",
    "remove_unused_columns": "only the column of the images is read",
    "label_names": "labels are found by themselves, or by --label_column_name",
    "per_device_eval_batch_size": "held-out images go through in training batches",
    "logging_strategy": "--logging_steps decides",
    "eval_strategy": "--eval_steps decides",
    "evaluation_strategy": "--eval_steps decides",
    "save_strategy": "--save_steps and --save_minutes decide",
    "load_best_model_at_end": "the last model is kept, as in the paper",
    "lr_scheduler_type": "the schedule is a cosine",
}
# Of these, the values that would mean something else than what is done.
_TRAINER_VALUES = {"model_type": {"vit_mae", "mae"}, "lr_scheduler_type": {"cosine"}}


class _Parser(HfArgumentParser):
    """Tells an error in one line instead of a page of usage, and takes a bare flag for a bool without a default."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        if kwargs.get("type") is string_to_bool and "nargs" not in kwargs:
            kwargs.update(nargs="?", const=True)
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        # "argument --max_steps/--max-steps: invalid" -> "--max_steps: invalid"
        raise UserError(re.sub(r"^argument (--\w+)(/--[\w-]+)?", r"\1", message))


def read_recipe(path: str, names: list[str]) -> dict[str, Any]:
    """Flag -> value of a recipe file."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"--recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"--recipe {path} must hold lines of the form 'flag: value'.")
    for name, value in recipe.items():
        if name not in names:
            raise UserError(f"--recipe {path}: unknown flag {name}.{_nearest(str(name), names)}")
        if isinstance(value, dict):
            if any(isinstance(item, (list, dict)) for item in value.values()):
                raise UserError(f"--recipe {path}: the values of {name} must be numbers or words.")
            recipe[name] = ",".join(f"{key}={item}" for key, item in value.items())
    return {name: value for name, value in recipe.items() if value is not None}


def _tell_trainer_flags(flags: argparse.Namespace) -> None:
    """One line for each flag that is accepted without effect; an error where it would mean something else."""
    for name, reason in _TRAINER_FLAGS.items():
        values = getattr(flags, name)
        if values is None:
            continue
        allowed = _TRAINER_VALUES.get(name, set(values))
        if not set(values) <= allowed:
            raise UserError(
                f"--{name} {' '.join(values)}: {reason}; leave it out, or say {' or '.join(sorted(allowed))}."
            )
        if os.environ.get("RANK", "0") == "0":
            print(f"Note: --{name} has no effect: {reason}.", file=sys.stderr)


def parse_arguments(
    *dataclasses: type, description: str, default_recipe: Path | None = None, argv: list[str] | None = None
) -> tuple[Any, ...]:
    """
    Dataclasses filled from a recipe file and flags; flags win.

    Args:
        default_recipe: The recipe of a command line that names neither a recipe nor data.

    Raises:
        UserError: for anything wrong on the command line or in the recipe.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(dataclasses, description=description, allow_abbrev=False)
    parser.add_argument("--recipe", help="YAML file of flags; flags on the command line override it.")
    for name, reason in _TRAINER_FLAGS.items():
        parser.add_argument(f"--{name}", nargs="*", help=f"Accepted without effect: {reason}.")
    names = [item.name for dataclass_type in dataclasses for item in fields(dataclass_type)]

    # Flags first alone: --recipe among them, and whether they name data.
    flags, unknown = parser.parse_known_args(argv)
    unknown = [argument for argument in unknown if argument.startswith("-")] or unknown
    if unknown:
        known = [f"--{name}" for name in [*names, "recipe"]]
        name = unknown[0].split("=")[0]
        if name == "--hub_token":
            raise UserError("--hub_token would be seen by others: log in with `hf auth login`, or set HF_TOKEN.")
        raise UserError(f"unknown argument {name}.{_nearest(name, known)}")
    _tell_trainer_flags(flags)
    recipe = flags.recipe
    if recipe is None and default_recipe and flags.dataset_name is None and flags.train_dir is None:
        recipe = str(default_recipe)
    values = {} if recipe is None else read_recipe(recipe, names)
    for flag in [flag for flag in _REPLACED if getattr(flags, flag, None) is not None]:
        values = {name: value for name, value in values.items() if name not in _REPLACED[flag]}
    overrides = getattr(flags, "config_overrides", None)
    if overrides is not None and "config_overrides" in values:
        parse_overrides(overrides)  # an error here is not the recipe's
        argv = [*argv, "--config_overrides", f"{values['config_overrides']},{overrides}"]  # the last of a field counts
    recipe_flags = []
    for name, value in values.items():
        recipe_flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    # The recipe's flags stand before the command line's, whose last word counts.
    try:
        namespace = parser.parse_args(recipe_flags + argv)
    except UserError as error:
        raise UserError(f"{error} (with --recipe {recipe})" if recipe else str(error)) from None
    return tuple(
        dataclass_type(**{item.name: getattr(namespace, item.name) for item in fields(dataclass_type)})
        for dataclass_type in dataclasses
    )
