"""The measurement of tiles runs on a small scene."""

import sys

from benchmarks import tiles


def test_both_sides_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiles", "--side", "600", "--tile_size", "300", "--rounds", "2"])
    tiles.main()
    output = capsys.readouterr().out
    assert "600 x 600 pixels, 4 tiles of 300" in output and "one tile by window" in output
