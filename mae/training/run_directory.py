"""
The output directory of a run: whose it is, and what is in it.

    run.json             identity of the run: everything that changes its results
    run.lock             locked while the run is active
    recipe.yaml          flags that repeat the run; --recipe takes it
    environment.json     versions and machine of the last start
    metrics.jsonl        one line per logged step
    evaluations.jsonl    one line per evaluation
    skipped.jsonl        one line per image that cannot be read
    reconstructions/     one picture per evaluation of a pre-training run
    predictions.csv      a classifier's prediction for each validation image at the last evaluation; per_class.csv and
                         confusion_matrix.png summarise it
    logs/                files of trackers
    checkpoint-N/        model, optimizer and position after step N, and in ema/ the averaged model; each loads with
                         from_pretrained
    nonfinite-N/         the same before a step that ended the run because its gradient was not finite
    train_results.json   results; it is written last and marks a finished run

The final model, its figures and its card, README.md, lie beside these. Only rank 0 reads and writes the directory,
because other nodes may not see it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import IO, Any

import yaml

from mae.training.checkpointing import CHECKPOINT_NAME, Checkpointer, read_state
from mae.training.identity import differences
from mae.training.metrics import JsonLines
from mae.training.schedule import Horizon
from mae.utils.distributed import on_main_process
from mae.utils.errors import UserError
from mae.utils.files import (
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVE_FILE,
    ENVIRONMENT_FILE,
    EVALUATIONS_FILE,
    LOCK_FILE,
    LOGS_FOLDER,
    MASKS_FOLDER,
    METRICS_FILE,
    MODEL_FILES,
    PICTURES_FOLDER,
    PREDICTIONS_FILE,
    PUSH_FOLDER,
    RECIPE_FILE,
    RECONSTRUCTION_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SEGMENTATION_FILE,
    SET_ASIDE,
    SKIPPED_FILE,
    UNFINISHED,
    write_json,
    write_text,
)


try:
    import fcntl
except ImportError:  # Windows, where two runs in one directory are not noticed
    fcntl = None

_FILES = {
    RUN_FILE,
    LOCK_FILE,
    RECIPE_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    EVALUATIONS_FILE,
    SKIPPED_FILE,
    RESULTS_FILE,
    PICTURES_FOLDER,
    LOGS_FOLDER,
    PUSH_FOLDER.removesuffix(UNFINISHED),
    CURVE_FILE,
    RECONSTRUCTION_FILE,
    CONFUSION_FILE,
    CLASSES_FILE,
    PREDICTIONS_FILE,
    SEGMENTATION_FILE,
    MASKS_FOLDER,
    *MODEL_FILES,
}
# A temporary file has the number of its process in its name, a folder has not.
_TEMPORARY = re.compile(rf"(\.removed|\.\d+)?{re.escape(UNFINISHED)}")


def is_of_a_run(name: str) -> bool:
    """Whether a run writes a file or folder of this name, or of its temporary form."""
    name = _TEMPORARY.sub("", name).removesuffix(SET_ASIDE)
    return name in _FILES or bool(CHECKPOINT_NAME.fullmatch(name))


class Lock:
    """A lock on a directory that ends with the process, however that ends. One process may hold it several times."""

    # Open files by directory, with the number of their holders. A record lock ends when any descriptor of its file is
    # closed, so that a process must have a single one.
    _held: dict[Path, tuple[IO, int]] = {}

    def __init__(self, folder: Path):
        self.folder = folder
        self.key: Path | None = None

    def acquire(self) -> None:
        """Raises a `UserError` if another process holds it."""
        key = self.folder.resolve()
        if fcntl is None:
            return
        if key in self._held:
            file, count = self._held[key]
        else:
            try:
                file, count = open(key / LOCK_FILE, "a"), 0
            except OSError:  # a directory that cannot be written needs no lock
                return
            try:
                # A record lock, because forked DataLoader workers would inherit a flock and outlive this process.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.close()
                raise UserError(
                    f"--output_dir {self.folder} is in use by a run that is active. Wait for it, stop it, or use "
                    "another directory."
                ) from None
            except OSError:  # a file system without locks
                pass
        self._held[key], self.key = (file, count + 1), key

    def release(self) -> None:
        if self.key is None:
            return
        file, count = self._held.pop(self.key)
        if count > 1:
            self._held[self.key] = file, count - 1
        else:
            file.close()
        self.key = None


class RunDirectory:
    """
    The output directory of a training run, as a context manager: entering it claims and locks the directory, leaving
    it unlocks. Every rank enters it.

    Args:
        path: The directory.
        identity: Everything that changes the run's results, as JSON values.
        overwrite: Whether to remove an earlier run's files.
        data: Name of the data, for the error that the data has changed.
        resume_from_checkpoint: A checkpoint elsewhere is checked before anything is written.
        save_total_limit: Number of checkpoints to keep.
        horizon: Length of a run that can grow. A longer one goes on in the same directory.

    Raises:
        UserError: on entering, if the directory holds something else, a run with another identity, or an active run.
    """

    def __init__(
        self,
        path: str | Path,
        identity: dict[str, Any],
        overwrite: bool = False,
        data: str = "its data",
        resume_from_checkpoint: str = "auto",
        save_total_limit: int | None = None,
        horizon: Horizon | None = None,
    ):
        self.path = Path(path)
        # As it will be read back: tuples become lists.
        self.identity = json.loads(json.dumps(identity, default=str))
        self.overwrite = overwrite
        self.data = data
        self.resume_from_checkpoint = resume_from_checkpoint
        self.horizon = horizon
        self.metrics = JsonLines(self.path / METRICS_FILE)
        self.evaluations = JsonLines(self.path / EVALUATIONS_FILE)
        self.skipped = JsonLines(self.path / SKIPPED_FILE)
        self.checkpoints = Checkpointer(self.path, self.identity, save_total_limit, horizon)
        self._lock = Lock(self.path)
        self._is_new = False  # whether this claim is the first of a run
        self._made: list[Path] = []  # by this claim, the directory and those above it

    def __enter__(self) -> "RunDirectory":
        on_main_process(self._claim)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._lock.release()
        if kind is not None and issubclass(kind, UserError):
            self._undo_claim()

    # Claim

    def _claim(self) -> None:
        try:
            if self.resume_from_checkpoint not in ("auto", "none"):
                read_state(Path(self.resume_from_checkpoint), self.identity, self.horizon)
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--output_dir {self.path} is a file. Name a directory.")
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            run_file = self.path / RUN_FILE
            if not run_file.exists():
                self._check_foreign()
            self._lock.acquire()
            if run_file.exists():
                if not self.overwrite:
                    if self._check_identity(run_file) != self.horizon:
                        self._describe(run_file)
                    self._tidy()
                    return
                self._clear(run_file)
            else:
                self._is_new = True
            self._describe(run_file)
        except OSError as error:
            self._lock.release()
            raise UserError(f"--output_dir {self.path} cannot be used: {error.strerror or error}.") from None
        except BaseException:
            self._lock.release()
            self._undo_claim()
            raise

    def _describe(self, run_file: Path) -> None:
        about = {"data_name": self.data} | ({"horizon": self.horizon.as_json()} if self.horizon else {})
        write_json(run_file, self.identity | about)

    def _undo_claim(self) -> None:
        """Remove what a new claim has written, if the run has logged and saved nothing: the command was refused."""
        if not self._is_new:
            return
        written = {RUN_FILE, LOCK_FILE, RECIPE_FILE, ENVIRONMENT_FILE}
        others = [entry for entry in self.path.iterdir() if is_of_a_run(entry.name) and entry.name not in written]
        if all(entry.is_dir() and not any(entry.iterdir()) for entry in others):  # the folder of a tracker's logs
            for entry in others:
                entry.rmdir()
            for name in written:
                (self.path / name).unlink(missing_ok=True)
            for folder in self._made:
                if not any(folder.iterdir()):
                    folder.rmdir()
        self._is_new = False

    def _tidy(self) -> None:
        """Remove what kills have left half written or half removed."""
        for entry in self.path.glob(f"*{UNFINISHED}"):
            if is_of_a_run(entry.name):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def _check_foreign(self) -> None:
        """Refuse a directory of something else; with `overwrite` only if its files would be taken for a run's."""
        # A start that was killed leaves the lock and a temporary file.
        names = {entry.name for entry in self.path.iterdir()} - {LOCK_FILE}
        names = {name for name in names if not (name.startswith(RUN_FILE) and name.endswith(UNFINISHED))}
        if names and not self.overwrite:
            raise UserError(
                f"--output_dir {self.path} is not empty and holds no run of this script. Use another directory, or "
                "pass --overwrite_output_dir to write into it."
            )
        taken = sorted(name for name in names if is_of_a_run(name))
        if taken:
            raise UserError(
                f"--output_dir {self.path} holds {', '.join(taken)}, but not from a run of this script. Use another "
                "directory, or move them away. Nothing was changed."
            )

    def _clear(self, run_file: Path) -> None:
        """Remove an earlier run."""
        # From here on it is not that run, and not yet the new one: a kill leaves nothing that could be resumed.
        write_json(run_file, {})
        for entry in list(self.path.iterdir()):
            if entry.name not in (RUN_FILE, LOCK_FILE) and is_of_a_run(entry.name):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def _check_identity(self, run_file: Path) -> Horizon | None:
        """Refuse a directory of another run, or of a longer one; returns the length that it had."""
        try:
            stored = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{run_file} cannot be read: {error}. Pass --overwrite_output_dir to start over."
            ) from None
        if not stored:
            raise UserError(
                f"An earlier start that overwrites --output_dir {self.path} was stopped. Pass --overwrite_output_dir "
                "again."
            )
        data, length = stored.pop("data_name", "other data"), stored.pop("horizon", None)
        found = differences(stored, self.identity)
        if stored.get("data") != self.identity.get("data"):
            found.append(f"the data was {data}, now {self.data}")
        if not found:
            return self._check_length(None if length is None else Horizon(**length))
        advice = ""
        if all(re.match(r"recipe\.(max_steps|num_train_epochs)", line) for line in found):
            advice = (
                f" The learning-rate schedule depends on the length. To train further, start a new run from these "
                f"weights: --model_name_or_path {self.path} --output_dir {self.path}_more."
            )
        raise UserError(
            f"--output_dir {self.path} holds another run ({'; '.join(found)}). Use another directory, or pass "
            f"--overwrite_output_dir to remove that run. Nothing was changed.{advice}"
        )

    def _check_length(self, stored: Horizon | None) -> Horizon | None:
        new = self.horizon
        if stored is None or new is None or stored == new or stored.num_steps < new.num_steps:
            return stored
        raise UserError(
            f"--output_dir {self.path} holds a run of {stored.num_steps} steps that decays after step "
            f"{stored.steady_steps}, now {new.num_steps} steps and after step {new.steady_steps}. It can only be made "
            "longer here. For another decay of its checkpoints use --resume_from_checkpoint "
            f"{self.path}/checkpoint-STEP and another --output_dir. Nothing was changed."
        )

    # Content

    def read_results(self) -> dict[str, Any] | None:
        """The results of a finished run of this length, on every rank, or None. A collective."""
        path = self.path / RESULTS_FILE
        found = on_main_process(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
        is_shorter = found is not None and self.horizon is not None and found["steps"] < self.horizon.num_steps
        return None if is_shorter else found

    def describe(self, recipe: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write the flags that repeat the run, and the machine that it runs on. Rank 0 calls it."""
        write_text(self.path / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        write_json(self.path / ENVIRONMENT_FILE, environment)

    def truncate(self, step: int) -> None:
        """Remove the logged lines of later steps, which are about to be trained again. Rank 0 calls it."""
        for log in (self.metrics, self.evaluations):
            log.keep(lambda line: line["step"] <= step)

    def finish(self, results: dict[str, Any]) -> None:
        """Mark the run as finished. Rank 0 calls it."""
        write_json(self.path / RESULTS_FILE, results)
