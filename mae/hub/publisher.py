"""Upload a run to the Hub in the background."""

import logging
import math
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from mae.hub.repository import LOG_FILES, Repository
from mae.utils.errors import Interrupted, RunError
from mae.utils.files import AVERAGE_FOLDER, MODEL_FILES, PUSH_FOLDER
from mae.utils.retries import Retry, explain


logger = logging.getLogger(__name__)


@dataclass
class _Snapshot:
    """A folder to push, and how."""

    folder: Path
    message: str
    step: int
    minutes: float  # how long errors of the network are retried
    is_temporary: bool


# The publishers of this process that upload at this moment.
_uploading: set["Publisher"] = set()


def is_uploading() -> bool:
    """
    Whether this process uploads a model at this moment. Python would wait for the threads of huggingface_hub before it
    exits; a script that must end at once asks this first.
    """
    return bool(_uploading)


class Publisher:
    """
    Uploads checkpoints in a background thread. Failures are reported and never stop training. One upload runs at a
    time; if several are queued, only the newest is uploaded.

    Args:
        repository: A repository that exists.
        folder: The output directory of the run.
        complete: Called in the background with a folder that holds the model of a step, and the step. Adds the card
            and the figures.
        minutes: How long errors of the network are retried at the end of the run.
    """

    def __init__(self, repository: Repository, folder: Path, complete: Callable[[Path, int], None], minutes: float):
        self.repository = repository
        self.folder = folder
        self.complete = complete
        self.minutes = minutes
        self.error: BaseException | None = None  # of the last push
        self._changed = threading.Condition()
        self._queued: _Snapshot | None = None
        self._thread: threading.Thread | None = None

    def push_checkpoint(self, step: int) -> None:
        """Queue the model of a checkpoint, and return. Links its files, because the checkpoint may soon be removed."""
        folder = self.folder / PUSH_FOLDER / f"step-{step}"
        checkpoint = self.folder / f"checkpoint-{step}"
        if (checkpoint / AVERAGE_FOLDER).is_dir():
            checkpoint /= AVERAGE_FOLDER
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name in MODEL_FILES:
                _link(checkpoint / name, folder / name)
            for name in LOG_FILES:  # copies, because the run appends to its logs
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, folder / name)
        except OSError as error:
            self._report_failure(step, error, "")
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._queue(_Snapshot(folder, f"Step {step}", step, math.inf, is_temporary=True))

    def finish(self, step: int) -> None:
        """
        Push the finished run.

        Raises:
            RunError: if the push fails.
            Interrupted: on Ctrl-C.
        """
        self._queue(_Snapshot(self.folder, f"Training finished, {step} steps", step, self.minutes, False))
        try:
            self.wait()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped before the model was pushed. It is complete in {self.folder}: the same command pushes it."
            ) from None
        shutil.rmtree(self.folder / PUSH_FOLDER, ignore_errors=True)
        if self.error is not None:
            raise RunError(
                f"The model is complete in {self.folder}, but could not be pushed to {self.repository.name}: "
                f"{explain(self.error)}. Run the same command to try again."
            )

    def wait(self) -> None:
        """Wait until nothing is queued and no upload runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued is None and self not in _uploading)

    def _queue(self, snapshot: _Snapshot) -> None:
        with self._changed:
            if self._queued is not None:
                self._remove(self._queued)
            self._queued = snapshot
            self._changed.notify_all()
        if self._thread is None:
            # A daemon, so that a process that ends does not wait for it: the next save pushes again.
            self._thread = threading.Thread(target=self._work, name="push", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        disable_progress_bars()  # they would mix with that of training
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued is not None)
                snapshot, self._queued = self._queued, None
                _uploading.add(self)
            try:
                self.error = self._attempt(snapshot)
            except BaseException as error:  # of any kind: `finish` must not wait for ever
                self.error = error
            self._remove(snapshot)
            with self._changed:
                _uploading.discard(self)
                self._changed.notify_all()

    def _attempt(self, snapshot: _Snapshot) -> BaseException | None:
        """Push, and retry transient errors until a newer snapshot is queued. Returns the error if the push failed."""
        attempts = Retry(f"push to {self.repository.name}", snapshot.minutes)
        try:
            if snapshot.is_temporary:
                self.complete(snapshot.folder, snapshot.step)
        except Exception as error:
            self._report_failure(snapshot.step, error)
            return error
        while True:
            try:
                commit = self.repository.push(snapshot.folder, snapshot.message)
                logger.info(f"Pushed step {snapshot.step} to {self.repository.url}, commit {commit[:12]}")
                return None
            except Exception as error:
                if not attempts.wait(error):
                    if snapshot.is_temporary:
                        self._report_failure(snapshot.step, error)
                    return error
                if self._queued is not None:
                    return error

    def _report_failure(self, step: int, error: Exception, advice: str = " The next save tries again.") -> None:
        logger.warning(
            f"Step {step} was not pushed to {self.repository.name}: {explain(error)}. Training continues.{advice}"
        )

    @staticmethod
    def _remove(snapshot: _Snapshot) -> None:
        if snapshot.is_temporary:
            shutil.rmtree(snapshot.folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
