"""
Reading checkpoints of any origin: a file, a directory or a name on the Hub -> tensors and what is written beside them.

Files are not trusted: pickles are read with `weights_only`, no code is run, and whatever is broken ends in a
[`UserError`] of one line.
"""

import argparse
import ast
import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae.conversion.report import listed
from mae.utils.errors import UserError, first_line
from mae.utils.files import CONFIG_FILE, PROCESSOR_FILE
from mae.utils.retries import Retry


# The names that transformers and timm give to weights, best first; an index names the parts of a divided file.
_SAFE_FILES = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHTS_FILES = _SAFE_FILES + _PICKLE_FILES
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
# Bases of the Hub's error: OSError, and the HTTPError of the library that carries its requests, which has changed.
_CONNECTION_ERRORS = HfHubHTTPError.__bases__
# In a torch file: what holds the weights in the official code's and timm's files.
_STATE_NAMES = ("model", "state_dict")
_OTHER_STATES = ("model_ema", "state_dict_ema", "model_state_dict_ema", "ema")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Weights:
    """
    Tensors and what is known about them.

    Args:
        source: The name they were asked for by, with the resolved revision where they come from the Hub.
        tensors: Name -> tensor, as in the file.
        config: `config.json`, if there is one.
        processor: `preprocessor_config.json`, if there is one.
        metadata: What the file itself says: safetensors metadata, or `args` and `config` of a torch file.
        notes: What the user should know of the reading.
        revision: The commit, where they come from the Hub.
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
) -> Weights:
    """
    The weights of a file (.safetensors, .pth, .pt, .bin), of a directory or of a model on the Hub.

    Args:
        revision: Branch, tag or commit on the Hub; all files are of the commit that it names at the start.
        allow_pickle: Whether to read a pickle from the Hub, with `weights_only`, where it has no safetensors.
        retry_minutes: How long faults of the network are waited out.

    Raises:
        UserError: for what does not exist, is broken, or holds anything but finite floating point tensors.
    """
    path = Path(name_or_path).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_folder = is_file = False
    if (is_folder or is_file) and revision is not None:
        raise UserError(f"{path} is on this machine: a revision ({revision}) is for models on the Hub.")
    if is_folder:
        weights = _read_folder(path)
    elif is_file:
        weights = _read_file(path)
    else:
        weights = _read_hub(str(name_or_path), revision, allow_pickle, retry_minutes)
    _check_tensors(weights)
    if all(name.startswith("module.") for name in weights.tensors):  # of a model wrapped by DistributedDataParallel
        weights.tensors = {name.removeprefix("module."): tensor for name, tensor in weights.tensors.items()}
    return weights


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def _read_folder(folder: Path) -> Weights:
    if not (folder / CONFIG_FILE).is_file():
        hint = "a model's directory has one"
        suffixes = (".safetensors", *_TORCH_SUFFIXES)
        loose = sorted(path.name for path in folder.iterdir() if path.name.endswith(suffixes))
        if loose:
            hint += f"; to read a file by itself, name it: {folder / loose[0]}"
        raise UserError(f"The directory {folder} has no {CONFIG_FILE} ({hint}).")
    found = [name for name in _WEIGHTS_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"The directory {folder} has no weights: none of {', '.join(_WEIGHTS_FILES)}.")
    return _read_model(str(folder), folder / found[0])


def _read_model(source: str, path: Path) -> Weights:
    """The weights in a file, or in those that an index names, with the JSON files beside them."""
    folder, promised = path.parent, {}
    if path.name.endswith(".index.json"):
        promised = _read_index(path)
    paths = [folder / name for name in sorted(set(promised.values()))] or [path]
    weights = Weights(source, {}, _read_json(folder / CONFIG_FILE))
    if (folder / PROCESSOR_FILE).is_file():
        weights.processor = _read_json(folder / PROCESSOR_FILE)
    for path in paths:
        part = _read_tensors(path)
        twice = part.tensors.keys() & weights.tensors.keys()
        if twice:
            raise UserError(f"{path} repeats tensors of another part: {listed(sorted(twice))}.")
        weights.tensors |= part.tensors
        weights.metadata |= part.metadata
        weights.notes += part.notes
    lost = [name for name in promised if name not in weights.tensors]
    if lost:
        raise UserError(f"{path} names tensors that no part holds: {listed(lost)}.")
    return weights


def _read_index(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index has it."""
    parts = _read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} has no weight_map.")
    for name in parts.values():
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise UserError(f"{index} names {name!r}, which is not a file beside it.")
    return parts


