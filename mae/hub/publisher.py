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

from mae.hub.repository import _LOGS, Repository
from mae.utils.errors import Interrupted, RunError
from mae.utils.files import AVERAGE_FOLDER, MODEL_FILES, PUSH_FOLDER
from mae.utils.retries import Retry, explain


logger = logging.getLogger(__name__)


@dataclass
class _Snapshot:
    folder: Path
    message: str
    step: int
    minutes: float  # how long faults are waited out
    is_temporary: bool


class Publisher:
    """
    Pushes a run while it goes on. What goes wrong is told, and never more than that; only one push is under way, and
    of those that wait the last one is made.

    Args:
        complete:
            Called in the background with a directory that holds the model of a step, and the step: adds card and
            pictures.
        minutes: How long faults of the network are waited out at the end of the run.
    """

    def __init__(self, repository: Repository, folder: Path, complete: Callable[[Path, int], None], minutes: float):
        self.repository = repository
        self.folder = folder
        self.complete = complete
        self.minutes = minutes
        self.error: BaseException | None = None  # of the last push
        self._changed = threading.Condition()
        self._waiting: _Snapshot | None = None
        self._under_way = False
        _publishers.append(self)
        self._thread: threading.Thread | None = None

    def push_checkpoint(self, step: int) -> None:
        """Takes what a checkpoint holds of the model, and returns; links, because it may soon be removed."""
        folder = self.folder / PUSH_FOLDER / f"step-{step}"
        checkpoint = self.folder / f"checkpoint-{step}"
        if (checkpoint / AVERAGE_FOLDER).is_dir():
            checkpoint /= AVERAGE_FOLDER
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name in MODEL_FILES:
                _link(checkpoint / name, folder / name)
            for name in _LOGS:  # which go on
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, folder / name)
        except OSError as error:
            self._tell_failure(step, error, "")
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._push(_Snapshot(folder, f"Step {step}", step, math.inf, is_temporary=True))

    def finish(self, step: int) -> None:
        """
        Pushes the finished run.

        Raises:
            RunError: where that does not succeed.
        Interrupted: on Ctrl-C.
        """
        self._push(_Snapshot(self.folder, f"Training finished, {step} steps", step, self.minutes, False))
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is None and not self._under_way)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped before the model was pushed. It is complete in {self.folder}; the same command pushes it."
            ) from None
        shutil.rmtree(self.folder / PUSH_FOLDER, ignore_errors=True)
        if self.error is not None:
            raise RunError(
                f"The model is complete in {self.folder}, but could not be pushed to {self.repository.name}: "
                f"{explain(self.error)}. The same command tries again."
            )

    def _push(self, snapshot: _Snapshot) -> None:
        with self._changed:
            if self._waiting is not None:
                self._remove(self._waiting)
            self._waiting = snapshot
            self._changed.notify_all()
        if self._thread is None:
            # One that a process which ends does not wait for: what it does is done again at the next save.
            self._thread = threading.Thread(target=self._work, name="push", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        disable_progress_bars()  # ours is the only one
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                snapshot, self._waiting, self._under_way = self._waiting, None, True
            try:
                self.error = self._attempt(snapshot)
            except BaseException as error:  # whatever it is, nobody waits for ever
                self.error = error
            self._remove(snapshot)
            with self._changed:
                self._under_way = False
                self._changed.notify_all()

    def _attempt(self, snapshot: _Snapshot) -> BaseException | None:
        """Pushes, again after faults that may pass, until there is something newer to push."""
        patience = Retry(f"push to {self.repository.name}", snapshot.minutes)
        try:
            if snapshot.is_temporary:
                self.complete(snapshot.folder, snapshot.step)
        except Exception as error:
            self._tell_failure(snapshot.step, error)
            return error
        while True:
            try:
                commit = self.repository.push(snapshot.folder, snapshot.message)
                logger.info(f"Pushed step {snapshot.step} to {self.repository.url}, commit {commit[:12]}")
                return None
            except Exception as error:
                if not patience.wait(error):
                    if snapshot.is_temporary:
                        self._tell_failure(snapshot.step, error)
                    return error
                if self._waiting is not None:
                    return error

    def _tell_failure(self, step: int, error: Exception, then: str = " The next save tries again.") -> None:
        message = f"Step {step} was not pushed to {self.repository.name}: {explain(error)}. The run goes on.{then}"
        logger.warning(message)

    @staticmethod
    def _remove(snapshot: _Snapshot) -> None:
        if snapshot.is_temporary:
            shutil.rmtree(snapshot.folder, ignore_errors=True)


_publishers: list[Publisher] = []


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
