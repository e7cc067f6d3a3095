"""
Read one file of tensors, or the JSON beside it.

No file is trusted: a pickle is read with `weights_only`, so that nothing in it is run, and a broken file ends in a
[`UserError`] of one line.
"""

import argparse
import ast
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae.utils.errors import UserError, first_line
from mae.utils.files import WEIGHTS_FILE


# The names that transformers and timm give to weights, best first. An index names the parts of a divided file.
SAFE_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Packages of plain values that training scripts leave beside the weights.
_PLAIN_VALUES = {"collections", "datetime", "lightning", "lightning_fabric", "numpy", "omegaconf", "pathlib"}
_PLAIN_VALUES |= {"pytorch_lightning"}


def read_json(path: Path) -> dict:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def read_index(index: Path) -> dict[str, str]:
    """Read the index of a divided file: tensor -> name of the part, a file beside the index."""
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} has no weight_map.")
    for name in parts.values():
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise UserError(f"{index} names {name!r}, which is not a file beside it.")
    return parts


def read_file(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """
    Read a file of tensors.

    Returns:
        Its content as it is, which may nest dictionaries if it is a torch file, and the settings that it states:
        safetensors metadata, or `args` and `config` of a torch file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not path.name.endswith(TORCH_SUFFIXES):
        raise UserError(f"{path} is not a kind of file that holds weights: {', '.join(SUFFIXES)}.")
    content = _read_torch(path)
    settings, config = {}, content.get("config")
    if isinstance(content.get("args"), argparse.Namespace):
        settings["args"] = vars(content["args"])
    return content, settings | (config if isinstance(config, dict) else {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: _parse(value) for name, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {first_line(error)}.") from None


def _parse(value: str) -> Any:
    """Safetensors metadata are strings: "32" -> 32, "True" -> True, "gelu" -> "gelu"."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _read_torch(path: Path) -> dict[Any, Any]:
    try:
        # The official trainer writes its arguments as a Namespace. No other class: a pickle could run anything.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            # Not memory-mapped: that would spare reading the optimizer's share, but trusts the lengths of tensors.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from None
    except Exception as error:  # damaged bytes end in any kind of error
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program, not weights: save its state_dict() instead.") from None
        raise UserError(f"{path} is not a whole torch file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def _refusal(path: Path, error: str) -> str:
    """Say why a pickle is refused, and how to save it again if it asks for plain values only."""
    unsafe = re.search(r"GLOBAL (\S+)|class (\S+)|function (\S+)", error)
    if not unsafe or "torch.load" in unsafe[0]:
        return f"{path} is not a torch file, or a broken one. Nothing in it was run."
    name = next(group for group in unsafe.groups() if group)
    message = f"{path} is refused: its pickle asks for {name}, which no weights need. Nothing in it was run."
    if name.split(".")[0] in _PLAIN_VALUES:
        message += (
            " If you trust its origin, save the weights alone, with the entry that holds them for 'model': "
            f"`torch.save(torch.load({str(path)!r}, weights_only=False)['model'], 'weights.pth')`"
        )
    return message