def _read_file(path: Path) -> Weights:
    if path.name in _WEIGHTS_FILES and (path.parent / CONFIG_FILE).is_file():  # a file of a directory
        return _read_model(str(path), path)
    return _read_tensors(path)


def _read_tensors(path: Path) -> Weights:
    """One file by itself."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.name.endswith(_TORCH_SUFFIXES):
        return _read_torch(path)
    raise UserError(f"{path} is not a kind of file that holds weights: .safetensors, {', '.join(_TORCH_SUFFIXES)}.")


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: _parse(value) for name, value in (file.metadata() or {}).items()}
            return Weights(str(path), {name: file.get_tensor(name) for name in file.keys()}, metadata=metadata)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {first_line(error)}.") from None


def _parse(value: str) -> Any:
    """Safetensors metadata are strings: "32" -> 32, "True" -> True, "gelu" -> "gelu"."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _read_torch(path: Path) -> Weights:
    try:
        # Written by the official code's trainer: its arguments. No other class; a pickle could run anything.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            # Read and not mapped, which would save the optimizer's share but takes the lengths of tensors on trust.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)|class (\S+)|function (\S+)", str(error))
        if unsafe and "torch.load" not in unsafe[0]:
            name = next(group for group in unsafe.groups() if group)
            raise UserError(
                f"{path} is refused: its pickle asks for {name}, which no weights need. Nothing in it was run."
            ) from None
        raise UserError(f"{path} is not a torch file, or a broken one. Nothing in it was run.") from None
    except Exception as error:  # damaged bytes end in any kind of error
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program, not weights: save its state_dict() instead.") from None
        raise UserError(f"{path} is not a whole torch file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    weights = Weights(str(path), content)
    arguments, config = content.get("args"), content.get("config")
    if isinstance(arguments, argparse.Namespace):
        weights.metadata["args"] = vars(arguments)
    if isinstance(config, dict):
        weights.metadata |= config
    for name in _STATE_NAMES:
        if isinstance(content.get(name), dict):
            others = [key for key in _OTHER_STATES if isinstance(content.get(key), dict)]
            if others:
                weights.notes.append(f"{' and '.join(others)}, other weights in the file, left out")
            weights.tensors = dict(content[name])
            break
    return weights


def _check_tensors(weights: Weights) -> None:
    """Refuses what is no finite floating point tensor."""
    if not weights.tensors:
        raise UserError(f"{weights.source} holds no tensors.")
    items = weights.tensors.items()
    problems = {
        "holds other things than tensors": [str(name) for name, value in items if not isinstance(value, Tensor)],
        "holds tensors whose names are no strings": [str(name) for name, _ in items if not isinstance(name, str)],
    }
    _refuse_any(weights.source, problems)
    ordinary = {value: value.layout is torch.strided and not value.is_meta and value.numel() for _, value in items}
    problems = {
        "holds tensors without values, or sparse ones": [name for name, value in items if not ordinary[value]],
        "holds tensors that are not floating point (64, 32 or 16 bits)": [
            f"{name} ({value.dtype})"
            for name, value in items
            # The count of batches of a batch norm is a whole number.
            if value.dtype not in _DTYPES and not (name.endswith("num_batches_tracked") and value.dtype is torch.int64)
        ],
    }
    _refuse_any(weights.source, problems)
    _refuse_any(
        weights.source, {"holds NaN or infinity": [name for name, value in items if not value.isfinite().all()]}
    )


def _refuse_any(source: str, problems: dict[str, list[str]]) -> None:
    for problem, names in problems.items():
        if names:
            raise UserError(f"{source} {problem}: {listed(names)}.")


# Hub
def hub_name(name: str) -> str:
    """owner/name of a model, as people copy it from timm's documentation or from the address of its page."""
    for prefix in ("hf-hub:", "hf://", "https://huggingface.co/"):
        name = name.removeprefix(prefix)
    return name.removesuffix("/")


def _read_hub(name: str, revision: str | None, allow_pickle: bool, retry_minutes: float) -> Weights:
    asked, name = name if name.isprintable() else repr(name), hub_name(name)
    here = f"{asked} is neither a file nor a directory here"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith((".safetensors", *_TORCH_SUFFIXES)):
        raise UserError(f"{here}, and cannot be a model on the Hub (which is named owner/name).")
    notes, patience = [], Retry(asked, retry_minutes)

    def download(file: str, revision: str | None) -> Path:
        while True:
            try:
                path = Path(hf_hub_download(name, file, revision=revision))
                patience.succeeded()
                return path
            except Exception as error:
                if not patience.wait(error):
                    raise

    try:
        config = download(CONFIG_FILE, revision)
        # The same commit for all files, whatever is pushed in between.
        sha = config.parent.name
        weights = _download_first(download, sha, _WEIGHTS_FILES if allow_pickle else _SAFE_FILES)
        if weights.name.endswith(".index.json"):
            for part in sorted(set(_read_index(weights).values())):
                download(part, sha)
        try:
            download(PROCESSOR_FILE, sha)
        except LocalEntryNotFoundError:
            if not constants.HF_HUB_OFFLINE:
                raise
            notes = [f"without its {PROCESSOR_FILE}, if it has one: offline, and it is not in the cache"]
        except EntryNotFoundError:
            pass
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise UserError(f"{here}, and the Hub cannot be asked for it: {first_line(error)}") from None
    except GatedRepoError:
        raise UserError(
            f"{asked} is a gated model: ask for access on its page, then `hf auth login` with your token."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{here}, and not a model on the Hub that you may see (a private one needs `hf auth login`)."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{asked} has no revision {revision} on the Hub: give a branch, a tag or a commit.") from None
    except EntryNotFoundError:
        pickles = (
            "" if allow_pickle else ". Pickles from the Hub are read with allow_pickle=True (--allow_pickle) only"
        )
        raise UserError(
            f"{asked} on the Hub lacks {CONFIG_FILE} or weights ({', '.join(_SAFE_FILES)}): to load another file, "
            f"download that and name it{pickles}."
        ) from None
    except HFValidationError:
        raise UserError(f"{here}, and cannot be a model on the Hub (which is named owner/name).") from None
    except _CONNECTION_ERRORS as error:
        raise UserError(f"{asked} cannot be loaded from the Hub now: {first_line(error)}") from None
    read = _read_model(f"{name} at {sha[:12]}", weights)
    read.notes += notes
    read.revision = sha
    return read


def _download_first(download: Callable[[str, str], Path], sha: str, files: tuple[str, ...]) -> Path:
    """The best file of weights that the repository has."""
    for file in files:
        try:
            return download(file, sha)
        except LocalEntryNotFoundError:
            # Offline, the next one may be in the cache. Otherwise the Hub did not answer: another file is no answer.
            if not constants.HF_HUB_OFFLINE:
                raise
        except EntryNotFoundError:
            pass
    if constants.HF_HUB_OFFLINE:
        raise LocalEntryNotFoundError("offline (HF_HUB_OFFLINE), and its weights are not in the cache.")
    raise EntryNotFoundError(f"none of {', '.join(files)}")
