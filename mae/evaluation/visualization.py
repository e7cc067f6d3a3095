"""Figures of a run: loss curve, reconstructions, confusion matrix."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mae.data.normalization import denormalize
from mae.evaluation.neighbours import NUM_NEIGHBOURS
from modeling_mae import MAEForPreTraining, MAEReconstructionOutput


# Scores in evaluations.jsonl, and their names in the curve.
_SCORES = {
    "eval_accuracy": "accuracy",
    "eval_accuracy_top5": "top-5 accuracy",
    "eval_mean_iou": "mean IoU",
    "eval_pixel_accuracy": "pixel accuracy",
    "eval_mean_average_precision": "mean average precision",
    "eval_knn_accuracy": f"accuracy of {NUM_NEIGHBOURS} neighbours",
    "eval_probe_accuracy": "accuracy of a linear classifier",
    "eval_dense_iou": "mean IoU of patch neighbours",
}
_RANKS = {"eval_rankme": "effective rank", "eval_alpha_req": "exponent alpha"}
_COLUMNS = 3  # masked, reconstruction, original
_CELL = 1.5  # inches
# From so many logged steps on, a single step is a faint line behind a running mean instead of a line with markers.
_MANY_STEPS = 20


@contextmanager
def figure_style() -> Iterator[None]:
    """The style of all figures; the user's own settings of matplotlib stay as they are."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        yield


