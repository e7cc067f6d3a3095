"""Tables and plot of the cost benchmark."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.cost import cost_table, draw
from benchmarks.sweeps import QUICK, Cost, Point, points_of
from tests.support.data import ROOT


DEFAULT = Point("tiny", 224, 4, 0.75)


def test_table_gives_flops_a_second(tmp_path):
    point = Point("tiny", 224, 4, 0.0)
    row = cost_table("mask_ratio", [point], {point: Cost(0.5, 2**30)}).splitlines()[-1].split(" | ")
    assert row[0] == "| 0.0 (195 of 196 visible)" and row[1] == "0.500 s" and row[4] == "1,024 MiB |"
    assert float(row[3].replace(",", "")) == pytest.approx(2 * float(row[2]), abs=1)


@pytest.mark.parametrize("memory", [2**30, None])
def test_plot_has_a_column_for_each_sweep(tmp_path, memory):
    points = points_of(QUICK, DEFAULT)
    costs = {point: Cost(1e-12 * point.flops, memory) for swept in points.values() for point in swept}
    sizes = []
    for names in (["image_size"], list(QUICK)):
        draw({name: points[name] for name in names}, costs, DEFAULT, "title", tmp_path / "cost.png")
        sizes.append(Image.open(tmp_path / "cost.png").size)
    assert sizes[1] == pytest.approx((4 * sizes[0][0], sizes[0][1]), abs=4)


@pytest.mark.slow
def test_quick_run_prints_all_tables_and_draws(tmp_path):
    flags = ["--quick", "--sweeps", "image_size", "--rounds", "1", "--plot", str(tmp_path / "deep" / "cost.png")]
    done = subprocess.run([sys.executable, "-m", "benchmarks.cost", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(QUICK["image_size"])
    assert Path(tmp_path / "deep" / "cost.png").exists()
