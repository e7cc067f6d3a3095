"""Figures of a run."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mae.evaluation.visualization import save_confusion_matrix, save_curve, save_reconstruction
from tests.support.models import tiny_model


METRICS = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 41)]


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """The figures that are saved, by a watched `savefig`; settings of the user stay as they are."""
    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: saved.append(self) or savefig(self, *args, **kwargs)
    )
    matplotlib.rcParams["axes.spines.top"], before = True, None
    before = dict(matplotlib.rcParams)
    yield saved
    assert dict(matplotlib.rcParams) == before


def colours(path):
    return len(np.unique(np.array(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


def draw(count, path, **fields):
    model = tiny_model(image_size=(32, 64), **fields)
    pixels = torch.randn(count, model.config.num_channels, 32, 64)
    save_reconstruction(model, pixels, model.reconstruct(pixels), path, "Reconstructions, with $ and _")
    return model, pixels


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_each_image_has_three_panels(count, figures, tmp_path):
    draw(count, tmp_path / "r.png")
    (figure,) = figures
    axes = [axis for group in figure.subfigs for axis in group.axes]
    drawn = [axis for axis in axes if axis.images]
    assert len(drawn) == 3 * count
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == ["75% masked", "reconstruction", "original"] * min(2, count)
    assert colours(tmp_path / "r.png") > 50


def test_panels_hold_the_pixels(figures, tmp_path):
    model, pixels = draw(1, tmp_path / "r.png")
    masked, pasted, original = (axis.images[0].get_array() for axis in figures[0].subfigs[0].axes)
    mean, std = (np.array(value) for value in (model.config.image_mean, model.config.image_std))
    expected = np.clip(pixels[0].permute(1, 2, 0).numpy() * std + mean, 0, 1)
    np.testing.assert_allclose(original, expected, atol=1e-6)
    grey = np.isclose(masked, 0.5).all(axis=2)
    assert grey.reshape(4, 8, 8, 8).all(axis=(1, 3)).sum() == 24  # 75 % of 32 patches
    np.testing.assert_allclose(pasted[~grey], original[~grey], atol=1e-6)
    assert not np.allclose(pasted[grey], original[grey], atol=1e-2)


@pytest.mark.parametrize("channels", [1, 5])
def test_image_that_is_not_rgb_is_grey(channels, figures, tmp_path):
    draw(1, tmp_path / "r.png", num_channels=channels, image_mean=0.5, image_std=0.5)
    assert all(axis.images[0].get_array().shape == (32, 64) for axis in figures[0].subfigs[0].axes)


def lines_of(axis):
    return {line.get_label(): list(line.get_xdata()) for line in axis.lines}


def test_curve_has_losses_evaluations_and_rates(figures, tmp_path):
    evaluations = [{"step": 20, "eval_loss": 0.3}, {"step": 40, "eval_loss": 0.2}]
    save_curve(METRICS, evaluations, tmp_path / "c.png", "validation images")
    losses, rates = figures[0].axes
    assert lines_of(losses)["one step"] == list(range(1, 41)) and lines_of(losses)["validation images"] == [20, 40]
    assert lines_of(losses)["mean of 2 logged steps"] == list(range(2, 41))
    assert losses.get_ylim()[0] == 0 and list(rates.lines[0].get_ydata()) == [1e-3] * 40


def test_scores_have_an_axis_of_their_own(figures, tmp_path):
    evaluations = [{"step": 20, "eval_loss": 0.3, "eval_accuracy": 0.5, "eval_accuracy_top5": None}]
    save_curve(METRICS, evaluations, tmp_path / "c.png", "validation images")
    assert len(figures[0].axes) == 3 and lines_of(figures[0].axes[1]) == {"accuracy, validation images": [20]}


@pytest.mark.parametrize(
    "metrics",
    [
        METRICS[:1],
        [{"step": 1, "loss": None, "learning_rate": 1e-3}],  # no finite loss at all
        [{"step": 1, "loss": 0.0, "learning_rate": 0.0}],
        METRICS[:3] + [{"step": 4, "loss": None, "learning_rate": 1e-3}],
    ],
)
def test_curve_of_few_or_no_losses_is_drawn(metrics, figures, tmp_path):
    save_curve(metrics, [], tmp_path / "c.png", "validation images")
    finite = [line["step"] for line in metrics if line["loss"] is not None]
    assert lines_of(figures[0].axes[0])["one step"] == finite
    assert figures[0].axes[0].lines[0].get_marker() == "o"  # a point without a line would not be seen


@pytest.mark.parametrize("names", [["a", "b"], ["$\\frac{", "under_score^2"], ["日本", "x" * 300], ["", " "]])
def test_confusion_matrix_has_counts_and_names_as_they_are(names, figures, tmp_path):
    save_confusion_matrix(np.array([[3, 1], [0, 0]]), names, tmp_path / "m.png", "Title")
    axis = figures[0].axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["1", "3"]
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.75, 0.25], [0, 0]])  # no image of the second class
    assert [label.get_text()[:20] for label in axis.get_yticklabels()] == [name[:20] for name in names]


@pytest.mark.parametrize("classes, counts, ticks", [(20, True, True), (21, False, True), (41, False, False)])
def test_large_confusion_matrix_has_no_counts_and_then_no_names(classes, counts, ticks, figures, tmp_path):
    names = [f"class {index}" for index in range(classes)]
    save_confusion_matrix(np.eye(classes, dtype=int), names, tmp_path / "m.png", "Title")
    axis = figures[0].axes[0]
    assert (
        bool(axis.texts) == counts and ("class 0" in [label.get_text() for label in axis.get_yticklabels()]) == ticks
    )
