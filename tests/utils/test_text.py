"""Values as text."""

import os

import pytest

from mae.utils.text import encodable, flatten, listed, printable


@pytest.mark.parametrize(
    "items, text",
    [
        ([], ""),
        (["a"], "a"),
        ([1, 2, 3, 4, 5], "1, 2, 3, 4, 5"),
        (list(range(1006)), "0, 1, 2, 3, 4 and 1,001 more"),
        (["a\nb"], r"'a\nb'"),
    ],
)
def test_list_shows_the_first_items_and_counts_the_others(items, text):
    assert listed(items) == text


@pytest.mark.parametrize("name", ["plain.png", "mit Leerzeichen.png", "日本.png"])
def test_printable_name_stays_as_it_is(name):
    assert printable(name) == name


def test_name_that_is_not_utf_8_can_be_written():
    name = os.fsdecode(b"caf\xe9.png")
    with pytest.raises(UnicodeEncodeError):
        name.encode("utf-8")
    assert encodable(name).encode("utf-8") == rb"caf\udce9.png"
    assert printable(name).encode("utf-8") == rb"caf\udce9.png"


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "\x1b[31mred"])
def test_name_with_control_characters_stays_in_its_line(name):
    assert printable(name).isprintable()


def test_nested_dictionaries_become_dotted_names():
    nested = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert flatten(nested) == {"a": 1, "b.c": [2], "b.d.e": None}
