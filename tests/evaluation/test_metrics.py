"""Classification metrics against closed forms."""

import numpy as np
import pytest

from mae.evaluation.metrics import average_precision, confusion_matrix


def test_confusion_matrix_and_average_precision():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    matrix = confusion_matrix(labels, predictions, 4)
    for true, guess in np.ndindex(4, 4):
        assert matrix[true, guess] == sum((labels == true) & (predictions == guess))
    # Closed forms: all right, all wrong, one of three at the second place, all equal.
    scores = np.array([[3.0, 3, 3, 1], [2, 2, 2, 1], [1, 1, 1, 1]])
    hits = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])
    assert average_precision(hits, scores).tolist() == pytest.approx([1, 1 / 3, 1 / 2, 1 / 3])
    assert np.isnan(average_precision(np.zeros((2, 1)), np.ones((2, 1)))).all()
