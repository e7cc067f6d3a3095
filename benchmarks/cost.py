"""
Time and peak memory of a training step against image size, batch, mask ratio and model size.

    python -m benchmarks.cost [--model_size base] [--batch_size 8] [--rounds 3] [--precision bf16] [--plot FILE.png]
    python -m benchmarks.cost --quick                          a tiny model and few points, in a minute

One value changes at a time. Each point is measured in a process of its own, forked from one that has imported
everything. Memory is the peak above that, with weights, gradients, moments of AdamW and activations. The table gives
the step's FLOPs (mae/training/flops.py) and FLOP/s beside its time. In the plot, a dashed line shows the time that the
FLOPs of each point take at the FLOP/s of the default point, which all sweeps contain. If the measured line rises above
it, the cost grows faster than its FLOPs.
"""

import argparse
import textwrap
from pathlib import Path

from benchmarks.sweeps import QUICK, SWEEPS, Cost, Point, measure_all, points_of
from benchmarks.timing import PRECISIONS, machine, mebibytes, table
from modeling_mae import num_visible_patches


TITLES = {"image_size": "image size in pixels", "batch_size": "batch", "mask_ratio": "mask ratio"}
TITLES |= {"model_size": "model size"}


def cost_table(name: str, points: list[Point], costs: dict[Point, Cost]) -> str:
    """Table of one sweep."""
    rows = []
    for point in points:
        cost, num_patches = costs[point], point.config.num_patches
        value = str(getattr(point, name))
        if name == "mask_ratio":
            value += f" ({num_visible_patches(num_patches, point.config.mask_ratio)} of {num_patches} visible)"
        speed = [f"{point.flops / 1e9:,.1f}", f"{point.flops / cost.seconds / 1e9:,.0f}"]
        rows.append([value, f"{cost.seconds:.3f} s", *speed, mebibytes(cost.memory)])
    return table([TITLES[name], "step", "GFLOP", "GFLOP/s", "peak memory"], rows)


def draw(points: dict[str, list[Point]], costs: dict[Point, Cost], default: Point, title: str, path: Path) -> None:
    """Plot step time and memory of each sweep, a column each."""
    import matplotlib  # here, because every measuring process imports this module

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rate = default.flops / costs[default].seconds
    figure, axes = plt.subplots(2, len(points), figsize=(3.6 * len(points), 6.2), squeeze=False, layout="constrained")
    for column, (name, swept) in enumerate(points.items()):
        values = [getattr(point, name) for point in swept]
        time_axis, memory_axis = axes[:, column]
        time_axis.plot(values, [costs[point].seconds for point in swept], "o-", label="measured")
        time_axis.plot(values, [point.flops / rate for point in swept], "k--", lw=1, label="in proportion to FLOPs")
        memory = [costs[point].memory for point in swept]
        if None not in memory:
            memory_axis.plot(values, [count / 2**30 for count in memory], "o-", color="tab:orange")
        for axis in (time_axis, memory_axis):
            axis.set_xlabel(TITLES[name])
            axis.grid(alpha=0.3)
            axis.margins(y=0.1)
            axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("step (s)")
    axes[1, 0].set_ylabel("peak memory (GiB)")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(textwrap.fill(title, 40 * len(points)), fontsize="medium")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", default=None, help="of the default point (default: base; tiny with --quick)")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    parser.add_argument("--batch_size", type=int, default=None, help="images a step (default: 8; 4 with --quick)")
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each point (default: 3)")
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS, help="(default: bf16)")
    parser.add_argument("--plot", type=Path, default=Path("outputs/cost.png"), help="(default: outputs/cost.png)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few points")
    arguments = parser.parse_args(argv)

    model_size = arguments.model_size or ("tiny" if arguments.quick else "base")
    batch_size = arguments.batch_size or (4 if arguments.quick else 8)
    default = Point(model_size, arguments.image_size, batch_size, mask_ratio=0.75)
    sweeps = {name: (QUICK if arguments.quick else SWEEPS)[name] for name in arguments.sweeps}
    title = f"ViT-{model_size}, {default.image_size} pixels, batch {batch_size}, {arguments.precision}"
    print(f"{machine()}\n{title}, unless the table says otherwise", flush=True)

    points = points_of(sweeps, default)
    costs = measure_all([point for swept in points.values() for point in swept], arguments.precision, arguments.rounds)
    for name, swept in points.items():
        print(f"\n{cost_table(name, swept, costs)}", flush=True)
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(points, costs, default, f"{title}; {machine()}", arguments.plot)
    print(f"\nPlot: {arguments.plot}")


if __name__ == "__main__":
    main()
