"""
A run's directory: whose it is, its log, its checkpoints.

    run.json             identity of the run: everything that changes its results
    run.lock             held by a run under way
    recipe.yaml          the same and what only changes its speed, as flags: --recipe takes it
    environment.json     versions and machine of the last start
    metrics.jsonl        a line for each logged step
    evaluations.jsonl    a line for each step at which held-out images were looked at
    skipped.jsonl        a line for each image that cannot be read, the first time that it is met
    reconstructions/     a picture for each of these steps
    predictions.csv      what a classifier said of each held-out image when they were looked at last; per_class.csv and
                         confusion_matrix.png sum it up
    logs/                what trackers write
    checkpoint-N/        model, optimizer and position after step N, and in ema/ the averaged model; each loads with
                         from_pretrained
    nonfinite-N/         the same, before a step that ended the run because its gradient was not finite
    train_results.json   written last: the mark of a finished run

beside the final model, its pictures and its card, README.md. The main process alone reads and writes it: the others
may be on machines that do not see it.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
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
from mae.training.checkpointing import _CHECKPOINT, _NONFINITE, _WHOLE, OPTIMIZER_FILE, STATE_FILE
from mae.training.identity import differences
from mae.utils.distributed import is_main_process, on_main_process
from mae.utils.errors import RunError, UserError, first_line
from mae.utils.files import (
    AVERAGE_FOLDER,
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVE_FILE,
    ENVIRONMENT_FILE,
    EVALUATIONS_FILE,
    LOCK_FILE,
    LOGS_FOLDER,
    METRICS_FILE,
    PICTURES_FOLDER,
    PREDICTIONS_FILE,
    PUSH_FOLDER,
    RECIPE_FILE,
    RECONSTRUCTION_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SET_ASIDE,
    SKIPPED_FILE,
    UNFINISHED,
    WEIGHTS_FILE,
    flush,
    without_nan,
    write_json,
    write_text,
)


logger = logging.getLogger(__name__)


try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one directory are not noticed
    fcntl = None
# What a run writes beside its checkpoints.
_FILES = (
    RUN_FILE,
    LOCK_FILE,
    RECIPE_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    EVALUATIONS_FILE,
    PICTURES_FOLDER,
    LOGS_FOLDER,
    SKIPPED_FILE,
    RESULTS_FILE,
    PUSH_FOLDER.removesuffix(UNFINISHED),
    CURVE_FILE,
    RECONSTRUCTION_FILE,
    CONFUSION_FILE,
    CLASSES_FILE,
    PREDICTIONS_FILE,
    "config.json",
    WEIGHTS_FILE,
    "preprocessor_config.json",
    "modeling_mae.py",
    "configuration_mae.py",
)
_SKIPPED_SHOWN = 5


def _is_of_a_run(name: str) -> bool:
    """Whether a run writes something of this name, or its unfinished form."""
    name = name.removesuffix(UNFINISHED).removesuffix(".removed").removesuffix(SET_ASIDE)
    return name in _FILES or bool(_CHECKPOINT.fullmatch(name) or _NONFINITE.fullmatch(name))


class RunDirectory:
    """
    The output directory of a training run.

    Args:
        path: The directory.
        identity: Everything that changes the run's results, as JSON values.
        overwrite: Whether to remove an earlier run's files.
        data: What the data is called, to be named where it has changed.

    Raises:
        UserError: where the directory holds something else, a run with another identity, or one that is under way.
    """

    # Open while this process lives: to close any of a file's descriptors would unlock it.
    _locks: dict[Path, IO] = {}

    def __init__(self, path: str | Path, identity: dict, overwrite: bool = False, data: str = "its data"):
        self.path = Path(path)
        # As it will be read back: tuples become lists.
        self.identity = json.loads(json.dumps(identity, default=str))
        self.data = data
        self.is_main_process = is_main_process()
        on_main_process(lambda: self._claim(overwrite))

    def _claim(self, overwrite: bool) -> None:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--output_dir {self.path} is a file: name a directory.")
            self.path.mkdir(parents=True, exist_ok=True)
            run_file = self.path / RUN_FILE
            if not run_file.exists():
                self._check_foreign(overwrite)
            self._lock()
            if run_file.exists():
                if not overwrite:
                    self._check_identity(run_file)
                    self._tidy()
                    return
                self._clear(run_file)
            write_json(run_file, self.identity | {"data_name": self.data})
        except OSError as error:
            raise UserError(f"--output_dir {self.path} cannot be used: {error.strerror or error}.") from None

    def _lock(self) -> None:
        """Keeps other processes out until this one ends, however it does."""
        key = self.path.resolve()
        if fcntl is None or key in self._locks:
            return
        try:
            file = open(key / LOCK_FILE, "a")
        except OSError:  # what cannot be written needs no lock
            return
        try:
            # A record lock, which no decoding process inherits and outlives this one with.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(
                f"--output_dir {self.path} is in use by a run under way: wait for it, stop it, or name another one."
            ) from None
        except OSError:  # a file system without locks
            pass
        self._locks[key] = file

    def _tidy(self) -> None:
        """Removes what kills have left half written or half removed."""
        for entry in self.path.glob(f"*{UNFINISHED}"):
            if entry.is_dir() and _is_of_a_run(entry.name):
                shutil.rmtree(entry, ignore_errors=True)

    def _check_foreign(self, overwrite: bool) -> None:
        """Refuses a directory that is not ours; with `overwrite` only where its files would be taken for ours."""
        # The unfinished file is of a start that was killed.
        names = {entry.name for entry in self.path.iterdir()} - {RUN_FILE + UNFINISHED, LOCK_FILE}
        if names and not overwrite:
            raise UserError(
                f"--output_dir {self.path} is not empty and holds no run of this script: name another directory, or "
                "pass --overwrite_output_dir to write into it."
            )
        taken = sorted(name for name in names if _is_of_a_run(name))
        if taken:
            raise UserError(
                f"--output_dir {self.path} holds {', '.join(taken)}, but not of a run of this script: name another "
                "directory, or move them away. Nothing was changed."
            )

    def _clear(self, run_file: Path) -> None:
        """Removes an earlier run."""
        # No longer that run, and not yet the new one: whoever is killed in here leaves nothing that could be resumed.
        write_json(run_file, {})
        for entry in list(self.path.iterdir()):
            if entry.name not in (RUN_FILE, LOCK_FILE) and _is_of_a_run(entry.name):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def _check_identity(self, run_file: Path) -> None:
        try:
            stored = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{run_file} cannot be read: {error}. --overwrite_output_dir starts anew.") from None
        if not stored:
            raise UserError(
                f"--output_dir {self.path} was being overwritten when that was stopped: pass --overwrite_output_dir "
                "again."
            )
        data = stored.pop("data_name", "other data")
        found = differences(stored, self.identity)
        if stored.get("data") != self.identity.get("data"):
            found.append(f"the data was that of {data}, now of {self.data}")
        if found:
            raise UserError(
                f"--output_dir {self.path} holds another run ({'; '.join(found)}): name another directory, or pass "
                "--overwrite_output_dir to remove that run. Nothing was changed."
            )

    @property
    def results(self) -> dict | None:
        """What the run reported when it finished, or None. Every process must ask."""
        path = self.path / RESULTS_FILE
        return on_main_process(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)

    def describe(self, recipe: dict[str, Any], environment: dict[str, Any]) -> None:
        """Writes the flags that make this run again, and what it runs on."""
        if self.is_main_process:
            write_text(self.path / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
            write_json(self.path / ENVIRONMENT_FILE, environment)

    def finish(self, results: dict) -> None:
        if self.is_main_process:
            write_json(self.path / RESULTS_FILE, results)

    # Metrics

    def read_metrics(self) -> list[dict]:
        """The logged lines; a last line torn by a kill is left out."""
        return self._read_lines(METRICS_FILE)

    def read_evaluations(self) -> list[dict]:
        """The lines of held-out images."""
        return self._read_lines(EVALUATIONS_FILE)

    def _read_lines(self, name: str) -> list[dict]:
        path, lines = self.path / name, []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def log_skipped(self, skipped: list[tuple[tuple[str, int], str]]) -> None:
        """Names images that cannot be read, (origin, reason) each, in skipped.jsonl and the first ones on stderr."""
        if not self.is_main_process:
            return
        lines = self._read_lines(SKIPPED_FILE)
        known = {(line["file"], line["row"]) for line in lines}
        for (file, row), reason in skipped:
            if (file, row) in known:
                continue
            known.add((file, row))
            lines.append({"file": file, "row": row, "reason": reason})
            if len(lines) <= _SKIPPED_SHOWN:
                more = f"; further ones are in {self.path / SKIPPED_FILE} only" if len(lines) == _SKIPPED_SHOWN else ""
                logger.warning(f"Skipped an unreadable image, {file} row {row}: {reason}{more}")
        self._replace(SKIPPED_FILE, lines)

    def _replace(self, name: str, lines: list[dict]) -> None:
        """Writes a file of lines whole or not at all."""
        unfinished = self.path / (name + UNFINISHED)
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(unfinished, self.path / name)

    def log(self, metrics: dict, name: str = METRICS_FILE) -> None:
        if self.is_main_process:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(without_nan(metrics)) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Forgets what was logged after a step, which is about to be trained again."""
        if self.is_main_process:
            for name in (METRICS_FILE, EVALUATIONS_FILE):
                self._replace(name, [line for line in self._read_lines(name) if line["step"] <= step])

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [entry for entry in self.path.iterdir() if _CHECKPOINT.fullmatch(entry.name)]
        complete = [entry for entry in found if (entry / STATE_FILE).exists()]
        return sorted(complete, key=lambda entry: int(entry.name.split("-")[1]))

    def save(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        state: dict,
        average: AveragedWeights | None = None,
        save_total_limit: int | None = None,
        prefix: str = "checkpoint",
    ) -> Path:
        """
        Writes checkpoint-{state["step"]} under another name first, and removes the oldest ones. Every process must
        call, because each may hold a part of the weights; what is written is whole, for any number of processes. With
        another prefix it is none that a run goes on from by itself.

        Raises:
            RunError: where it cannot be written. Older ones are left as they are.
        """
        path = self.path / f"{prefix}-{state['step']}"
        unfinished = path.with_name(path.name + UNFINISHED)
        if self.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        optimizer_state = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
        self._write_model(model, unfinished, unfinished)
        if average is not None:
            with average.applied():
                self._write_model(model, unfinished / AVERAGE_FOLDER, unfinished)
        on_main_process(lambda: self._complete(path, unfinished, optimizer_state, state))
        if self.is_main_process and save_total_limit is not None:
            # One of a later step is not of this run's past.
            others = [old for old in self.checkpoints() if old != path]
            for old in others[: max(len(others) + 1 - save_total_limit, 0)]:
                self._remove(old)
        return path

    def _complete(self, path: Path, unfinished: Path, optimizer_state: dict, state: dict) -> None:
        """Writes what else is in a checkpoint, and gives it its name."""
        if path in self.checkpoints():  # gone on from, and stopped before another step
            shutil.rmtree(unfinished)
            return
        with self._explain(path, unfinished):
            torch.save(optimizer_state, unfinished / OPTIMIZER_FILE)
            write_json(unfinished / STATE_FILE, state | {"identity": self.identity})
            flush(*unfinished.rglob("*"), unfinished)
            flush(*(self.path / name for name in (METRICS_FILE, EVALUATIONS_FILE) if (self.path / name).exists()))
            self._remove(path)
            os.replace(unfinished, path)
            flush(self.path)

    @contextmanager
    def _explain(self, path: Path, unfinished: Path | None = None) -> Iterator[None]:
        """Tells in a line that `path` cannot be written, and removes what was."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many names
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            kept = ", ".join(entry.name for entry in self.checkpoints())
            way = "There is no checkpoint yet."
            if kept:
                way = f"Complete checkpoints: {kept}; the same command goes on from the newest."
            shown = str(path).replace(UNFINISHED, "")
            raise RunError(f"{shown} cannot be written: {first_line(error)}. {way}") from error

    def _write_model(self, model: PreTrainedModel, path: Path, unfinished: Path | None = None) -> None:
        """
        A directory that from_pretrained takes, from whatever parts of the weights the processes hold; `unfinished`
        goes with it where it cannot be written.
        """
        weights = get_model_state_dict(model, options=_WHOLE)
        if isinstance(model, FSDPModule):
            # Sharding gives a model another class, whose name and code would be saved in the place of its own.
            model_class = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
            with torch.device("meta"):
                model = model_class(model.config)

        def write() -> None:
            with self._explain(path, unfinished):
                model.save_pretrained(path, state_dict=weights)

        on_main_process(write)

    def save_model(self, model: PreTrainedModel, average: AveragedWeights | None = None) -> None:
        """
        Writes the final model, of averaged weights where there are any. Every process must call.

        Raises:
            RunError: where it cannot be written.
        """
        with nullcontext() if average is None else average.applied():
            self._write_model(model, self.path)

    @staticmethod
    def _remove(path: Path) -> None:
        """Removes a checkpoint, which is none from the first moment on."""
        unfinished = path.with_name(path.name + ".removed" + UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        if path.exists():
            os.replace(path, unfinished)
            shutil.rmtree(unfinished)

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedWeights | None = None,
        resume_from_checkpoint: str = "auto",
    ) -> dict | None:
        """
        Restores a checkpoint into model, optimizer and average. Every process must call; the main one reads it and
        gives the others theirs.

        Args:
            resume_from_checkpoint: `"auto"` for the newest of this directory that can be read, `"none"` for a start
                anew, or the path of one.

        Returns:
            Its state, or None where there is none.

        Raises:
            UserError: where it is of another run, or none can be read.
        """
        tensors: list[dict] = [{}, {}, {}]

        def read() -> dict | None:
            found = self._read_checkpoint(resume_from_checkpoint, average is not None)
            if found is None:
                return None
            state, *tensors[:] = found
            self._set_aside(state["step"])
            return state

        state = on_main_process(read)
        if state is None:
            return None
        weights, averaged, optimizer_state = tensors
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=torch.distributed.is_initialized())
        if average is not None:
            set_model_state_dict(model, averaged, options=options)
            average.reset()
        set_model_state_dict(model, weights, options=options)
        set_optimizer_state_dict(model, optimizer, optimizer_state, options=options)
        return state

    def _set_aside(self, step: int) -> None:
        """Renames checkpoints of later steps, damaged ones or those that the user went back behind."""
        for later in self.checkpoints():
            if int(later.name.split("-")[1]) > step:
                aside = later.with_name(later.name + SET_ASIDE)
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(later, aside)
                logger.warning(f"{later} is of a later step, which is trained again: now {aside.name}.")

    def _read_checkpoint(self, which: str, with_average: bool) -> tuple[dict, dict, dict, dict] | None:
        """State, weights, averaged weights and optimizer of a checkpoint."""
        ours = self.checkpoints()
        if which == "none":
            if ours:
                raise UserError(
                    f"--resume_from_checkpoint none, but {self.path} holds {ours[-1].name} of this run: pass "
                    "--overwrite_output_dir to start anew."
                )
            return None
        paths = ours[::-1] if which == "auto" else [Path(which)]
        for path in paths:
            try:
                state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
                found = differences(state.pop("identity"), self.identity)
                if found:
                    raise UserError(f"{path} is of another run: {'; '.join(found)}.")
                weights = load_file(path / WEIGHTS_FILE)
                averaged = load_file(path / AVERAGE_FOLDER / WEIGHTS_FILE) if with_average else {}
                optimizer_state = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            except UserError:
                raise
            except Exception as error:  # whatever is wrong with a file
                reason = f"which is damaged or no checkpoint of a run: {first_line(error)}"
                logger.warning(f"Passed over {path}, {reason}")
                continue
            return state, weights, averaged, optimizer_state
        if paths:
            raise UserError(
                f"No checkpoint can be read ({', '.join(map(str, paths))}): name another one with "
                "--resume_from_checkpoint, or pass --overwrite_output_dir to start anew."
            )
        return None