def save_curve(
    metrics: list[dict],
    evaluations: list[dict],
    path: Path,
    label: str,
    title: str = "Pre-training loss",
    loss_label: str = "loss on masked patches",
) -> None:
    """
    Draw the loss over the steps, the loss, scores and ranks of evaluations, and the learning rate.

    Args:
        metrics: Lines of metrics.jsonl, with `step`, `loss` and `learning_rate`.
        evaluations: Lines of evaluations.jsonl, with `step`, and `eval_loss` or scores.
        label: The images of the evaluations.
    """
    metrics = [line for line in metrics if line["loss"] is not None]  # None: not finite

    def series(name: str) -> tuple[list, list]:
        points = [(line["step"], line[name]) for line in evaluations if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    scores = {name: series(key) for key, name in _SCORES.items() if series(key)[0]}
    ranks = {name: series(key) for key, name in _RANKS.items() if series(key)[0]}
    with figure_style():
        heights = [4, *[3] * bool(scores), *[2] * bool(ranks), 1]
        figure = Figure(figsize=(8, 0.5 + sum(heights)), layout="constrained")
        top, *middle, bottom = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        _draw_losses(top, metrics, series("eval_loss"), label)
        top.set(ylabel=loss_label, title=title)
        if scores:
            _draw_scores(middle[0], scores, label)
        if ranks:
            _draw_ranks(middle[-1], ranks)
        steps, rates = [line["step"] for line in metrics], [line["learning_rate"] for line in metrics]
        bottom.plot(steps, rates, color="tab:grey", marker=_marker(steps), markersize=4, clip_on=False)
        bottom.set(xlabel="optimizer step", ylabel="learning rate")
        bottom.set_ylim(0, 1.15 * max(rates, default=0) or 1)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        bottom.grid(alpha=0.3)
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        last = max([1, *steps, *(line["step"] for line in evaluations)])
        bottom.set_xlim(0, 1.03 * last)
        figure.savefig(path, dpi=120)


def _marker(steps: list) -> str | None:
    """A line of few points shows each of them; a line of one point would show nothing without."""
    return "o" if len(steps) < _MANY_STEPS else None


def _draw_losses(axis: Axes, metrics: list[dict], evaluated: tuple[list, list], label: str) -> None:
    steps = np.array([line["step"] for line in metrics])
    losses = np.array([line["loss"] for line in metrics], dtype=float)
    window = max(len(losses) // 20, 1)
    faint = {"alpha": 0.3, "linewidth": 1} if window > 1 else {}
    axis.plot(steps, losses, color="tab:blue", marker=_marker(steps), markersize=4, label="one step", **faint)
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], mean, color="tab:blue", linewidth=2, label=f"mean of {window} logged steps")
    if evaluated[0]:
        axis.plot(*evaluated, color="tab:orange", marker="o", markersize=4, label=label)
    axis.set_ylim(0, 1.08 * max([*losses, *evaluated[1]], default=0) or 1)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _draw_scores(axis: Axes, scores: dict[str, tuple[list, list]], label: str) -> None:
    for color, (name, points) in zip(("tab:orange", "tab:green", "tab:purple", "tab:brown"), scores.items()):
        axis.plot(*points, color=color, marker="o", markersize=4, label=f"{name}, {label}")
    axis.set(ylabel="score")
    axis.set_ylim(0, 1.08 * max(max(values) for _, values in scores.values()) or 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")


def _draw_ranks(axis: Axes, ranks: dict[str, tuple[list, list]]) -> None:
    """The effective rank, and the exponent on an axis of its own at the right."""
    for own, color, (name, points) in zip((axis, axis.twinx()), ("tab:green", "tab:purple"), ranks.items()):
        own.plot(*points, color=color, marker="o", markersize=4)
        own.set_ylabel(name, color=color)
        own.set_ylim(0, 1.15 * max(points[1]) or 1)
    axis.grid(alpha=0.3)


def save_confusion_matrix(
    matrix: np.ndarray, names: Sequence[str], path: Path, title: str, show_counts: bool = True
) -> None:
    """
    Draw a confusion matrix as shares of each true class, with numbers if there are few classes.

    Args:
        matrix: Counts by true class (row) and predicted class (column).
        show_counts: Whether the numbers are counts or, if these would be too long, shares.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(max(5.0, 0.42 * len(names) + 2.5), 14)
    with figure_style():
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axis = figure.subplots()
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(picture, ax=axis, shrink=0.7, format=PercentFormatter(1), label="share of the true class")
        axis.spines[:].set_visible(False)
        axis.set(xlabel="predicted class", ylabel="true class")
        figure.suptitle(title, fontsize=11)
        if len(names) <= 40:
            shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
            axis.set_xticks(range(len(names)), shown, rotation=90, parse_math=False)
            axis.set_yticks(range(len(names)), shown, parse_math=False)
        if len(names) <= 20:
            for row, column in np.ndindex(*matrix.shape):
                if matrix[row, column]:
                    color = "white" if shares[row, column] > 0.6 else "black"
                    words = f"{matrix[row, column]}" if show_counts else f"{shares[row, column]:.1%}"
                    axis.text(column, row, words, ha="center", va="center", fontsize=8, color=color)
        figure.savefig(path, dpi=120)


def save_reconstruction(
    model: MAEForPreTraining, pixel_values: torch.Tensor, outputs: MAEReconstructionOutput, path: Path, title: str
) -> None:
    """
    Draw masked input, reconstruction and original of each image, side by side, two images in a row.

    Args:
        pixel_values: Normalised images `(B, C, H, W)`.
        outputs: The model's reconstruction of them.
    """
    config = model.config
    patches = torch.ones_like(model.patchify(pixel_values)) * outputs.mask[..., None]
    removed = model.unpatchify(patches)
    masked = torch.where(removed.bool(), 0.5, denormalize(outputs.masked, config))  # the same grey for any mean
    columns = {
        f"{config.mask_ratio:.0%} masked": masked,
        "reconstruction": denormalize(outputs.pasted, config),
        "original": denormalize(pixel_values, config),
    }
    num_images, (height, width) = len(pixel_values), pixel_values.shape[2:]
    per_row = min(2, num_images)
    num_rows = -(-num_images // per_row)
    with figure_style():
        size = _CELL * (_COLUMNS * per_row + 0.4), _CELL * height / width * num_rows + 0.9
        figure = Figure(figsize=size, layout="constrained")
        groups = figure.subfigures(1, per_row, wspace=0.04, squeeze=False)[0]
        for group_number, group in enumerate(groups):
            axes = group.subplots(num_rows, _COLUMNS, squeeze=False)
            for row, column in np.ndindex(num_rows, _COLUMNS):
                axis, index = axes[row][column], row * per_row + group_number
                name, pictures = list(columns.items())[column]
                axis.axis("off")
                if row == 0:
                    axis.set_title(name, fontsize=10)
                if index < num_images:
                    picture = pictures[index].permute(1, 2, 0).cpu().numpy()
                    # Only the first channel of an image that is not RGB.
                    picture = picture if picture.shape[2] == 3 else picture[..., 0]
                    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        figure.suptitle(title if per_row > 1 else textwrap.fill(title, 50), fontsize=11 if per_row > 1 else 9)
        figure.savefig(path, dpi=120)
