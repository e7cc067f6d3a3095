"""Logistic regression on features, by scikit-learn."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mae.utils.errors import UserError


# Score of a class that no training example has. It is finite, so that averages over windows are.
_NEVER = -1e4

# Takes features `(N, D)`, returns scores `(N, classes)`.
Scorer = Callable[[Tensor], Tensor]


def check_scikit_learn(instead: str) -> None:
    """Raises a `UserError` if scikit-learn is not installed. `instead` says how to do without it."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        raise UserError(
            f"A logistic regression needs scikit-learn. Install it with `pip install scikit-learn`, or {instead}."
        ) from None


def fit_logistic(features: Tensor, classes: Tensor, num_classes: int, c: float = 1.0, max_iter: int = 1000) -> Scorer:
    """
    Fit scikit-learn's logistic regression on standardised features; returns a function that computes its logits.

    Args:
        features: float32 of shape `(N, D)`.
        classes: int64 of shape `(N,)`, of two classes at least.
        c: Inverse strength of the L2 penalty.
        max_iter: Steps of the solver at most.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    regression = LogisticRegression(C=c, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last steps change no figure that is shown
        regression.fit(((features - mean) / std).numpy(), classes.numpy())
    weight, bias = (torch.from_numpy(value).float() for value in (regression.coef_, regression.intercept_))
    seen = torch.from_numpy(regression.classes_)
    if len(seen) == 2:  # one row, the logit of the second class
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    all_weights, all_biases = torch.zeros(num_classes, weight.shape[1]), torch.full((num_classes,), _NEVER)
    all_weights[seen], all_biases[seen] = weight, bias

    def score(others: Tensor) -> Tensor:
        device = others.device
        with torch.autocast(device.type, enabled=False):
            standardised = (others.float() - mean.to(device)) / std.to(device)
            return F.linear(standardised, all_weights.to(device), all_biases.to(device))

    return score
