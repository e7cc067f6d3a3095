"""
Read a checkpoint of any origin: the tensors of a file, a directory or a model on the Hub, and the JSON beside them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.conversion.entries import choose_entry, choose_prefix
from mae.conversion.hub_files import download_model
from mae.conversion.tensor_files import PICKLE_FILES, SAFE_FILES, SUFFIXES, read_file, read_index, read_json
from mae.utils.errors import UserError
from mae.utils.files import CONFIG_FILE, PROCESSOR_FILE
from mae.utils.text import listed


_WEIGHTS_FILES = SAFE_FILES + PICKLE_FILES
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Weights:
    """
    Tensors and what is known about them.

    Args:
        source: The name that the user gave, with the resolved commit if it is a model on the Hub.
        tensors: Name -> tensor, as in the file, without the prefix of a wrapper.
        config: `config.json`, if there is one.
        processor: `preprocessor_config.json`, if there is one.
        metadata: Settings in the file itself: safetensors metadata, or `args` and `config` of a torch file.
        notes: What the user should know of the reading.
        revision: The commit, if it is a model on the Hub.
    """

    source: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    revision: str | None = None


def read_weights(
    name_or_path: str | Path,
    revision: str | None = None,
    allow_pickle: bool = False,
    retry_minutes: float = 0,
    state_key: str | None = None,
    prefix: str | None = None,
) -> Weights:
    """
    Read the weights of a file (.safetensors, .pth, .pt, .bin, .ckpt), of a directory or of a model on the Hub.

    Args:
        revision: Branch, tag or commit on the Hub. All files are of the commit that it names at the start.
        allow_pickle: Whether to read a pickle from the Hub, with `weights_only`, if there are no safetensors.
        retry_minutes: How long network errors are retried.
        state_key: The entry of a torch file that holds the weights: see [`choose_entry`].
        prefix: What stands before the names of the weights: see [`choose_prefix`].

    Raises:
        UserError: for files that do not exist, are broken, or hold anything but finite floating point tensors.
    """
    path = Path(name_or_path).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_folder = is_file = False
    if (is_folder or is_file) and revision is not None:
        raise UserError(f"{path} is on this machine: a revision ({revision}) is for models on the Hub.")
    if is_folder:
        weights = _read_folder(path, state_key)
    elif is_file and path.name in _WEIGHTS_FILES and (path.parent / CONFIG_FILE).is_file():  # a file of a directory
        weights = _read_model(str(path), path, state_key)
    elif is_file:
        weights = _read_tensors(path, state_key)
    else:
        found = download_model(str(name_or_path), revision, allow_pickle, retry_minutes)
        weights = _read_model(f"{found.name} at {found.commit[:12]}", found.weights, state_key)
        weights.notes += found.notes
        weights.revision = found.commit
    _check_names(weights)
    weights.tensors, notes = choose_prefix(weights.source, weights.tensors, prefix)
    weights.notes += notes
    _check_values(weights)
    return weights


def _read_folder(folder: Path, state_key: str | None) -> Weights:
    if not (folder / CONFIG_FILE).is_file():
        hint = "a model's directory has one"
        loose = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
        if loose:
            hint += f"; to read a file by itself, name it: {folder / loose[0]}"
        raise UserError(f"The directory {folder} has no {CONFIG_FILE} ({hint}).")
    found = [name for name in _WEIGHTS_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"The directory {folder} has no weights: none of {', '.join(_WEIGHTS_FILES)}.")
    return _read_model(str(folder), folder / found[0], state_key)


def _read_model(source: str, path: Path, state_key: str | None) -> Weights:
    """Read the weights of a file, or of the parts that an index names, with the JSON files beside them."""
    folder, promised = path.parent, {}
    if path.name.endswith(".index.json"):
        promised = read_index(path)
    paths = [folder / name for name in sorted(set(promised.values()))] or [path]
    weights = Weights(source, {}, read_json(folder / CONFIG_FILE))
    if (folder / PROCESSOR_FILE).is_file():
        weights.processor = read_json(folder / PROCESSOR_FILE)
    for path in paths:
        part = _read_tensors(path, state_key)
        twice = part.tensors.keys() & weights.tensors.keys()
        if twice:
            raise UserError(f"{path} repeats tensors of another part: {listed(sorted(twice), 8)}.")
        weights.tensors |= part.tensors
        weights.metadata |= part.metadata
        weights.notes += [note for note in part.notes if note not in weights.notes]
    lost = [name for name in promised if name not in weights.tensors]
    if lost:
        raise UserError(f"{path} names tensors that no part holds: {listed(lost, 8)}.")
    return weights


def _read_tensors(path: Path, state_key: str | None) -> Weights:
    """Read one file by itself."""
    content, metadata = read_file(path)
    tensors, notes = choose_entry(str(path), content, state_key)
    return Weights(str(path), tensors, metadata=metadata, notes=notes)


def _check_names(weights: Weights) -> None:
    """Refuse anything but tensors with names."""
    items = weights.tensors.items()
    problems = {
        "holds other things than tensors": [str(name) for name, value in items if not isinstance(value, Tensor)],
        "holds tensors whose names are no strings": [str(name) for name, _ in items if not isinstance(name, str)],
    }
    _refuse_any(weights.source, problems)


def _check_values(weights: Weights) -> None:
    """Refuse tensors that are not finite floating point ones."""
    items = weights.tensors.items()
    problems = {
        "holds tensors without values, or sparse ones": [
            name for name, value in items if value.layout is not torch.strided or value.is_meta or not value.numel()
        ],
        "holds tensors that are not floating point (64, 32 or 16 bits)": [
            f"{name} ({value.dtype})"
            for name, value in items
            # The count of batches of a batch norm is a whole number.
            if value.dtype not in _DTYPES and not (name.endswith("num_batches_tracked") and value.dtype is torch.int64)
        ],
    }
    _refuse_any(weights.source, problems)
    not_finite = [name for name, value in items if not value.isfinite().all()]
    _refuse_any(weights.source, {"holds NaN or infinity": not_finite})


def _refuse_any(source: str, problems: dict[str, list[str]]) -> None:
    for problem, names in problems.items():
        if names:
            raise UserError(f"{source} {problem}: {listed(names, 8)}.")
