"""Masks as pictures: palettes, palette PNGs, overlays on images, and a figure of image, truth and prediction."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mae.data.masks import IGNORED, to_rgb
from mae.utils.files import atomic_write


# Names of classes that overlays leave uncoloured.
BACKGROUND = {"background", "bg", "none", "0"}
# Colours of the first classes without a colour of their own, told apart by most colour-blind readers (Okabe and Ito).
_FIRST_COLOURS = (0xE69F00, 0x56B4E9, 0x009E73, 0xCC79A7, 0xF0E442, 0x0072B2, 0xD55E00)
_OPACITY = 0.6
_MAX_SIDE = 400  # pixels of a picture in a figure
_CELL = 2.0  # inches
_LEGEND_COLUMN = 1.3  # inches
_MAX_LEGEND = 60


@dataclass(frozen=True)
class Example:
    """
    An image with masks, for a figure.

    Args:
        pixels: uint8 of shape `(H, W, 3)`.
        truth, prediction: Class numbers, uint8 of shape `(H, W)`.
        name: Shown above it.
    """

    pixels: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    name: str


def make_palette(names: Sequence[str], colours: Sequence[int] | None = None) -> np.ndarray:
    """Colours of classes, uint8 `(classes, 3)`: their own or, without these, black for a background, else bright."""
    if colours is not None:
        return to_rgb(colours)
    palette, number = [], 0
    for name in names:
        if name.lower() in BACKGROUND:
            palette.append(0)
            continue
        if number < len(_FIRST_COLOURS):
            palette.append(_FIRST_COLOURS[number])
        else:  # steps of the golden ratio, so that neighbours differ
            hue, value = (0.1 + number * 0.618034) % 1, (1.0, 0.75, 0.5)[number % 3]
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))
            palette.append(red << 16 | green << 8 | blue)
        number += 1
    return to_rgb(palette)


def save_mask(classes: np.ndarray, palette: np.ndarray, path: Path) -> None:
    """Save class numbers `(H, W)` as a PNG with a palette. Its values are the class numbers."""
    picture = Image.fromarray(classes.astype(np.uint8), "P")
    picture.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        picture.save(unfinished, format="PNG", optimize=False)


def overlay(pixels: np.ndarray, classes: np.ndarray, palette: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Colour an image `(H, W, 3)` by classes `(H, W)`, uint8. A background stays, ignored pixels become pale."""
    opacity = np.full(IGNORED + 1, _OPACITY, dtype=np.float32)
    opacity[[number for number, name in enumerate(names) if name.lower() in BACKGROUND]] = 0
    opacity[IGNORED] = 0.7
    colours = np.full((IGNORED + 1, 3), 255, dtype=np.float32)
    colours[: len(palette)] = palette
    result = np.empty_like(pixels)
    for row, (line, numbers) in enumerate(zip(pixels, classes)):  # a large image as floats would take much memory
        share = opacity[numbers][:, None]
        result[row] = (line * (1 - share) + colours[numbers] * share).round()
    return result


def to_picture(pixels: Tensor) -> np.ndarray:
    """An image `(C, H, W)` in the range of 8 bits as uint8 `(H, W, 3)`: the first channel alone if it is not RGB."""
    pixels = pixels.nan_to_num(0).round().clamp(0, 255).to(torch.uint8) if pixels.is_floating_point() else pixels
    pixels = pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1)
    return pixels.permute(1, 2, 0).cpu().numpy()


def shrink(example: Example) -> Example:
    """An example of at most the size that a figure shows."""
    height, width = example.truth.shape
    factor = max(height, width) / _MAX_SIDE
    if factor <= 1:
        return example
    size = max(round(height / factor), 1), max(round(width / factor), 1)

    def resize(array: np.ndarray, **options: object) -> Tensor:
        return F.interpolate(torch.from_numpy(array).float(), size, **options)

    pixels = resize(example.pixels.transpose(2, 0, 1)[None], mode="bilinear", antialias=True)[0]
    masks = resize(np.stack([example.truth, example.prediction])[None], mode="nearest-exact")[0].to(torch.uint8)
    return Example(to_picture(pixels), masks[0].numpy(), masks[1].numpy(), example.name)


def save_examples(
    examples: Sequence[Example], names: Sequence[str], palette: np.ndarray, path: Path, title: str
) -> None:
    """Draw image, truth and prediction of each example side by side, with a legend of the classes that are shown."""
    # Imported here, because training need not wait for matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from mae.evaluation.visualization import figure_style

    per_row = min(2, len(examples))
    num_rows = -(-len(examples) // per_row)
    tallest = max(example.truth.shape[0] / example.truth.shape[1] for example in examples)
    shown = [np.unique(np.stack([example.truth, example.prediction])) for example in examples]
    numbers = [number for number in np.unique(np.concatenate(shown)).tolist() if number != IGNORED]
    width = _CELL * (3 * per_row + 0.3)
    columns = max(int(width / _LEGEND_COLUMN), 1)
    handles = [
        Patch(facecolor=palette[number] / 255, edgecolor="grey", label=_short(names[number])) for number in numbers
    ][:_MAX_LEGEND]
    if any(IGNORED in some for some in shown):
        handles.append(Patch(facecolor="white", edgecolor="grey", label="ignored"))
    legend_height = 0.25 * -(-len(handles) // columns) + 0.2
    height = (_CELL * min(tallest, 2) + 0.15) * num_rows + 0.6
    with figure_style():
        figure = Figure(figsize=(width, height + legend_height), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[height, legend_height])
        groups = top.subfigures(1, per_row, wspace=0.02, squeeze=False)[0]
        for group_number, group in enumerate(groups):
            axes = group.subplots(num_rows, 3, squeeze=False)
            for row in range(num_rows):
                index = row * per_row + group_number
                _draw_example(axes[row], examples[index : index + 1], names, palette, is_first=row == 0)
        bottom.legend(handles=handles, loc="center", ncols=min(columns, len(handles)), frameon=False, fontsize=8)
        top.suptitle(title, fontsize=11 if per_row > 1 else 9)
        with atomic_write(path) as unfinished:
            figure.savefig(unfinished, dpi=120, format="png")


def _draw_example(
    axes: Sequence, examples: Sequence[Example], names: Sequence[str], palette: np.ndarray, is_first: bool
) -> None:
    for axis, column in zip(axes, ("image", "truth", "prediction")):
        axis.axis("off")
        if is_first:
            axis.set_title(column, fontsize=10)
        for example in examples:
            pixels = example.pixels
            if column != "image":
                pixels = overlay(pixels, getattr(example, column), palette, names)
            axis.imshow(pixels, interpolation="nearest")


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
