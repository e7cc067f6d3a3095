"""Errors that scripts print as a single line."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError


class MAEError(Exception):
    """Base class of errors that scripts print as a single line."""

    already_reported = False  # True on the other ranks if rank 0 has printed it


class UserError(MAEError):
    """A mistake that the user can mend: the message says what is wrong, which value, and what to do. Exit code 2."""


class RunError(MAEError):
    """A failure during a run although its command is valid. Exit code 1."""


class DataError(RunError):
    """Data that cannot be read, or that differs from its index."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def configuration_errors(prefix: str = "") -> Iterator[None]:
    """Turn the errors of a configuration that is built inside into a `UserError` of one line after a prefix."""
    try:
        yield
    except StrictDataclassError as error:
        raise UserError(f"{prefix}{error.__cause__ or error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise UserError(f"{prefix}{first_line(error)}") from None
