"""Grids of pictures: their places, sizes and captions."""

import numpy as np
import pytest
from PIL import Image

from mae.evaluation.grids import Row, save_grid


def flat(value, height=20, width=20):
    return np.full((height, width, 3), value)


@pytest.mark.parametrize(("count", "columns"), [(1, 3), (2, 3), (7, 3), (40, 3), (5, 9)])
def test_every_picture_is_drawn(count, columns, tmp_path):
    """Each has a colour of its own, which is found in the file."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (count, columns, 3))
    rows = [Row([np.broadcast_to(colour / 255, (6, 9, 3)) for colour in row]) for row in colours]
    save_grid(rows, [f"column {number}" for number in range(columns)], tmp_path / "a.png", "a title")
    drawn = np.array(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    sizes = {tuple(colour): size for colour, size in zip(found.tolist(), counts.tolist())}
    areas = [sizes.get(tuple(colour), 0) for colour in colours.reshape(-1, 3).tolist()]
    assert min(areas) > 1000 and max(areas) < 1.6 * min(areas)


def test_low_rows_take_little_room(tmp_path):
    for name, height in (("low", 5), ("high", 40)):
        rows = [Row([flat(0.5, height), flat(0.2, height)]) for _ in range(12)]
        save_grid(rows, ["a", "b"], tmp_path / f"{name}.png", "title")
    low, high = (Image.open(tmp_path / f"{name}.png").size for name in ("low", "high"))
    assert low[0] == high[0] and low[1] < 0.5 * high[1]


def test_captions_empty_places_and_maps_of_numbers(tmp_path):
    rows = [Row([flat(0.5), np.random.default_rng(0).random((4, 4)), None], ["", "0.123 $x_$"])]
    save_grid(rows, ["a", "b", "c"], tmp_path / "a.png", "a $title_$ of many words " * 20)
    drawn = np.array(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert (drawn.max(2) - drawn.min(2) > 50).sum() > 2000  # the map is coloured
    assert not list(tmp_path.glob("*.unfinished"))
