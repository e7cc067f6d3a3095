"""Checkpoints of a run: save, rotate, restore."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from mae.training.average import AveragedWeights
from mae.training.identity import differences
from mae.training.optimization import GuardedStep
from mae.training.schedule import Horizon
from mae.utils.distributed import is_main_process, on_main_process
from mae.utils.errors import RunError, UserError, first_line
from mae.utils.files import (
    AVERAGE_FOLDER,
    EVALUATIONS_FILE,
    METRICS_FILE,
    SET_ASIDE,
    UNFINISHED,
    WEIGHTS_FILE,
    flush,
    write_json,
)


logger = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "trainer_state.json"
NONFINITE = "nonfinite"  # prefix of a checkpoint before a step whose gradient was not finite
CHECKPOINT_NAME = re.compile(rf"(checkpoint|{NONFINITE})-\d+")
# The whole model on rank 0, where its tensors may be the model's own.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class TrainState:
    """
    Everything that a checkpoint holds.

    Args:
        average: The moving average of the weights, if there is one.
        num_unreadable: Samples that could not be read, over all ranks.
        loss: Loss of the last logged step.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    guard: GuardedStep
    average: AveragedWeights | None = None
    num_unreadable: int = 0
    loss: float | None = None

    def values(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return self.guard.state_dict() | {"step": step, "num_bad": self.num_unreadable, "loss": self.loss}

    def restore_values(self, values: dict[str, Any]) -> None:
        self.num_unreadable, self.loss = values["num_bad"], values["loss"]
        self.guard.load_state_dict(values)


class OtherLengthError(UserError):
    """A checkpoint is of the decay of a run of another length."""


def read_state(path: Path, identity: dict[str, Any], horizon: Horizon | None = None) -> dict[str, Any]:
    """
    The values of a checkpoint, without its tensors.

    Raises:
        UserError: if there is none, or it is of another run.
        OtherLengthError: if a run of this length does not come to it.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--resume_from_checkpoint {path} is no checkpoint of a run: {first_line(error)}.") from None
    if not isinstance(values, dict) or "identity" not in values:
        raise UserError(
            f"--resume_from_checkpoint {path} is no checkpoint of this script; it may be one of the transformers "
            f"Trainer. Start a new run from its weights with --model_name_or_path {path}."
        )
    found = differences(values.pop("identity"), identity)
    if found:
        raise UserError(f"--resume_from_checkpoint {path} is of another run: {'; '.join(found)}.")
    stored = values.pop("horizon", None)
    if horizon is not None and stored is not None and not horizon.shares(values["step"], Horizon(**stored)):
        first = min(horizon.steady_steps, stored["steady_steps"])
        raise OtherLengthError(
            f"{path} is of a run of {stored['num_steps']} steps. One of {horizon.num_steps} steps shares its first "
            f"{first} steps only, before the decay of the learning rate. Resume from an earlier checkpoint."
        )
    return values


class Checkpointer:
    """
    The checkpoints in a run's output directory, and its final model. Every rank calls `save`, `load` and
    `save_model`, because each may hold a part of the weights. What is written is whole, for any number of ranks.

    Args:
        folder: The output directory.
        identity: The identity of the run. It is stored in each checkpoint, and checked when one is restored.
        keep: Number of checkpoints to keep (default: all).
        horizon: Length of a run that can grow. The checkpoint before its decay is kept beside the others.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], keep: int | None = None, horizon: Horizon | None = None
    ):
        self.folder = folder
        self.identity = identity
        self.keep = keep
        self.horizon = horizon

    def paths(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [entry for entry in self.folder.iterdir() if re.fullmatch(r"checkpoint-\d+", entry.name)]
        complete = [entry for entry in found if (entry / STATE_FILE).exists()]
        return sorted(complete, key=_step_of)

    def save(
        self, state: TrainState, step: int, prefix: str = "checkpoint", more: dict[str, Any] | None = None
    ) -> Path:
        """
        Write the checkpoint PREFIX-STEP under a temporary name first, then remove the oldest ones.

        Args:
            prefix: Automatic resume ignores checkpoints with another prefix than the default.
            more: Further values to store.

        Raises:
            RunError: if it cannot be written. Older checkpoints are left as they are.
        """
        path = self.folder / f"{prefix}-{step}"
        unfinished = path.with_name(path.name + UNFINISHED)
        values = state.values(step) | (more or {})
        if self.horizon is not None:
            values["horizon"] = self.horizon.as_json()
        if is_main_process():
            shutil.rmtree(unfinished, ignore_errors=True)
        optimizer_state = get_optimizer_state_dict(state.model, state.optimizer, options=_WHOLE)
        self._write_model(state.model, unfinished, unfinished)
        if state.average is not None:
            with state.average.applied():
                self._write_model(state.model, unfinished / AVERAGE_FOLDER, unfinished)
        on_main_process(lambda: self._complete(path, unfinished, optimizer_state, values))
        if is_main_process() and self.keep is not None:
            steady = None if self.horizon is None else self.horizon.steady_steps
            others = [old for old in self.paths() if old != path and _step_of(old) != steady]
            for old in others[: max(len(others) + 1 - self.keep, 0)]:
                _remove(old)
        return path

    def _complete(self, path: Path, unfinished: Path, optimizer_state: dict, values: dict[str, Any]) -> None:
        """Write the rest of a checkpoint, and give it its name."""
        if path in self.paths():  # the run resumed from it, and was stopped before another step
            shutil.rmtree(unfinished)
            return
        with self._explain(path, unfinished):
            torch.save(optimizer_state, unfinished / OPTIMIZER_FILE)
            write_json(unfinished / STATE_FILE, values | {"identity": self.identity})
            flush(*unfinished.rglob("*"), unfinished)
            logs = (self.folder / name for name in (METRICS_FILE, EVALUATIONS_FILE))
            flush(*(log for log in logs if log.exists()))
            _remove(path)
            os.replace(unfinished, path)
            flush(self.folder)

    @contextmanager
    def _explain(self, path: Path, unfinished: Path | None = None) -> Iterator[None]:
        """Turn an error of writing `path` into one line, and remove what was written of it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk in its own way
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            kept = ", ".join(entry.name for entry in self.paths())
            way = "There is no checkpoint yet."
            if kept:
                way = f"Complete checkpoints: {kept}. Run the same command again to resume from the newest."
            shown = str(path).replace(UNFINISHED, "")
            raise RunError(f"{shown} cannot be written: {first_line(error)}. {way}") from error

    def _write_model(self, model: PreTrainedModel, path: Path, unfinished: Path | None = None) -> None:
        """Write a directory that from_pretrained takes, from the parts of the weights that the ranks hold."""
        weights = get_model_state_dict(model, options=_WHOLE)
        if isinstance(model, FSDPModule):
            # Sharding changes a model's class, whose name and code would be saved instead of its own.
            model_class = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
            with torch.device("meta"):
                model = model_class(model.config)  # type: ignore[call-arg]

        def write() -> None:
            with self._explain(path, unfinished):
                model.save_pretrained(path, state_dict=weights)

        on_main_process(write)

    def save_model(self, state: TrainState) -> None:
        """
        Write the final model, with the averaged weights if there are any.

        Raises:
            RunError: if it cannot be written.
        """
        with nullcontext() if state.average is None else state.average.applied():
            self._write_model(state.model, self.folder)

    def load(self, state: TrainState, resume_from_checkpoint: str = "auto") -> int:
        """
        Restore a checkpoint. Rank 0 reads it, and gives the other ranks their part.

        Args:
            resume_from_checkpoint: `"auto"` for the newest checkpoint of this directory that can be read, `"none"`
                to start over, or the path of a checkpoint.

        Returns:
            Its step; 0 if there is none.

        Raises:
            UserError: if it is of another run, or none can be read.
        """
        tensors: list[dict] = [{}, {}, {}]

        def read() -> dict[str, Any] | None:
            found = self._read(resume_from_checkpoint, state.average is not None)
            if found is None:
                return None
            values, *tensors[:] = found
            self._set_aside(values["step"])
            return values

        values = on_main_process(read)
        if values is None:
            return 0
        weights, averaged, optimizer_state = tensors
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=torch.distributed.is_initialized())
        if state.average is not None:
            set_model_state_dict(state.model, averaged, options=options)
            state.average.reset()
        set_model_state_dict(state.model, weights, options=options)
        set_optimizer_state_dict(state.model, state.optimizer, optimizer_state, options=options)
        state.restore_values(values)
        return values["step"]

    def _set_aside(self, step: int) -> None:
        """Rename checkpoints of later steps, which are damaged or which the user went back behind."""
        for later in self.paths():
            if _step_of(later) > step:
                aside = later.with_name(later.name + SET_ASIDE)
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(later, aside)
                logger.warning(f"Renamed {later} to {aside.name}, because its steps are trained again.")

    def _read(self, which: str, with_average: bool) -> tuple[dict, dict, dict, dict] | None:
        """Values, weights, averaged weights and optimizer of a checkpoint."""
        existing = self.paths()
        if which == "none":
            if existing:
                raise UserError(
                    f"--resume_from_checkpoint none, but {self.folder} holds {existing[-1].name} of this run. Pass "
                    "--overwrite_output_dir to start over."
                )
            return None
        paths = existing[::-1] if which == "auto" else [Path(which)]
        for path in paths:
            try:
                values = read_state(path, self.identity, self.horizon)
                weights = load_file(path / WEIGHTS_FILE)
                averaged = load_file(path / AVERAGE_FOLDER / WEIGHTS_FILE) if with_average else {}
                optimizer_state = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            except OtherLengthError as error:
                if which != "auto":
                    raise
                logger.info(f"Note: {error}")
            except UserError:
                if which != "auto" or _is_readable(path):
                    raise
                logger.warning(f"Ignored {path}, which is damaged.")
            except Exception as error:  # a damaged file ends in any kind of error
                logger.warning(f"Ignored {path}, which is damaged: {first_line(error)}")
            else:
                return values, weights, averaged, optimizer_state
        if paths:
            raise UserError(
                f"No checkpoint can be read ({', '.join(map(str, paths))}). Name another one with "
                "--resume_from_checkpoint, or pass --overwrite_output_dir to start over."
            )
        return None


def _is_readable(path: Path) -> bool:
    try:
        return isinstance(json.loads((path / STATE_FILE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def _remove(path: Path) -> None:
    """Remove a checkpoint, which is none from the first moment on."""
    unfinished = path.with_name(path.name + ".removed" + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    if path.exists():
        os.replace(path, unfinished)
        shutil.rmtree(unfinished)
