"""Open and name the data sets of a mixture."""

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mae.arguments.data import DataArguments
from mae.arguments.mixture import MixtureArguments
from mae.data.mixture import MixtureSource, mixture_of
from mae.data.sources import Source


logger = logging.getLogger(__name__)


def mixed_names(data: DataArguments) -> list[str]:
    """The names of the data sets that flags mix; empty for a single one."""
    names = data.train_dir if data.train_dir is not None else data.dataset_name
    return names if isinstance(names, list) else []


def short_name(path: str) -> str:
    """The name of a data set in cards, without the folders that it is in."""
    return Path(path).resolve().name if os.path.exists(path) else path


def describe_shares(data: MixtureArguments) -> str:
    """The data sets of a mixture and their weights, in words."""
    names = mixed_names(data)
    words = [f"{short_name(name).split('@')[0]} ({share:.1%})" for name, share in zip(names, data.shares(len(names)))]
    return f"the images of {', '.join(words[:-1])} and {words[-1]}"


def describe_parts(source: Source) -> list[dict[str, Any]]:
    """Name, commit, number of images and weight of each data set of a mixture, for cards; empty for a single one."""
    mixture = mixture_of(source)
    if mixture is None:
        return []
    return [
        {"name": name, "revision": part.revision, "images": len(part), "weight": weight}
        for name, part, (_, weight) in zip(mixture.names, mixture.sources, mixture.parts)
    ]


def open_mixture(
    data: MixtureArguments, open_one: Callable[[DataArguments], tuple[Source, Source | None]]
) -> tuple[MixtureSource, Source | None]:
    """
    Open the data sets that flags mix.

    Args:
        open_one: Opens a single data set: its training and its validation images.

    Returns:
        The training images, and the validation images of all data sets that have some.
    """
    flag = "train_dir" if data.train_dir is not None else "dataset_name"
    given = mixed_names(data)
    opened, names, paths = [], [], []
    for name in given:
        part = copy.copy(data)
        revision = None
        if flag == "dataset_name" and not os.path.exists(name):
            name, _, revision = name.partition("@")
        setattr(part, flag, name)
        part.dataset_revision = revision or None
        train, validation = open_one(part)
        opened.append((train, validation))
        names.append(short_name(name))
        paths.append(name if train.revision is None else f"{name}@{train.revision}")
    # Two folders of one name are distinguished by their places on the command line.
    counts = Counter(names)
    names = [f"{number}.{name}" if counts[name] > 1 else name for number, name in enumerate(names, 1)]
    shares = data.shares(len(names))
    mixture = MixtureSource([train for train, _ in opened], names, paths, shares)
    for path, source, share in zip(paths, mixture.sources, shares):
        logger.info(f"Mixed: {share:.1%} of the samples from {path} ({len(source):,} images)")
    if data.validation_dir is not None:
        return mixture, opened[0][1]  # one folder for all of them
    held = [(source, *rest) for (_, source), *rest in zip(opened, names, paths) if source is not None]
    if not held:
        return mixture, None
    return mixture, held[0][0] if len(held) == 1 else MixtureSource(*zip(*held))
