"""Names that may be a path or a name on the Hub, if there is no such path."""

import logging
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import constants

from mae.utils.text import printable


logger = logging.getLogger(__name__)


def may_be_a_path(name: str) -> bool:
    """Whether a name that is no path here may be a mistyped one: its folder exists, or it names none."""
    try:
        return Path(name).expanduser().parent.is_dir()
    except (OSError, ValueError, RuntimeError):  # a name that no path can have, or an unknown user
        return False


def near_path(name: str) -> str:
    """ " (did you mean ...?)" with the nearest name in the folder of a path, or nothing if none is near."""
    try:
        path = Path(name).expanduser()
        near = get_close_matches(path.name, [other.name for other in path.parent.iterdir()], 1)
    except (OSError, ValueError, RuntimeError):
        return ""
    return f" (did you mean {printable(str(path.parent / near[0]))}?)" if near else ""


def announce_hub(what: str, minutes: float) -> None:
    """
    Log that a name is no path here and that the Hub is asked, before somebody waits for an answer.

    Args:
        what: The name, with its flag.
        minutes: How long network errors are retried.
    """
    patience = f"network errors are retried for {minutes:g} minutes" if minutes else "without retries"
    logger.info(f"{what} is neither a file nor a folder here: asking the Hub ({constants.ENDPOINT}), {patience}.")
