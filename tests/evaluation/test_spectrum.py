"""Measures without labels against closed forms and an independent fit."""

import math

import numpy as np
import pytest
import torch

from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.spectrum import SpectrumEvaluator, alpha_req, rankme, sample_images
from tests.support.models import tiny_model
from tests.support.samples import BrokenSource, encode, picture


def features_of_spectrum(values: np.ndarray, count: int = 500) -> torch.Tensor:
    """Centred features whose singular values are these."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((count, len(values)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    return torch.from_numpy(left @ np.diag(values) @ right)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_rankme_of_equal_directions_is_their_number(rank):
    values = np.array([2.0] * rank + [0.0] * (20 - rank))
    assert rankme(features_of_spectrum(values)) == pytest.approx(rank, rel=1e-3)


def test_rankme_is_the_entropy_of_singular_values():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    assert rankme(features_of_spectrum(shares * 7)) == pytest.approx(2**1.75, rel=1e-5)
    assert rankme(features_of_spectrum(shares) * 1000) == pytest.approx(2**1.75, rel=1e-5)  # of any scale


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("width", [8, 150])
def test_alpha_of_a_power_law_is_its_exponent(alpha, width):
    """Of eigenvalues, which are squares of singular values; the mean of the features has no part in it."""
    features = features_of_spectrum(np.arange(1, width + 1) ** (-alpha / 2)) + 5
    assert alpha_req(features) == pytest.approx(alpha, rel=1e-6)


def test_alpha_is_the_weighted_fit_of_the_authors():
    """Their code: logarithms of eigenvalues 4 to 100, weights 1 / rank, by the normal equations."""
    features = torch.randn(400, 200, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 200)
    values = np.linalg.eigvalsh(np.cov(features.double().numpy().T))[::-1]
    ranks = np.arange(4, 101)
    design = np.stack([-np.log(ranks), np.ones(97)], axis=1)
    weights = 1 / ranks[:, None]
    expected = np.linalg.solve(design.T @ (design * weights), (design * weights).T @ np.log(values[3:100]))[0]
    assert alpha_req(features) == pytest.approx(expected, rel=1e-6)


def test_too_few_directions_have_no_exponent():
    assert math.isnan(alpha_req(torch.randn(3, 50))) and math.isnan(alpha_req(torch.randn(50, 3)))
    assert rankme(torch.randn(1, 5)) == pytest.approx(1, rel=1e-4)


def test_evaluator_measures_the_mean_patch_tokens(tmp_path):
    images = [encode(picture("RGB", (40, 40 + number)), "PNG") for number in range(12)]
    source, model = BrokenSource(images), tiny_model()
    found = SpectrumEvaluator(source, 1.0, batch_size=5)(model, EvaluationContext(1, 1.0, tmp_path))
    assert found.values.keys() == {"eval_rankme", "eval_alpha_req"}
    assert 1 <= found.values["eval_rankme"] <= 12
    stopped = SpectrumEvaluator(source, 1.0, 5)(model, EvaluationContext(1, 1.0, tmp_path, lambda: True))
    assert stopped is None


def test_sample_is_at_most_2000_images_and_the_same_each_time():
    source = BrokenSource([b"image"] * 2500)
    samples = [sample_images(source, seed).row_numbers() for seed in (1, 1, 2)]
    assert len(samples[0]) == 2000 == len(set(samples[0].tolist()))
    assert np.array_equal(samples[0], samples[1]) and not np.array_equal(samples[0], samples[2])
