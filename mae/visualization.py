"""Pictures of a run: the loss curve, and masked | reconstruction | original."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from mae.data import denormalize
from modeling_mae import MAEForPreTraining, MAEReconstructionOutput


matplotlib.rcParams["axes.spines.top"] = False
matplotlib.rcParams["axes.spines.right"] = False


def save_curve(
    metrics: list[dict], evaluations: list[dict], path: Path, label: str, title: str = "Pre-training loss"
) -> None:
    """
    The loss over the steps, single steps faint and their running mean bold, that of the images looked at meanwhile,
    and the learning rate below.

    Args:
        metrics: Lines of metrics.jsonl, with `step`, `loss` and `learning_rate`.
        evaluations: Lines of evaluations.jsonl, with `step` and `eval_loss`.
        label: What the latter are.
    """
    metrics = [line for line in metrics if line["loss"] is not None]  # not finite
    steps = np.array([line["step"] for line in metrics])
    losses = np.array([line["loss"] for line in metrics], dtype=float)
    rates = [line["learning_rate"] for line in metrics]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    window = max(len(losses) // 20, 1)
    top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="one step")
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        top.plot(steps[window - 1 :], mean, color="tab:blue", linewidth=2, label=f"mean of {window} logged steps")
    if evaluations:
        points = [line["step"] for line in evaluations], [line["eval_loss"] for line in evaluations]
        top.plot(*points, color="tab:orange", marker="o", markersize=4, label=label)
    top.set(ylabel="loss on masked patches", title=title)
    top.set_ylim(bottom=0)
    top.grid(alpha=0.3)
    top.legend(frameon=False)
    bottom.plot(steps, rates, color="tab:grey")
    bottom.set(xlabel="optimizer step", ylabel="learning rate")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    bottom.grid(alpha=0.3)
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
