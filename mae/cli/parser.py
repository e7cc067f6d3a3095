"""Parse a command line: dataclasses of flags, a recipe file, and the flags of transformers' Trainer."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from mae.arguments.flags import GROUPS, Flag, expand_home
from mae.arguments.names import suggestion
from mae.arguments.overrides import without_sizes
from mae.arguments.run import RunArguments
from mae.cli.recipe_files import find_recipe, list_recipes
from mae.cli.trainer import SHOWN, TOKENS, TRAINER_FLAGS, check_trainer_flag, other_trainer_flags
from mae.utils.errors import UserError


logger = logging.getLogger(__name__)

# Flags that belong to the data that a recipe names: they do not fit other data.
_DATA_FLAGS = ("dataset_name", "train_dir", "validation_dir", "dataset_config_name", "dataset_revision")
_DATA_FLAGS += ("image_column_name", "label_column_name", "mask_column_name")
_DATA_FLAGS += ("dataset_weights", "train_mask_dir", "validation_mask_dir", "id2label")
# A flag on the command line -> what it replaces in a recipe, in addition to itself.
_MODEL = ("model_size", "config_name", "config_overrides", "image_size", "patch_size")
_REPLACED = {
    "model_name_or_path": ("model_revision", *_MODEL),
    "config_name": ("model_name_or_path", "model_revision", *_MODEL),
    "model_size": ("config_name",),
    "crop": ("min_crop_area", "max_crop_area", "min_crop_ratio", "max_crop_ratio"),
    "base_learning_rate": ("learning_rate",),
    "num_train_epochs": ("max_steps",),
    "warmup_epochs": ("warmup_ratio", "warmup_steps"),
    "warmup_ratio": ("warmup_steps",),
    "warmup_steps": ("warmup_ratio",),
}
_METAVARS = {int: "N", float: "X"}
_LIST_HELP = "List the recipes of this script with hardware, time and expectation, and end."
_TRAINER_GROUP = "flags of transformers' Trainer"
_TRAINER_HELP = """\
These are accepted without effect, so that commands for transformers' run_mae.py run as they are.
The other fields of TrainingArguments are accepted too, unless they would change results."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows one name per flag."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        name = action.option_strings[0]
        if action.type is string_to_bool:
            return f"{name}, --no_{action.dest}" if action.default is True else name
        return f"{name} {self._format_args(action, action.metavar or 'TEXT')}"


