"""Logistic regression by scikit-learn: its logits, absent classes, and the error if it is missing."""

import sys

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mae.evaluation.logistic import check_scikit_learn, fit_logistic
from mae.utils.errors import UserError


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_are_the_logits_of_scikit_learn(num_classes):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator) * 3 + 1
    classes = torch.randint(0, num_classes, (200,), generator=generator)
    score = fit_logistic(features, classes, num_classes, c=0.1)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(standardised.numpy(), classes.numpy())
    found = score(features).softmax(dim=1).numpy()
    assert found == pytest.approx(expected.predict_proba(standardised.numpy()), abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(score(features), score(features))


def test_class_that_no_example_has_is_never_predicted():
    features, classes = torch.randn(50, 3), torch.tensor([0, 3]).repeat(25)
    scores = fit_logistic(features, classes, 5)(torch.randn(100, 3) * 10)
    assert scores.shape == (100, 5) and set(scores.argmax(dim=1).tolist()) <= {0, 3} and scores.isfinite().all()


def test_few_steps_do_not_warn(recwarn):
    fit_logistic(torch.randn(100, 20) * 100, torch.randint(0, 3, (100,)), 3, c=1e6, max_iter=2)
    assert not recwarn.list


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match="needs scikit-learn. Install it with .*, or leave out --probe_epochs."):
        check_scikit_learn("leave out --probe_epochs")
