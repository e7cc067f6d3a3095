"""
Find the weights of a Masked Autoencoder in a file: under which entry, and behind which prefix of their names.

Trainers nest weights (`{"teacher": {...}, "optimizer": {...}}`), and wrap models, which puts a prefix before every
name (`model.`, `backbone.`). An entry or a prefix is taken by itself only if no other can be meant.
"""

import re
from collections.abc import Collection
from typing import Any

from torch import Tensor

from mae.conversion.layouts import LAYOUTS, num_unknown
from mae.utils.errors import UserError
from mae.utils.text import listed


# The entries of the official implementation's, timm's and Lightning's files.
_USUAL_ENTRIES = ("model", "state_dict")
# Wrappers of torch that put their attribute's name into the names of tensors: compile, FSDP, activation checkpoints.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The tensor that a model is recognised by, as each layout names it.
_PROJECTION = "mae.patch_embed.proj.weight"
_ANCHORS = {spelling.table(())[_PROJECTION] for spellings in LAYOUTS.values() for spelling in spellings}
_ANCHORS.add("embeddings.patch_embeddings.projection.weight")  # ViTMAEModel by itself
# How many models are looked for in one file, so that a malicious one cannot take hours.
_MOST_MODELS = 20
_MOST_LEVELS = 4


def choose_entry(
    source: str, content: dict[Any, Any], state_key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """
    Choose the entry of a file that holds the weights.

    Args:
        state_key:
            Its name; a nested one is "outer.inner", and "" is the top level. Default: "model" or "state_dict", or the
            only one.

    Returns:
        The entry, and what the user should know of the choice.

    Raises:
        UserError: if there are several, or none of that name; it lists those that are there.
    """
    entries = _find_entries(content)
    if not entries:
        raise UserError(f"{source} holds no tensors.")
    recognised = [name for name, entry in entries.items() if find_prefixes(entry)]
    if state_key is not None:
        if state_key not in entries:
            raise UserError(f"{source} has no weights under {state_key!r}. {_describe(entries, recognised)}")
        return entries[state_key], [f"weights of the entry {state_key!r}"]
    possible = recognised or list(entries)
    usual = [name for name in (*_USUAL_ENTRIES, "") if name in possible]
    if not usual and len(possible) > 1:
        raise UserError(
            f"{source} holds several sets of weights. {_describe(entries, recognised)} Choose one with state_key "
            "(--state_key of convert_checkpoint.py)."
        )
    chosen = (usual or possible)[0]
    notes = [] if usual else [f"weights of the entry {chosen!r}"]
    others = [name for name in (recognised if usual else entries) if name != chosen]
    if others:
        notes.append(f"{listed(others, 8)}, other weights in the file, left out")
    return entries[chosen], notes


def _find_entries(content: dict[Any, Any], path: str = "", level: int = 1) -> dict[str, dict[str, Tensor]]:
    """Name -> dictionary, of those that hold tensors; not those of optimizers, which are numbered."""
    entries = {path: content} if any(isinstance(value, Tensor) for value in content.values()) else {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, dict) and level < _MOST_LEVELS:
            entries |= _find_entries(value, f"{path}.{name}" if path else name, level + 1)
    return entries


def _describe(entries: dict[str, dict[str, Tensor]], recognised: list[str]) -> str:
    names = [f"{name or '(top level)'} ({len(entries[name])} tensors)" for name in recognised or entries]
    return f"Entries with weights: {listed(names, 8)}."


def choose_prefix(
    source: str, tensors: dict[str, Tensor], prefix: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """
    Choose the prefix of the weights' names, and remove it.

    Args:
        prefix: "" keeps all names. Default: the one that all names have in common, if there is one.

    Returns:
        Tensors by their names without the prefix, and what the user should know of the choice.

    Raises:
        UserError: if there are several, or none like this; it lists those that are there.
    """
    tensors, wrapper = _unwrap(source, tensors)
    prefixes = find_prefixes(tensors)
    if prefix is None:
        if not prefixes or "" in prefixes:
            return tensors, []
        prefix = prefixes[0]
        others = [name for name in tensors if not name.startswith(prefix)]
        if others:
            beside = f"tensors beside those of a Masked Autoencoder, such as {listed(others, 1)}"
            raise UserError(
                f"{source} holds {'several models' if len(prefixes) > 1 else beside}. "
                f"{_describe_prefixes(tensors, prefixes)} Choose one with prefix (--prefix of convert_checkpoint.py)."
            )
    else:
        prefix = _WRAPPERS.sub("", prefix.rstrip(".") + ".").removeprefix(wrapper).removeprefix(".")
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not chosen:
        raise UserError(
            f"{source} has no tensor whose name starts with {prefix!r}. {_describe_prefixes(tensors, prefixes)}"
        )
    notes = [f"prefix {prefix!r} removed from the names"] if prefix else []
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        notes.append(f"tensors without this prefix left out: {listed(others)}")
    return chosen, notes


def _unwrap(source: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Tensors by their names without those of torch's wrappers, and the prefix of DistributedDataParallel."""
    unwrapped = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(unwrapped) < len(tensors):
        raise UserError(f"{source} holds tensors twice, of a wrapped model and of the model itself.")
    wrapper = ""
    while unwrapped and all(name.startswith(f"{wrapper}module.") for name in unwrapped):
        wrapper += "module."
    return {name.removeprefix(wrapper): tensor for name, tensor in unwrapped.items()}, wrapper


def find_prefixes(names: Collection[Any]) -> list[str]:
    """Find the prefixes behind which there is a model of a known layout; "" if the names are that layout's."""
    names = [name for name in names if isinstance(name, str)]
    names = [_WRAPPERS.sub("", name) for name in names]
    prefixes: list[str] = []
    for name in [name for name in names if _prefixes_of(name)][:_MOST_MODELS]:
        possible = _prefixes_of(name)
        # `mae.patch_embed` is native, or an official model that is the attribute `mae` of another one.
        best = possible[0] if len(possible) == 1 else min(possible, key=lambda prefix: _num_unknown(names, prefix))
        if best not in prefixes:
            prefixes.append(best)
    return prefixes


def _prefixes_of(name: str) -> list[str]:
    """What stands before a name of the patch projection, shortest first."""
    anchors = [anchor for anchor in _ANCHORS if name == anchor or name.endswith(f".{anchor}")]
    return sorted((name.removesuffix(anchor) for anchor in anchors), key=len)


def _num_unknown(names: list[str], prefix: str) -> int:
    """How many names no layout knows if they have this prefix."""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    unknown = [num_unknown(inside, spelling) for spellings in LAYOUTS.values() for spelling in spellings]
    return len(names) - len(inside) + min(unknown)


def _describe_prefixes(tensors: dict[str, Tensor], prefixes: list[str]) -> str:
    if not prefixes:
        firsts = [name.split(".")[0] for name in tensors]
        return f"Names start with {listed(list(dict.fromkeys(firsts)), 8)}."
    counts = {prefix: sum(name.startswith(prefix) for name in tensors) for prefix in prefixes}
    shown = [f"{prefix or '(none)'} ({count} tensors)" for prefix, count in counts.items()]
    return f"Prefixes of models: {listed(shown, 8)}."
