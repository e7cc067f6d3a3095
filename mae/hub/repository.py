"""
Models on the Hub: a directory that a run has left is pushed as a repository, from Python, at the end of a run and, in
the background, whenever the run saves.

What goes there is what others can use: weights, configuration, code, processor, card, pictures, recipe and metrics. No
optimizer, no checkpoints, no paths of this machine.
"""

import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from tqdm import tqdm

from mae.arguments.recipes import RunArguments
from mae.hub.cards import CARD_FILE, is_generated, with_name
from mae.training.accelerator import on_main_process, say
from mae.training.run_directory import (
    AVERAGE_FOLDER,
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVE_FILE,
    ENVIRONMENT_FILE,
    EVALUATIONS_FILE,
    METRICS_FILE,
    PUSH_FOLDER,
    RECIPE_FILE,
    RECONSTRUCTION_FILE,
    RESULTS_FILE,
    WEIGHTS_FILE,
    RunDirectory,
)
from mae.utils.errors import Interrupted, RunError, UserError, first_line
from mae.utils.retries import Patience, explain, status_of, with_patience


MODEL_FILES = ("config.json", WEIGHTS_FILE, "preprocessor_config.json", "modeling_mae.py", "configuration_mae.py")
_LOGS = (RECIPE_FILE, ENVIRONMENT_FILE, METRICS_FILE, EVALUATIONS_FILE)
_PICTURES = (CURVE_FILE, RECONSTRUCTION_FILE, CONFUSION_FILE)
_FILES = (*MODEL_FILES, CARD_FILE, *_LOGS, RESULTS_FILE, CLASSES_FILE, *_PICTURES)
# Flags of a recipe that may hold paths.
_PATHS = ("dataset_name", "train_dir", "validation_dir", "model_name_or_path")


class Repository:
    """
    A model repository that one may write to, and a branch of it. Made if it does not exist.

    Args:
        repo_id: owner/name, or a name of the token's owner.
        private: Whether it must be private; None: public, unless the owner's default is private.
        revision: A branch, which is made if it does not exist; None for main.
        retry_minutes: How long faults of the network are waited out.

    Raises:
        UserError: where one may not write there.
    """

    def __init__(
        self, repo_id: str, private: bool | None = None, revision: str | None = None, retry_minutes: float = 0
    ):
        self.revision = revision
        self.api = HfApi(library_name="mae")
        self._is_told = False  # that the card there is another's
        check_name(repo_id)
        if constants.HF_HUB_OFFLINE:
            raise UserError("--push_to_hub: HF_HUB_OFFLINE is set; unset it, or leave the flag out.")
        if get_token() is None:
            raise UserError(
                "--push_to_hub needs a token that may write: log in with `hf auth login`, or set HF_TOKEN."
            )
        self.name = with_patience(f"--push_to_hub {repo_id}", retry_minutes, lambda: self._prepare(repo_id, private))

    def _prepare(self, repo_id: str, private: bool | None) -> str:
        try:
            name = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            self.api.auth_check(name, write=True)
            if private and not self.api.model_info(name).private:
                raise UserError(
                    f"{name} exists and is public, but --hub_private_repo asks for a private one: make it private in "
                    "its settings, or name another one with --hub_model_id."
                )
            if self.revision is not None:
                self.api.create_branch(name, branch=self.revision, exist_ok=True)
        except HfHubHTTPError as error:
            advice = {
                401: "the token is not valid: log in with `hf auth login`, or set HF_TOKEN",
                403: "the token may not write there: make one that may, or name another --hub_model_id",
            }.get(status_of(error) or 0)
            if advice is None:
                raise
            raise UserError(f"--push_to_hub {repo_id}: {advice} ({first_line(error)}).") from None
        return name

    @property
    def url(self) -> str:
        branch = "" if self.revision is None else f"/tree/{self.revision}"
        return f"{constants.ENDPOINT}/{self.name}{branch}"

    def push(self, folder: Path, message: str) -> str:
        """
        Pushes a directory's files as one commit, which is not made where nothing has changed. A card that was edited
        there is left as it is.

        Returns:
            The commit.
        """
        while True:
            head = self.api.model_info(self.name, revision=self.revision).sha
            operations = [self._operation(folder, name) for name in _FILES if (folder / name).is_file()]
            if not self._may_replace_card(head):
                operations = [operation for operation in operations if operation.path_in_repo != CARD_FILE]
            try:
                commit = self.api.create_commit(
                    self.name, operations, commit_message=message, revision=self.revision, parent_commit=head
                )
                return commit.oid
            except HfHubHTTPError as error:
                if status_of(error) != 412:  # another commit came in between, perhaps with a card
                    raise

    def _operation(self, folder: Path, name: str) -> CommitOperationAdd:
        content: str | bytes = str(folder / name)
        if name == CARD_FILE:
            content = with_name((folder / name).read_text(encoding="utf-8"), self.name, self.revision).encode()
        elif name == RECIPE_FILE:
            content = without_paths((folder / name).read_text(encoding="utf-8")).encode()
        return CommitOperationAdd(name, content)

    def _may_replace_card(self, head: str) -> bool:
        try:
            path = hf_hub_download(self.name, CARD_FILE, revision=head)
        except LocalEntryNotFoundError:  # the Hub did not answer
            raise
        except EntryNotFoundError:
            return True
        with open(path, encoding="utf-8", errors="replace") as file:
            if is_generated(file.read()):
                return True
        if not self._is_told:
            self._is_told = True
            say(f"The {CARD_FILE} of {self.name} is not one that was generated, and is left as it is.")
        return False


