"""k-nearest-neighbours accuracy of an encoder."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.sampled import LabelledSample
from modeling_mae import MAEForPreTraining


# As DINO reports it.
NUM_NEIGHBOURS = 20
# Similarities in memory at once, so that memory does not grow with the number of images.
_MAX_SIMILARITIES = 2**24
_QUERIES_AT_ONCE = 1024


def knn_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = NUM_NEIGHBOURS,
    temperature: float = 0.07,
) -> Tensor:
    """
    Scores of classes by weighted nearest neighbours (Wu et al. 2018, as in DINO): the k images whose features have the
    largest cosine with a query's vote for their class with weight exp(cosine / temperature).

    Args:
        features, queries: Of shape `(N, D)` and `(Q, D)`, of any norm.
        labels: Class numbers of shape `(N,)`.
        k: Neighbours that vote, at most N.

    Returns:
        `(Q, num_classes)`, in the order of the queries. The class of the largest score is the prediction.
    """
    # Evaluation runs within the autocast of training, whose half precision would change the order of neighbours.
    with torch.autocast(queries.device.type, enabled=False):
        return _knn_scores(features.float(), labels, queries.float(), num_classes, min(k, len(features)), temperature)


def _knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    features, queries = F.normalize(features), F.normalize(queries)
    scores = torch.zeros(len(queries), num_classes, device=queries.device)
    query_chunk = min(_QUERIES_AT_ONCE, max(len(queries), 1))
    chunk = max(_MAX_SIMILARITIES // query_chunk, k)
    for start in range(0, len(queries), query_chunk):
        some = queries[start : start + query_chunk]
        best = some.new_empty(len(some), 0)
        voters = labels.new_empty(len(some), 0)
        for first in range(0, len(features), chunk):
            candidates = torch.cat([best, some @ features[first : first + chunk].T], dim=1)
            classes = torch.cat([voters, labels[first : first + chunk].expand(len(some), -1)], dim=1)
            best, index = candidates.topk(min(k, candidates.shape[1]), dim=1)
            voters = classes.gather(1, index)
        # Subtracting the largest changes no order, and a small temperature does not overflow.
        weights = ((best - best[:, :1]) / temperature).exp()
        scores[start : start + query_chunk].scatter_add_(1, voters, weights)
    return scores


@dataclass(frozen=True)
class NeighboursEvaluator:
    """
    The accuracy of nearest neighbours on validation images, by the encoder's cls token.

    Args:
        sample: The images.
        every_epochs: Epochs between two evaluations.
    """

    sample: LabelledSample
    every_epochs: float

    every_steps: ClassVar[None] = None

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        found = self.sample.encode(model, context)
        if found is None:
            return None
        scores = knn_scores(found.features, found.classes, found.queries, found.num_classes)
        hits = scores.argmax(dim=1) == found.query_classes
        return Evaluation({"eval_knn_accuracy": hits.double().mean().item()})
