"""Classification metrics."""

import numpy as np


# Classifiers
def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of a class (row) are taken for another (column), `(num_classes, num_classes)`."""
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Of each class, over images with several labels: the mean precision at each image that has it, in the order of their
    scores, images of equal scores together; NaN for a class that no image has.

    Args:
        labels: 0 or 1, `(images, classes)`.
        scores: `(images, classes)`.
    """
    found = np.full(labels.shape[1], np.nan)
    for number in range(labels.shape[1]):
        order = np.argsort(-scores[:, number], kind="stable")
        hits = labels[order, number].astype(np.int64)
        if hits.sum():
            last = np.append(np.diff(scores[order, number]) != 0, True)  # of its equals
            recalled = np.cumsum(hits)[last]
            precision = recalled / (np.flatnonzero(last) + 1)
            found[number] = (np.diff(recalled, prepend=0) * precision).sum() / hits.sum()
    return found
