"""Flags as dataclass fields: rules, defaults, and what belongs to the identity of a run."""

from dataclasses import dataclass

import pytest

from mae.arguments.flags import (
    ABOVE_0,
    AT_LEAST_1,
    BELOW_1,
    BETWEEN_0_AND_1,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    UINT32,
    Arguments,
    expand_home,
    flag,
    flags_of,
    one_of,
)
from mae.utils.errors import UserError


@dataclass
class Example(Arguments):
    size: int = flag(1, "A size.", rule=AT_LEAST_1)
    names: list = flag(["a"], "Names.", changes_results=False)
    kind: str | None = flag(None, "A kind.", rule=one_of("x", "y"))
    folder: str = flag("~/data", "A folder.", is_path=True)
    title: str = flag("~/title", "A title.")


@pytest.mark.parametrize(
    "rule, inside, outside",
    [
        (POSITIVE, [1e-9, 5], [0, -1]),
        (NOT_NEGATIVE, [0, 1], [-1e-9]),
        (AT_LEAST_1, [1], [0, 0.5]),
        (FRACTION, [0, 0.5, 1], [-0.1, 1.1]),
        (BELOW_1, [0, 0.99], [1, -0.1]),
        (ABOVE_0, [1, 0.01], [0, 1.01]),
        (BETWEEN_0_AND_1, [0.5], [0, 1]),
        (UINT32, [0, 2**32 - 1], [-1, 2**32]),
        (one_of("a", "b"), ["a"], ["c", ""]),
    ],
    ids=lambda value: getattr(value, "words", None),
)
def test_rule_holds_inside_its_interval_only(rule, inside, outside):
    assert all(rule.holds(value) for value in inside)
    assert not any(rule.holds(value) for value in outside)
    not_a_number = float("nan")
    assert "one of" in rule.words or not rule.holds(not_a_number)


@pytest.mark.parametrize(
    "values, message", [({"size": 0}, "--size 0 must be at least 1"), ({"kind": "z"}, "--kind z")]
)
def test_value_against_its_rule_is_refused_when_it_is_set(values, message):
    with pytest.raises(UserError, match=message):
        Example(**values)


def test_no_value_breaks_no_rule():
    assert Example().kind is None


def test_default_list_is_of_each_instance():
    Example().names.append("b")
    assert Example().names == ["a"]


def test_flags_say_whether_they_change_results():
    assert {name for name, declared in flags_of(Example).items() if declared.changes_results} == {
        "size",
        "kind",
        "folder",
        "title",
    }


def test_tilde_is_the_home_of_the_user_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    arguments = Example()
    expand_home(arguments)
    assert arguments.folder == "/somewhere/data" and arguments.title == "~/title"
