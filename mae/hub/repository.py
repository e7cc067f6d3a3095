"""
Model repositories on the Hub, and pushing the folder of a model to one.

A push uploads what others can use: weights, configuration, code, image processor, card, figures, recipe and metrics.
It uploads no optimizer state, no checkpoints and no paths of this machine.
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
    SEGMENTATION_FILE,
)
from mae.utils.retries import retry, status_of


logger = logging.getLogger(__name__)


LOG_FILES = (RECIPE_FILE, ENVIRONMENT_FILE, METRICS_FILE, EVALUATIONS_FILE)
_FIGURES = (CURVE_FILE, RECONSTRUCTION_FILE, CONFUSION_FILE, SEGMENTATION_FILE)
_PUSHED_FILES = (*MODEL_FILES, CARD_FILE, *LOG_FILES, RESULTS_FILE, CLASSES_FILE, *_FIGURES)
# Flags of a recipe that may hold paths.
_PATH_FLAGS = ("dataset_name", "train_dir", "validation_dir", "model_name_or_path", "config_name")
_PATH_FLAGS += ("image_processor_name", "cache_dir", "train_mask_dir", "validation_mask_dir", "id2label")


class Repository:
    """
    A branch of a model repository. The constructor checks only what can be checked here; [`Repository.create`] talks
    to the Hub.

    Args:
        repo_id: owner/name, or a name only: then the owner is the user of the token.
        private: True if the repository must be private; None for the default of the owner.
        revision: A branch; None for main.
        retry_minutes: How long errors of the network are retried.

    Raises:
        UserError: if the name is invalid, there is no token, or the Hub is switched off (HF_HUB_OFFLINE).
    """

    def __init__(
        self, repo_id: str, private: bool | None = None, revision: str | None = None, retry_minutes: float = 0
    ):
        self.name = repo_id  # `create` adds the owner
        self.private = private
        self.revision = revision
        self.retry_minutes = retry_minutes
        self.api = HfApi(library_name="mae")
        self._card_is_reported = False
        check_name(repo_id)
        if constants.HF_HUB_OFFLINE:
            raise UserError("--push_to_hub needs the Hub, but HF_HUB_OFFLINE is set. Unset it, or drop the flag.")
        if get_token() is None:
            raise UserError(
                "--push_to_hub needs a token with write access. Log in with `hf auth login`, or set HF_TOKEN."
            )

    @property
    def url(self) -> str:
        branch = "" if self.revision is None else f"/tree/{self.revision}"
        return f"{constants.ENDPOINT}/{self.name}{branch}"

    def create(self) -> None:
        """
        Create the repository and the branch, unless they exist.

        Raises:
            UserError: if the token may not write there, or an existing repository is public and must be private.
        """
        self.name = retry(f"--push_to_hub {self.name}", self.retry_minutes, self._create)

    def _create(self) -> str:
        name = self.api.create_repo(self.name, private=self.private, exist_ok=True).repo_id
        self.api.auth_check(name, write=True)
        if self.private and not self.api.model_info(name).private:
            raise UserError(
                f"{name} exists and is public, but --hub_private_repo asks for a private repository. Make it private "
                "in its settings, or choose another name with --hub_model_id."
            )
        if self.revision is not None:
            self.api.create_branch(name, branch=self.revision, exist_ok=True)
        return name

    def push(self, folder: Path, message: str) -> str:
        """
        Push the files of a folder as one commit. There is no commit if nothing has changed. A card that somebody has
        edited on the Hub is kept.

        Returns:
            The commit.
        """
        while True:
            head = self.api.model_info(self.name, revision=self.revision).sha
            operations = [self._addition(folder, name) for name in _PUSHED_FILES if (folder / name).is_file()]
            if self._has_edited_card(head):
                operations = [operation for operation in operations if operation.path_in_repo != CARD_FILE]
            try:
                commit = self.api.create_commit(
                    self.name, operations, commit_message=message, revision=self.revision, parent_commit=head
                )
                return commit.oid
            except HfHubHTTPError as error:
                if status_of(error) != 412:  # somebody else has committed since, perhaps a card
                    raise

    def _addition(self, folder: Path, name: str) -> CommitOperationAdd:
        content: str | bytes = str(folder / name)
        if name == CARD_FILE:
            content = with_name((folder / name).read_text(encoding="utf-8"), self.name, self.revision).encode()
        elif name == RECIPE_FILE:
            content = without_paths((folder / name).read_text(encoding="utf-8")).encode()
        return CommitOperationAdd(name, content)

    def _has_edited_card(self, commit: str) -> bool:
        try:
            path = hf_hub_download(self.name, CARD_FILE, revision=commit)
        except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError, but it means that the Hub did not answer
            raise
        except EntryNotFoundError:
            return False
        if is_generated(Path(path).read_text(encoding="utf-8", errors="replace")):
            return False
        if not self._card_is_reported:
            self._card_is_reported = True
            logger.info(f"The {CARD_FILE} of {self.name} has been edited, so it is not overwritten.")
        return True


def check_name(repo_id: str) -> None:
    """Raise a `UserError` if no repository can have this name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--hub_model_id {repo_id!r} is not a valid name of a model: {first_line(error)}") from None


def without_paths(recipe: str) -> str:
    """Shorten the paths in a recipe to their last part, because the rest describes this machine."""
    flags = yaml.safe_load(recipe)
    for name in _PATH_FLAGS:
        value = flags.get(name)
        if isinstance(value, list):
            flags[name] = [_without_folders(item) for item in value]
        elif isinstance(value, str):
            flags[name] = _without_folders(value)
    return yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)


def _without_folders(path: str) -> str:
    """The last part of a path; another value as it is."""
    is_path = os.path.exists(os.path.expanduser(path)) or path.split("@")[0].count(os.sep) > 1
    return Path(path).name if is_path else path


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    retry_minutes: float = 10,
) -> str:
    """
    Push the output directory of a finished run, of the converter, or of `save_pretrained`: the model and, if there
    are any, card, figures, recipe and metrics. Checkpoints are not pushed.

    Args:
        repo_id, private, revision, retry_minutes: As in [`Repository`].

    Returns:
        The commit.

    Raises:
        UserError: if the folder holds no model, the token may not write there, or the Hub is unreachable.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not the folder of a saved model: {', '.join(missing)} missing.")
    repository = Repository(repo_id, private, revision, retry_minutes)
    repository.create()
    return retry(f"push to {repository.name}", retry_minutes, lambda: repository.push(folder, "Upload model"))
