"""Files are written whole or not at all."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest

from mae.utils.files import atomic_write, write_json, write_table, write_text
from tests.support.data import ROOT


def test_error_while_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        with atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_kill_while_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = """if True:
        import pathlib, sys, time
        from mae.utils.files import atomic_write
        with atomic_write(pathlib.Path(sys.argv[1])) as unfinished:
            unfinished.write_text("half")
            print("written", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old"


def test_new_text_replaces_the_old_and_nothing_else_remains(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "ä\n"):
        write_text(path, text)
    assert path.read_bytes() == "ä\n".encode() and list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "file.txt", "text")


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": tmp_path})
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == {
        "a": None,
        "b": None,
        "c": 1.5,
        "d": str(tmp_path),
    }


def test_table_is_csv_of_any_text(tmp_path):
    path = tmp_path / "table.csv"
    names = ['comma, and "quote"', "two\nlines", os.fsdecode(b"caf\xe9"), "日本"]
    write_table(path, {"name": names, "number": [1, 2, 3, 4]})
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["name"] for row in rows] == [*names[:2], r"caf\udce9", "日本"]