class _ListRecipes(argparse.Action):
    """Prints the recipes of a script, and ends it."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> NoReturn:
        print(list_recipes(*self.const))
        parser.exit()


class _Parser(HfArgumentParser):
    """Raises a `UserError` instead of printing the usage, and shows flags in chapters with their defaults."""

    def __init__(self, dataclasses: Sequence[type], description: str):
        self._chapters: dict[str, Any] = {}
        super().__init__(
            dataclasses,
            description=description.strip(),
            usage="%(prog)s [--flag VALUE ...]",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self._action_groups.sort(key=lambda group: GROUPS.index(group.title) if group.title in GROUPS else -1)

    def add_argument(self, *args: Any, flag: Flag | None = None, **kwargs: Any) -> argparse.Action:
        """`flag` is in the metadata of the dataclass field."""
        if kwargs.get("type") is string_to_bool:  # a bool without a default as well
            kwargs.update(nargs="?", const=True)
        if kwargs.get("action") == "store_false":  # --no_streaming is shown beside --streaming
            kwargs["help"] = argparse.SUPPRESS
        if flag is None:
            return super().add_argument(*args, **kwargs)
        kwargs.setdefault("help", "")
        words = flag.default_words or _default_words(kwargs)
        if kwargs["help"] is not argparse.SUPPRESS and words is not None:
            kwargs["help"] += f" (default: {words})" if "required" not in kwargs else " (required)"
        if "action" not in kwargs:
            kwargs["metavar"] = _METAVARS.get(kwargs["type"], "PATH" if flag.is_path else "TEXT")
        chapter = super() if flag.group is None else self._chapter(flag.group)
        return chapter.add_argument(*args, **kwargs)

    def _chapter(self, name: str) -> Any:
        if name not in self._chapters:
            self._chapters[name] = self.add_argument_group(name)
        return self._chapters[name]

    def add_trainer_flags(self, names: Sequence[str]) -> None:
        """Accept flags of transformers' Trainer with any values, except those that are flags of the script."""
        if _TRAINER_GROUP not in self._chapters:
            self._chapters[_TRAINER_GROUP] = self.add_argument_group(_TRAINER_GROUP, _TRAINER_HELP)
        for name in names:
            if f"--{name}" in self._option_string_actions:
                continue
            options = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            shown = f"No effect: {TRAINER_FLAGS[name].reason}." if name in SHOWN else argparse.SUPPRESS
            self._chapters[_TRAINER_GROUP].add_argument(*options, nargs="*", metavar="TEXT", help=shown)

    def given(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The flags that a command line holds, and what is unknown in it."""
        absent = object()
        namespace = argparse.Namespace(**{action.dest: absent for action in self._actions})
        namespace, unknown = self.parse_known_args(argv, namespace)
        return {name: value for name, value in vars(namespace).items() if value is not absent}, unknown

    def convert(self, name: str, value: Any) -> Any:
        """
        The value of a recipe in the type of its flag.

        Raises:
            UserError: if it has another type.
        """
        (action, *_) = [action for action in self._actions if action.dest == name]
        takes_several = action.nargs == "+"
        if isinstance(value, list) and not takes_several:
            raise UserError(f"{name} takes one value, not {len(value)}.")
        items = []
        for item in value if isinstance(value, list) else [value]:
            try:
                items.append(action.type(str(item)))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{name}: {error}") from None
            except ValueError:
                raise UserError(f"{name}: invalid {action.type.__name__} value: {str(item)!r}.") from None
        return items if takes_several else items[0]

    def error(self, message: str) -> NoReturn:
        # "argument --max_steps/--max-steps: invalid" -> "--max_steps: invalid"
        raise UserError(re.sub(r"^argument (--\w+)(/--[\w-]+)*", r"\1", message))


def _default_words(kwargs: dict[str, Any]) -> str | None:
    default = kwargs.get("default")
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, list):
        return " ".join(map(str, default))
    if default is None and "required" not in kwargs:
        return None
    return str(default)


def read_recipe(path: str, names: Sequence[str]) -> dict[str, Any]:
    """
    Flag -> value of a recipe file. Empty values are left out.

    Args:
        names: The flags that it may hold.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    try:
        recipe = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"--recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"--recipe {path} must hold lines of the form 'flag: value'.")
    for name, value in recipe.items():
        if name not in names:
            raise UserError(f"--recipe {path}: unknown flag {name}.{suggestion(str(name), names)}")
        if isinstance(value, dict):
            if any(isinstance(item, (list, dict)) for item in value.values()):
                raise UserError(f"--recipe {path}: the values of {name} must be numbers or words.")
            recipe[name] = ",".join(f"{key}={item}" for key, item in value.items())
    return {name: value for name, value in recipe.items() if value is not None}


def _note(message: str) -> None:
    """Log a note on rank 0: there are no process groups yet, whose ranks `is_main_process` knows."""
    if os.environ.get("RANK", "0") == "0":
        logger.info(message)


def _refuse_unknown(unknown: Sequence[str], names: Sequence[str]) -> NoReturn:
    first = next((argument for argument in unknown if argument.startswith("-")), unknown[0]).split("=")[0]
    name = first.lstrip("-").replace("-", "_")
    if name in TOKENS:
        check_trainer_flag(name, [])
    from configuration_mae import CONFIG_FIELDS, DENSE_FIELDS  # imports torch, which --help need not wait for

    if name in (*CONFIG_FIELDS, *DENSE_FIELDS):
        raise UserError(
            f"unknown argument {first}. To set this field of the configuration: --config_overrides {name}=VALUE"
        )
    raise UserError(f"unknown argument {first}.{suggestion(name, names, '--')}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _drop_replaced(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that the command line leaves in force."""
    for flag, replaced in _REPLACED.items():
        if flag in given:
            recipe = {name: value for name, value in recipe.items() if name == flag or name not in replaced}
    if "model_size" in given and recipe.get("config_overrides"):
        recipe = recipe | {"config_overrides": without_sizes(recipe["config_overrides"])}
    named = {name: _words(recipe[name]) for name in ("dataset_name", "train_dir") if name in recipe}
    others = {name: _words(given[name]) for name in ("dataset_name", "train_dir") if name in given}
    if named and others and named != others:
        words = [" and ".join(f"{name} {value}" for name, value in data.items()) for data in (others, named)]
        _note(f"Note: --{words[0]} replaces {words[1]} of the recipe.")
        recipe = {name: value for name, value in recipe.items() if name not in _DATA_FLAGS}
    return recipe


def parse_arguments(
    *dataclasses: type,
    description: str,
    recipes: Path | None = None,
    default_recipe: str | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """
    Fill dataclasses from a recipe file and flags. Flags win over the recipe.

    Flags of transformers' Trainer are accepted if a dataclass is one of [`RunArguments`].

    Args:
        recipes: Folder of the recipes that --recipe finds by name.
        default_recipe: Name of the recipe for a command line that names neither a recipe nor data.
        argv: The command line (default: that of the process).

    Raises:
        UserError: for anything wrong on the command line or in the recipe.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _Parser(dataclasses, description)
    names = [item.name for dataclass_type in dataclasses for item in fields(dataclass_type)]
    default = "none"
    if default_recipe is not None:
        default = f"{default_recipe} with other defaults than below, if the command names no data either"
    words = f"YAML file of flags, or the name of one. Flags on the command line override it. (default: {default})"
    parser.add_argument("--recipe", metavar="RECIPE", help=words)
    if recipes is not None:
        script = Path(sys.argv[0]).name
        parser.add_argument("--list_recipes", action=_ListRecipes, nargs=0, const=(recipes, script), help=_LIST_HELP)
    trains = any(issubclass(dataclass_type, RunArguments) for dataclass_type in dataclasses)
    if trains:
        parser.add_trainer_flags(list(TRAINER_FLAGS))

    given, unknown = parser.given(argv)
    if unknown and trains:
        parser.add_trainer_flags(sorted(other_trainer_flags() - set(TOKENS)))
        given, unknown = parser.given(argv)
    if unknown:
        _refuse_unknown(unknown, [*names, "recipe"])
    for name in [name for name in given if name not in (*names, "recipe")]:
        _note(check_trainer_flag(name, given.pop(name)))

    path = given.get("recipe")
    if path is None and default_recipe is not None and not {"dataset_name", "train_dir"} & given.keys():
        path = default_recipe
    if path is not None:
        path = find_recipe(path, recipes)
    recipe = {} if path is None else _drop_replaced(read_recipe(path, names), given)
    try:
        parser.set_defaults(**{name: parser.convert(name, value) for name, value in recipe.items()})
    except UserError as error:
        raise UserError(f"--recipe {path}: {error}") from None
    values = vars(parser.parse_args(argv))
    if "config_overrides" in given and recipe.get("config_overrides"):  # field by field, the last one counts
        values["config_overrides"] = f"{recipe['config_overrides']},{given['config_overrides']}"
    found = tuple(
        dataclass_type(**{item.name: values[item.name] for item in fields(dataclass_type)})
        for dataclass_type in dataclasses
    )
    for arguments in found:
        expand_home(arguments)
    return found
