"""Errors that scripts print as a single line."""

import pytest

from configuration_mae import MAEConfig
from mae.utils.errors import DataError, MAEError, RunError, UserError, configuration_errors, first_line


def test_mistakes_and_failures_are_two_kinds_of_one():
    assert issubclass(DataError, RunError) and issubclass(RunError, MAEError) and issubclass(UserError, MAEError)
    assert not issubclass(UserError, RunError)


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("  one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("\n\n"), "ValueError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_first_line_of_an_error(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"image_size": 30, "patch_size": 8}, {"mask_ratio": 2.0}])
def test_impossible_configuration_is_a_mistake_of_one_line(fields):
    with pytest.raises(UserError, match=f"^--flag: .*{list(fields)[0]}") as found, configuration_errors("--flag: "):
        MAEConfig(**fields)
    assert "\n" not in str(found.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), configuration_errors():
        raise ZeroDivisionError
