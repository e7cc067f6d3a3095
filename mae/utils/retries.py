"""Retry what may succeed later: a connection that breaks, a server that is busy."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

from mae.utils.errors import UserError, first_line


logger = logging.getLogger(__name__)


Result = TypeVar("Result")
# Seconds; doubled after each failure, up to the longest.
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
# Errors of connections, by name: huggingface_hub has changed its HTTP library, and https:// data uses another one.
_CONNECTION_ERRORS = {"TransportError", "ClientConnectionError", "ClientPayloadError", "ChunkedEncodingError"}
_ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "ask for access on its page, use a token that has this right, or choose another repository",
    404: "check the name, and that your token may see it",
}
_OFFLINE_ADVICE = "HF_HUB_OFFLINE is set: unset it, or name a path on this machine"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_offline(error: BaseException) -> bool:
    # `datasets` drops the cause of its ConnectionError, and names only its class.
    name = OfflineModeIsEnabled.__name__
    return any(isinstance(cause, OfflineModeIsEnabled) or name in str(cause) for cause in _chain(error))


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, or None if it has none."""
    for cause in _chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """
    Whether a retry may succeed: no answer, "too many requests", or an error of the server. Offline mode is a choice of
    the user, and never transient.
    """
    if _is_offline(error):
        return False
    status = status_of(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or "CAS service error" in str(cause)  # hf_xet raises a RuntimeError for every error of its server or network
        or _CONNECTION_ERRORS & {base.__name__ for base in type(cause).__mro__}
        for cause in _chain(error)
    )


def explain(error: BaseException) -> str:
    """An error in one line, with advice if there is any."""
    advice = _OFFLINE_ADVICE if _is_offline(error) else _ADVICE.get(status_of(error) or 0)
    message = " ".join(str(error).split())[:300] or type(error).__name__
    return message + (f" ({advice})" if advice else "")


class Retry:
    """
    Waits between the attempts of one task: longer after each failure, until a time budget is used up.

    Args:
        what: The task, for the log.
        minutes: The budget, from the first failure to the last attempt.
    """

    last_reported = 0.0  # time of the last message of any instance in this process

    def __init__(self, what: str, minutes: float):
        self.what = what
        self.seconds = minutes * 60
        self.first_failure: float | None = None
        self.delay = FIRST_DELAY

    def succeeded(self) -> None:
        """Start the budget over: the next failure is a new one."""
        self.first_failure, self.delay = None, FIRST_DELAY

    def wait(self, error: BaseException) -> bool:
        """Wait before another attempt. False if there should be none."""
        now = time.monotonic()
        if self.first_failure is None:
            self.first_failure = now
        remaining = self.first_failure + self.seconds - now
        if not is_transient(error) or remaining <= 0:
            return False
        delay = min(self.delay, remaining)
        if now - Retry.last_reported >= self.delay / 2:  # one message if many threads meet the same outage
            Retry.last_reported = now
            logger.warning(f"{self.what}: {first_line(error)}; retrying in {delay:.0f} s")
        time.sleep(delay)
        self.delay = min(2 * self.delay, LONGEST_DELAY)
        return True


def retry(what: str, minutes: float, function: Callable[[], Result]) -> Result:
    """
    Call a function, again while its errors are transient, and return its result.

    Args:
        what: The task, for the log and the error.
        minutes: The time budget, as in [`Retry`].

    Raises:
        UserError: if an error is not transient, or lasts longer than `minutes`. A `UserError` of the function is
            raised as it is.
    """
    attempts = Retry(what, minutes)
    while True:
        try:
            return function()
        except UserError:
            raise
        except Exception as error:
            if not attempts.wait(error):
                raise UserError(f"{what}: {explain(error)}") from error
