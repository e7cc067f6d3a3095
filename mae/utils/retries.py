"""Trying again while a fault may pass: a connection that breaks, a server that is busy."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

from mae.utils.errors import UserError, first_line


logger = logging.getLogger(__name__)


Result = TypeVar("Result")
# Seconds; doubled after each fault up to the longest.
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
# Errors of connections, by name: the library that carries the Hub's requests has changed, and others carry https://.
_CONNECTION_ERRORS = {"TransportError", "ClientConnectionError", "ClientPayloadError", "ChunkedEncodingError"}
_WHAT_TO_DO = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "ask for access on its page, with the account of your token, or for a token with the right to do this",
    404: "check the name, and that your token may see it",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came of."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error came of, if it came of one."""
    for cause in _chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether it is worth trying again: no answer, "too many requests", or a fault of the server."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in _chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or "CAS service error" in str(cause)  # of hf_xet, a RuntimeError for whatever its server or network does
        or _CONNECTION_ERRORS & {base.__name__ for base in type(cause).__mro__}
        for cause in _chain(error)
    )


def explain(error: BaseException) -> str:
    """An error in one line, with what to do where that is known."""
    advice = _WHAT_TO_DO.get(status_of(error) or 0)
    message = " ".join(str(error).split())[:300] or type(error).__name__
    return message + (f" ({advice})" if advice else "")


class Retry:
    """
    How long faults of one thing are borne: waits longer after each, until a budget is used up.

    Args:
        what: What fails, for the log.
        minutes: The budget, from the first fault to the last attempt.
    """

    last_reported = 0.0  # by any of this process

    def __init__(self, what: str, minutes: float):
        self.what = what
        self.seconds = minutes * 60
        self.first_fault: float | None = None
        self.delay = FIRST_DELAY

    def succeeded(self) -> None:
        self.first_fault, self.delay = None, FIRST_DELAY

    def wait(self, error: BaseException) -> bool:
        """Waits before another attempt; False where there should be none."""
        now = time.monotonic()
        self.first_fault = self.first_fault or now
        remaining = self.first_fault + self.seconds - now
        if not is_transient(error) or remaining <= 0:
            return False
        delay = min(self.delay, remaining)
        if now - Retry.last_reported >= self.delay / 2:  # of many threads that meet the same outage one says so
            Retry.last_reported = now
            logger.warning(f"{self.what}: {first_line(error)}; trying again in {delay:.0f} s")
        time.sleep(delay)
        self.delay = min(2 * self.delay, LONGEST_DELAY)
        return True


def retry(what: str, minutes: float, function: Callable[[], Result]) -> Result:
    """
    The result of a function, tried again while its faults are transient.

    Raises:
        UserError: where they are not, or do not pass in `minutes`.
    """
    patience = Retry(what, minutes)
    while True:
        try:
            return function()
        except UserError:
            raise
        except Exception as error:
            if not patience.wait(error):
                raise UserError(f"{what}: {explain(error)}") from error
