"""
Models on the Hub: a directory that a run has left is pushed as a repository, from Python, at the end of a run and, in
the background, whenever the run saves.

What goes there is what others can use: weights, configuration, code, processor, card, pictures, recipe and metrics. No
optimizer, no checkpoints, no paths of this machine.
"""

import logging
import os
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mae.hub.cards import is_generated, with_name
from mae.utils.errors import UserError, first_line
from mae.utils.files import (
    CARD_FILE,
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVE_FILE,
    ENVIRONMENT_FILE,
    EVALUATIONS_FILE,
    METRICS_FILE,
    MODEL_FILES,
    RECIPE_FILE,
    RECONSTRUCTION_FILE,
    RESULTS_FILE,
)
from mae.utils.retries import retry, status_of


logger = logging.getLogger(__name__)


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
        self.name = retry(f"--push_to_hub {repo_id}", retry_minutes, lambda: self._prepare(repo_id, private))

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
            logger.info(f"The {CARD_FILE} of {self.name} is not one that was generated, and is left as it is.")
        return False


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
    return retry(f"push to {repository.name}", retry_minutes, lambda: repository.push(folder, "Upload model"))
