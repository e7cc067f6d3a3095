"""Pictures in rows and columns, one row for each image."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mae.evaluation.visualization import figure_style
from mae.utils.files import atomic_write


_CELL = 1.5  # inches
_MAX_COLUMNS = 8  # side by side, if several rows share a line
_TITLE_WIDTH = 14  # characters of a title for each inch


@dataclass(frozen=True)
class Row:
    """
    The pictures of an image.

    Args:
        pictures: For each column a picture `(H, W, 3)` or `(H, W)` in [0, 1], or None for an empty place.
        captions: A line below each of the first pictures.
    """

    pictures: Sequence[np.ndarray | None]
    captions: Sequence[str] = field(default=())


def save_grid(rows: Sequence[Row], columns: Sequence[str], path: Path, title: str) -> None:
    """
    Draw rows of pictures. Narrow rows stand side by side.

    Args:
        columns: A title for each column.
        path: The PNG file to write.
    """
    per_line = max(min(len(rows), _MAX_COLUMNS // len(columns)), 1)
    lines = [rows[start : start + per_line] for start in range(0, len(rows), per_line)]
    heights = [max(_height(row) for row in line) for line in lines]
    caption = 0.18 if any(row.captions for row in rows) else 0
    width = _CELL * (len(columns) * per_line + 0.4)
    words = textwrap.fill(title, max(int(width * _TITLE_WIDTH), 20))
    height = sum(_CELL * each + caption + 0.05 for each in heights) + 0.5 + 0.2 * (words.count("\n") + 1)
    with figure_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        groups = figure.subfigures(1, per_line, wspace=0.04, squeeze=False)[0]
        for number, group in enumerate(groups):
            axes = group.subplots(len(lines), len(columns), squeeze=False, height_ratios=heights)
            for line, of_line in enumerate(axes):
                index = line * per_line + number
                row = rows[index] if index < len(rows) else Row([None] * len(columns))
                for column, axis in enumerate(of_line):
                    axis.axis("off")
                    if line == 0:
                        axis.set_title(columns[column], fontsize=9)
                    if row.pictures[column] is not None:
                        picture = row.pictures[column]
                        cmap = "gray" if picture.ndim == 3 else "magma"
                        axis.imshow(picture, cmap=cmap, interpolation="nearest")
                    if column < len(row.captions):
                        text = row.captions[column]
                        place = {"transform": axis.transAxes, "ha": "center", "va": "top"}
                        axis.text(0.5, -0.02, text, fontsize=7, parse_math=False, **place)
        figure.suptitle(words, fontsize=10, parse_math=False)
        with atomic_write(path) as unfinished:
            figure.savefig(unfinished, dpi=120, format="png")


def _height(row: Row) -> float:
    """Height of a row's pictures divided by their width, within limits."""
    shapes = [picture.shape for picture in row.pictures if picture is not None]
    return float(np.clip(max(height / width for height, width, *_ in shapes), 0.3, 2))
