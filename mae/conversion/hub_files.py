"""Find the files of a model on the Hub, and download them to the local cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from mae.conversion.tensor_files import PICKLE_FILES, SAFE_FILES, SUFFIXES, read_index
from mae.utils.errors import UserError
from mae.utils.files import CONFIG_FILE, PROCESSOR_FILE
from mae.utils.paths import announce_hub, may_be_a_path, near_path
from mae.utils.retries import explain, is_transient, retry
from mae.utils.text import printable


Result = TypeVar("Result")
_PREFIXES = ("hf-hub:", "hf://", "https://huggingface.co/")
_SECONDS = 10  # for the Hub to answer whether it has a model


@dataclass
class HubFiles:
    """
    The files of a model in the local cache, in one folder.

    Args:
        weights: The file of weights, or the index of a divided one.
        notes: What the user should know of the reading.
    """

    name: str
    commit: str
    weights: Path
    notes: list[str] = field(default_factory=list)


def hub_name(name: str) -> str:
    """The owner/name of a model, from the forms that timm's documentation and the address of its page have."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name.removesuffix("/")


def download_model(asked: str, revision: str | None, allow_pickle: bool, retry_minutes: float) -> HubFiles:
    """
    Download the configuration, weights and processor of a model, all of the same commit.

    Args:
        asked: The name as the user wrote it. One that may be a mistyped path is asked of the Hub only once.
        allow_pickle: Whether pickles are downloaded if there are no safetensors.

    Raises:
        UserError: if there is no such model, or if the Hub does not answer and the model is not in the cache.
    """
    question = _Question(asked, revision)
    try:
        validate_repo_id(question.name)
    except HFValidationError:
        raise UserError(question.no_name) from None
    if question.name.endswith(SUFFIXES):
        raise UserError(question.no_name)
    candidates = SAFE_FILES + PICKLE_FILES if allow_pickle else SAFE_FILES
    found = _find(question, candidates, retry_minutes)
    config, weights = found.get(CONFIG_FILE), _first(found, candidates)
    if config is None or weights is None:
        raise UserError(found.explain_lack(allow_pickle))
    if weights.name.endswith(".index.json"):
        for part in sorted(set(read_index(weights).values())):
            found.get(part)
    found.get(PROCESSOR_FILE)
    return HubFiles(question.name, config.parent.name, weights, found.notes)


def _find(question: "_Question", candidates: tuple[str, ...], retry_minutes: float) -> "_Hub | _LocalCache":
    """Where to take the files from: the Hub, or the local cache if the Hub cannot be asked."""
    cache = _LocalCache(question)
    if constants.HF_HUB_OFFLINE:
        return cache
    is_cached = cache.get(CONFIG_FILE) is not None and _first(cache, candidates) is not None
    patience = min(retry_minutes, 0.5) if is_cached else retry_minutes
    if question.may_be_a_path:
        patience = 0
    announce_hub(question.asked, patience)
    try:
        return _Hub(question, patience, retry_minutes)
    except UserError as error:
        if not is_cached or error.__cause__ is None or not is_transient(error.__cause__):
            raise
        cache.notes.append("files of the local cache, because the Hub does not answer")
        return cache


def _first(found: "_Hub | _LocalCache", files: tuple[str, ...]) -> Path | None:
    return next((path for path in map(found.get, files) if path is not None), None)


class _Question:
    """A name that is no file or folder here, and the words for what may be wrong with it."""

    def __init__(self, asked: str, revision: str | None):
        self.asked, self.name = printable(asked), hub_name(asked)
        self.revision = revision
        self.may_be_a_path = not asked.startswith(_PREFIXES) and may_be_a_path(asked)
        self.here = f"{self.asked} is neither a file nor a directory here{near_path(asked)}"
        self.no_name = f"{self.here}, and cannot be a model on the Hub (which is named owner/name)."

    def ask(self, what: str, minutes: float, function: Callable[[], Result]) -> Result:
        """Retry a function that asks the Hub; an error is a `UserError` of one line."""
        try:
            return retry(what, minutes, function)
        except UserError as error:
            raise UserError(self._explain(error.__cause__ or error)) from error.__cause__

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, GatedRepoError):
            return f"{self.asked} is a gated model: ask for access on its page, then log in with `hf auth login`."
        if isinstance(error, RepositoryNotFoundError):
            return f"{self.here}, and not a model on the Hub that you may see (a private one needs `hf auth login`)."
        if isinstance(error, RevisionNotFoundError):
            return f"{self.asked} has no revision {self.revision} on the Hub: give a branch, a tag or a commit."
        # The client hides the fault of the connection behind an error of its cache.
        return f"{self.here}, and cannot be loaded from the Hub now: {explain(error.__cause__ or error)}"


class _Hub:
    """The files of a model on the Hub. They are listed first, so that no absent file is asked for."""

    def __init__(self, question: _Question, first_retry_minutes: float, retry_minutes: float):
        self.question = question
        self.retry_minutes = retry_minutes
        self.notes: list[str] = []
        # Unlike a download, the client does not retry this question by itself.
        self.commit, self.files = self._list(question.revision, first_retry_minutes)
        if CONFIG_FILE in self.files:
            # By the revision's name, which the cache then knows. A push may have moved it since the question.
            commit = self._download(CONFIG_FILE, question.revision).parent.name
            if commit != self.commit:
                self.commit, self.files = self._list(commit, retry_minutes)

    def _list(self, revision: str | None, retry_minutes: float) -> tuple[str, set[str]]:
        """The commit of a revision, and the names of its files."""
        name = self.question.name
        model = self.question.ask(
            f"{self.question.asked} on the Hub",
            retry_minutes,
            lambda: HfApi().model_info(name, revision=revision, timeout=_SECONDS),
        )
        return model.sha, {sibling.rfilename for sibling in model.siblings or ()}

    def get(self, file: str) -> Path | None:
        """The path of a file, downloaded; None if the model has none."""
        return self._download(file, self.commit) if file in self.files else None

    def _download(self, file: str, revision: str | None) -> Path:
        name = self.question.name
        return Path(
            self.question.ask(
                self.question.asked, self.retry_minutes, lambda: hf_hub_download(name, file, revision=revision)
            )
        )

    def explain_lack(self, allow_pickle: bool) -> str:
        pickles = "" if allow_pickle else " Pickles from the Hub need allow_pickle=True (--allow_pickle)."
        return (
            f"{self.question.asked} on the Hub lacks {CONFIG_FILE} or weights ({', '.join(SAFE_FILES)}). To load "
            f"another file, download it and give its path.{pickles}"
        )


class _LocalCache:
    """The files of a model that were downloaded before."""

    def __init__(self, question: _Question):
        self.question = question
        self.revision = question.revision
        self.notes: list[str] = []

    def get(self, file: str) -> Path | None:
        """The path of a file; None if it is not in the cache."""
        path = try_to_load_from_cache(self.question.name, file, revision=self.revision)
        if isinstance(path, str):
            self.revision = Path(path).parent.name  # the commit
            return Path(path)
        if path is None and file == PROCESSOR_FILE:
            self.notes.append(f"without its {PROCESSOR_FILE}, if it has one: it is not in the local cache")
        return None

    def explain_lack(self, allow_pickle: bool) -> str:
        return (
            f"{self.question.here}. The Hub cannot be asked for it, because HF_HUB_OFFLINE is set, and the cache "
            f"lacks its {CONFIG_FILE} or its weights."
        )
