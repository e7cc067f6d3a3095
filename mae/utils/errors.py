"""Errors that scripts tell in one line."""


class MAEError(Exception):
    """What a script tells in one line; of an error of the main process that ends all, that one alone."""

    already_reported = False  # by another process


class UserError(MAEError):
    """A mistake that the user can mend: the message says what is wrong, which value, and what to do. Exit code 2."""


class RunError(MAEError):
    """What ends a run on its way, though nothing is wrong with its command. Exit code 1."""


class DataError(RunError):
    """The data is not what its index says, or cannot be read; the run cannot go on with it."""


class Interrupted(Exception):
    """A run was asked to stop, and has saved where it is."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
