"""Names that are no path: mistyped ones, and those of the Hub."""

import logging

import pytest

from mae.utils.paths import announce_hub, may_be_a_path, near_path
from tests.support.fake_hub import Hub


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name, expected", [("data/photoz", True), ("photoz", True), ("me/photos", False), ("a" * 300 + "/b", False)]
)
def test_name_may_be_a_path_if_its_folder_exists(name, expected, folder):
    assert may_be_a_path(name) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("data/photoz", " (did you mean data/photos?)"),
        ("dat", " (did you mean data?)"),
        ("data/emoji", ""),
        ("me/photos", ""),
        ("a\0b", ""),
    ],
)
def test_near_path_is_one_of_the_same_folder(name, expected, folder):
    assert near_path(name) == expected


@pytest.mark.parametrize("minutes, words", [(10, "retried for 10 minutes"), (0, "without retries")])
def test_announcement_names_the_hub_and_the_time(minutes, words, hub: Hub, caplog):
    with caplog.at_level(logging.INFO, logger="mae"):
        announce_hub("--dataset_name me/photos", minutes)
    (line,) = caplog.messages
    assert "--dataset_name me/photos" in line and hub.url in line and words in line
