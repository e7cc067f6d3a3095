"""The one exception that scripts turn into a line and exit code 2."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what is wrong, which value, and what to do."""
