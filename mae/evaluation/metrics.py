"""Metrics of classification and segmentation."""

from dataclasses import dataclass

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of images by true class (row) and predicted class (column), `(num_classes, num_classes)`."""
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Elementwise part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Average precision of each class over images with several labels: the mean of the precision at each image of the
    class, in descending order of scores. Images of equal scores count together. NaN for a class without images.

    Args:
        labels: 0 or 1, `(images, classes)`.
        scores: `(images, classes)`.
    """
    precisions = np.full(labels.shape[1], np.nan)
    for number in range(labels.shape[1]):
        order = np.argsort(-scores[:, number], kind="stable")
        hits = labels[order, number].astype(np.int64)
        if hits.sum():
            is_last_of_equals = np.append(np.diff(scores[order, number]) != 0, True)
            recalled = np.cumsum(hits)[is_last_of_equals]
            precision = recalled / (np.flatnonzero(is_last_of_equals) + 1)
            precisions[number] = (np.diff(recalled, prepend=0) * precision).sum() / hits.sum()
    return precisions


@dataclass(frozen=True)
class SegmentationScores:
    """
    Scores of each class, NaN for a class that occurs in neither truth nor prediction, and scores of all pixels.

    Args:
        iou: Intersection over union, or Jaccard index.
        dice: Dice coefficient, or F1.
        recall, precision: NaN also for a class without true, or without predicted pixels.
        pixel_accuracy: Share of the pixels whose class is predicted.
    """

    iou: np.ndarray
    dice: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    pixel_accuracy: float

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.iou))

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.dice))


def segmentation_scores(matrix: np.ndarray) -> SegmentationScores:
    """Scores of a confusion matrix of pixels, int64 by true class (row) and predicted class (column)."""
    correct, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return SegmentationScores(
        iou=ratio(correct, true + predicted - correct),
        dice=ratio(2 * correct, true + predicted),
        recall=ratio(correct, true),
        precision=ratio(correct, predicted),
        pixel_accuracy=float(correct.sum() / matrix.sum()),
    )