def open_repository(arguments: RunArguments) -> Repository | None:
    """
    The repository that the flags name, on the main process; None on others, and without --push_to_hub. Every process
    must call.

    Raises:
        UserError: where one may not write there.
    """
    opened = None

    def open_it() -> None:
        nonlocal opened
        opened = Repository(
            arguments.hub_model_id or Path(arguments.output_dir).resolve().name,
            arguments.hub_private_repo,
            arguments.hub_revision,
            arguments.data_retry_minutes,
        )
        say(f"Model repository: {opened.url}")
        if arguments.hub_license is None:
            say("Note: its card will say that the licence is unknown; --hub_license names the one of your weights.")

    if arguments.push_to_hub:
        on_main_process(open_it)
    return opened


def check_name(repo_id: str) -> None:
    """A `UserError` for what no repository can be called."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--hub_model_id {repo_id!r} cannot be the name of a model: {first_line(error)}") from None


def without_paths(recipe: str) -> str:
    """A recipe whose data and models on this machine are only called by the last part of their paths."""
    flags = yaml.safe_load(recipe)
    for name in _PATHS:
        value = flags.get(name)
        if isinstance(value, str) and (os.path.exists(os.path.expanduser(value)) or value.count(os.sep) > 1):
            flags[name] = Path(value).name
    return yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    retry_minutes: float = 10,
) -> str:
    """
    Pushes a directory that a finished run or the converter has left, or `save_pretrained`: the model and, where they
    are there, card, pictures, recipe and metrics. Checkpoints are not pushed.

    Args:
        repo_id, private, revision, retry_minutes: As in [`Repository`].

    Returns:
        The commit.

    Raises:
        UserError: where the directory holds no model, one may not write there, or the Hub cannot be reached.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not the directory of a model: it lacks {', '.join(missing)}.")
    repository = Repository(repo_id, private, revision, retry_minutes)
    return with_patience(f"push to {repository.name}", retry_minutes, lambda: repository.push(folder, "Upload model"))


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

    def __init__(
        self, repository: Repository, run: RunDirectory, complete: Callable[[Path, int], None], minutes: float
    ):
        self.repository = repository
        self.run = run
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
        folder = self.run.path / PUSH_FOLDER / f"step-{step}"
        checkpoint = self.run.path / f"checkpoint-{step}"
        if (checkpoint / AVERAGE_FOLDER).is_dir():
            checkpoint /= AVERAGE_FOLDER
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name in MODEL_FILES:
                _link(checkpoint / name, folder / name)
            for name in _LOGS:  # which go on
                if (self.run.path / name).exists():
                    shutil.copyfile(self.run.path / name, folder / name)
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
        self._push(_Snapshot(self.run.path, f"Training finished, {step} steps", step, self.minutes, False))
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is None and not self._under_way)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped before the model was pushed. It is complete in {self.run.path}; the same command pushes it."
            ) from None
        shutil.rmtree(self.run.path / PUSH_FOLDER, ignore_errors=True)
        if self.error is not None:
            raise RunError(
                f"The model is complete in {self.run.path}, but could not be pushed to {self.repository.name}: "
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
        patience = Patience(f"push to {self.repository.name}", snapshot.minutes)
        try:
            if snapshot.is_temporary:
                self.complete(snapshot.folder, snapshot.step)
        except Exception as error:
            self._tell_failure(snapshot.step, error)
            return error
        while True:
            try:
                commit = self.repository.push(snapshot.folder, snapshot.message)
                say(f"Pushed step {snapshot.step} to {self.repository.url}, commit {commit[:12]}")
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
        tqdm.write(message, file=sys.stderr)

    @staticmethod
    def _remove(snapshot: _Snapshot) -> None:
        if snapshot.is_temporary:
            shutil.rmtree(snapshot.folder, ignore_errors=True)


_publishers: list[Publisher] = []


def end_process(code: int) -> NoReturn:
    """
    `sys.exit`, which would wait for a push under way until it is done, because Python joins the threads that upload.
    The next save, or the same command, pushes what this one leaves.
    """
    if any(publisher._under_way for publisher in _publishers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
