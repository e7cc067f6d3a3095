"""Pictures of a run: the loss curve, and masked | reconstruction | original."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mae.data.normalization import denormalize
from modeling_mae import MAEForPreTraining, MAEReconstructionOutput


matplotlib.rcParams["axes.spines.top"] = False
matplotlib.rcParams["axes.spines.right"] = False

# What of evaluations.jsonl is drawn as a share, and what it is called there.
_SCORES = {
    "eval_accuracy": "accuracy",
    "eval_accuracy_top5": "top-5 accuracy",
    "eval_mean_average_precision": "mean average precision",
    "eval_knn_accuracy": "accuracy of 20 neighbours",
}


def save_curve(
    metrics: list[dict],
    evaluations: list[dict],
    path: Path,
    label: str,
    title: str = "Pre-training loss",
    loss_label: str = "loss on masked patches",
) -> None:
    """
    The loss over the steps, single steps faint and their running mean bold, that of the images looked at meanwhile,
    their scores where there are any, and the learning rate below.

    Args:
        metrics: Lines of metrics.jsonl, with `step`, `loss` and `learning_rate`.
        evaluations: Lines of evaluations.jsonl, with `step`, and `eval_loss` or scores.
        label: What the latter are of.
    """
    metrics = [line for line in metrics if line["loss"] is not None]  # not finite
    steps = np.array([line["step"] for line in metrics])
    losses = np.array([line["loss"] for line in metrics], dtype=float)
    rates = [line["learning_rate"] for line in metrics]

    def series(name: str) -> tuple[list, list]:
        points = [(line["step"], line[name]) for line in evaluations if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    scores = {name: series(key) for key, name in _SCORES.items() if series(key)[0]}
    figure = Figure(figsize=(8, 8 if scores else 5.5), layout="constrained")
    ratios = [4, 3, 1] if scores else [4, 1]
    top, *middle, bottom = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    window = max(len(losses) // 20, 1)
    top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="one step")
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        top.plot(steps[window - 1 :], mean, color="tab:blue", linewidth=2, label=f"mean of {window} logged steps")
    if series("eval_loss")[0]:
        top.plot(*series("eval_loss"), color="tab:orange", marker="o", markersize=4, label=label)
    top.set(ylabel=loss_label, title=title)
    top.set_ylim(bottom=0)
    top.grid(alpha=0.3)
    top.legend(frameon=False)
    for axis in middle:
        for color, (name, points) in zip(("tab:orange", "tab:green"), scores.items()):
            axis.plot(*points, color=color, marker="o", markersize=4, label=f"{name}, {label}")
        axis.set(ylabel="score")
        axis.set_ylim(0, 1.08 * max(max(values) for _, values in scores.values()) or 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right")
    bottom.plot(steps, rates, color="tab:grey")
    bottom.set(xlabel="optimizer step", ylabel="learning rate")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    bottom.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def save_confusion_matrix(matrix: np.ndarray, names: list[str], path: Path, title: str) -> None:
    """
    Which classes are taken for which, as shares of the images of a class; with numbers where there is room for them.

    Args:
        matrix: Counts, the true class by the predicted one.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(max(5.0, 0.42 * len(names) + 2.5), 14)
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
                axis.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=8, color=color)
    figure.savefig(path, dpi=120)


def save_reconstruction(
    model: MAEForPreTraining, pixel_values: torch.Tensor, outputs: MAEReconstructionOutput, path: Path, title: str
) -> None:
    """
    Masked input, reconstruction and original of each image, side by side.

    Args:
        pixel_values: Normalised images `(B, C, H, W)`, of which the model has made `outputs`.
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

    per_row = 2  # triptychs
    num_rows = -(-len(pixel_values) // per_row)
    height, width = pixel_values.shape[2:]
    cell = 1.5
    figure = Figure(figsize=(cell * (3 * per_row + 0.4), cell * height / width * num_rows + 0.9), layout="constrained")
    groups = figure.subfigures(1, per_row, wspace=0.04, squeeze=False)[0]
    for group_number, group in enumerate(groups):
        axes = group.subplots(num_rows, 3, squeeze=False)
        for row in range(num_rows):
            index = row * per_row + group_number
            for column, (name, pictures) in enumerate(columns.items()):
                axis = axes[row][column]
                axis.axis("off")
                if index < len(pixel_values):
                    picture = pictures[index].permute(1, 2, 0).cpu().numpy()
                    # The first channel alone stands for images that are not RGB.
                    picture = picture if picture.shape[2] == 3 else picture[..., 0]
                    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if row == 0:
                    axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
