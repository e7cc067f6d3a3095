"""Declare command-line flags as dataclass fields."""

import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mae.utils.errors import UserError


REQUIRED = MISSING  # the default of a flag that must be given

# The chapters of --help.
DATA = "data"
MODEL = "model"
OPTIMISATION = "optimisation"
SCHEDULE = "schedule"
REGULARISATION = "augmentation and regularisation"
CHECKPOINTS = "checkpoints and logging"
HARDWARE = "hardware and speed"
EVALUATION = "evaluation"
HUB = "Hub"
GROUPS = (DATA, MODEL, OPTIMISATION, SCHEDULE, REGULARISATION, EVALUATION, CHECKPOINTS, HARDWARE, HUB)


@dataclass(frozen=True)
class Rule:
    """A condition that the value of a flag must meet, and its words for an error."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("must be positive", lambda value: value > 0)
NOT_NEGATIVE = Rule("must not be negative", lambda value: value >= 0)
AT_LEAST_1 = Rule("must be at least 1", lambda value: value >= 1)
FRACTION = Rule("must be in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_1 = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
ABOVE_0 = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
BETWEEN_0_AND_1 = Rule("must be between 0 and 1", lambda value: 0 < value < 1)
UP_TO_10 = Rule("must be in [0, 10]", lambda value: 0 <= value <= 10)
UINT32 = Rule("must be in [0, 2^32)", lambda value: 0 <= value < 2**32)
HEIGHT_AND_WIDTH = Rule("must be one side, or height and width", lambda sides: len(sides) in (1, 2))


def one_of(*choices: str) -> Rule:
    """The rule that a value is one of some words."""
    return Rule(f"must be one of {', '.join(choices)}", choices.__contains__)


@dataclass(frozen=True)
class Flag:
    """
    A flag, beyond the field's name, type and default.

    Args:
        changes_results: Whether the value belongs to a run's identity. It does not if the value only changes speed or
            where files go, or if the identity holds what it led to, as a fingerprint or a configuration does.
        group: Chapter of --help.
        default_words: How --help names the default, if the value does not say it.
        is_path: Whether "~" at its start stands for the user's home.
        rule: What the value must be if it is not None.
        only_if_set: Whether a run's identity holds the value only if it is not the default, so that runs that were
            started before there was the flag can be resumed.
    """

    changes_results: bool = True
    group: str | None = None
    default_words: str | None = None
    is_path: bool = False
    rule: Rule | None = None
    only_if_set: bool = False


def flag(
    default: Any, help: str, changes_results: bool = True, *, aliases: tuple[str, ...] = (), **options: Any
) -> Any:
    """
    A dataclass field that is a command-line flag.

    Args:
        default: Its default; a list is copied; `REQUIRED` for a flag that must be given.
        help: A sentence for --help, without the default.
        aliases: Other names, with their dashes.
        options: The other values of [`Flag`].
    """
    metadata = {"help": help, "aliases": list(aliases), "flag": Flag(changes_results, **options)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def flags_of(arguments: Any) -> dict[str, Flag]:
    """The flags of a dataclass or of its instance, by name."""
    return {item.name: item.metadata.get("flag", Flag()) for item in fields(arguments)}


def differs_from_default(arguments: Any, name: str) -> bool:
    """Whether a flag has a default and another value."""
    default = arguments.__dataclass_fields__[name].default
    return default is not MISSING and getattr(arguments, name) != default


def check_values(arguments: Any) -> None:
    """
    Check each value by the rule of its flag.

    Raises:
        UserError: for the first value that breaks its rule.
    """
    for name, declared in flags_of(arguments).items():
        value = getattr(arguments, name)
        if value is not None and declared.rule is not None and not declared.rule.holds(value):
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--{name} {shown} {declared.rule.words}.")


@dataclass
class Arguments:
    """Values of flags, which are checked when they are constructed."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """
        Check the values and their combinations.

        Raises:
            UserError: for an impossible one.
        """
        check_values(self)


def expand_home(arguments: Any) -> None:
    """Replace "~" at the start of each path by the user's home."""
    for name, declared in flags_of(arguments).items():
        value = getattr(arguments, name)
        if declared.is_path and isinstance(value, str):
            setattr(arguments, name, os.path.expanduser(value))
        elif declared.is_path and isinstance(value, list):
            setattr(arguments, name, [os.path.expanduser(item) for item in value])
