"""k-nearest-neighbours accuracy of an encoder."""

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from configuration_mae import to_pair
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.features import encode
from mae.evaluation.inference import map_images
from mae.utils.errors import DataError, UserError
from modeling_mae import MAEForPreTraining


# Nearest neighbours

# Similarities that are held at once: memory does not grow with the number of images.
_SIMILARITIES = 2**24


def knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """
    Scores of classes by weighted nearest neighbours (Wu et al. 2018, as DINO evaluates): the k images whose features
    have the largest cosine with a query's vote for their class with exp(cosine / temperature).

    Args:
        features, queries: Of shape `(N, D)` and `(Q, D)`, of any norm.
        labels: Class numbers of shape `(N,)`.
        k: As many as there are, where these are fewer.

    Returns:
        `(Q, num_classes)`, in the order of the queries; the largest is the answer.
    """
    # Not in the half precision of a run that looks at itself: neighbours would change places.
    with torch.autocast(queries.device.type, enabled=False):
        return _knn_scores(features.float(), labels, queries.float(), num_classes, min(k, len(features)), temperature)


def _knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    features, queries = F.normalize(features), F.normalize(queries)
    scores = torch.zeros(len(queries), num_classes, device=queries.device)
    query_chunk = min(1024, max(len(queries), 1))
    chunk = max(_SIMILARITIES // query_chunk, k)
    for start in range(0, len(queries), query_chunk):
        some = queries[start : start + query_chunk]
        best = some.new_empty(len(some), 0)
        voters = labels.new_empty(len(some), 0)
        for first in range(0, len(features), chunk):
            candidates = torch.cat([best, some @ features[first : first + chunk].T], dim=1)
            classes = torch.cat([voters, labels[first : first + chunk].expand(len(some), -1)], dim=1)
            best, index = candidates.topk(min(k, candidates.shape[1]), dim=1)
            voters = classes.gather(1, index)
        # Less the largest, which changes no order and keeps small temperatures from overflowing.
        weights = ((best - best[:, :1]) / temperature).exp()
        scores[start : start + query_chunk].scatter_add_(1, voters, weights)
    return scores


class NeighboursEvaluator:
    """
    The accuracy of nearest neighbours on held-out images, by the encoder's cls token.

    Args:
        train, held_out: Sources with their labels, one class an image.
    """

    NUM_NEIGHBOURS = 20
    every_steps = None

    def __init__(
        self,
        train: tuple[Source, Labels],
        held_out: tuple[Source, Labels],
        every_epochs: float,
        batch_size: int,
        num_workers: int,
        retry_minutes: float,
    ):
        self.every_epochs = every_epochs
        self.sources = [train, held_out]
        self.options = {"batch_size": batch_size, "num_workers": num_workers, "retry_minutes": retry_minutes}

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        device = next(model.parameters()).device
        if isinstance(model, FSDPModule):
            # A call of its encoder alone neither sets it up nor gathers what the whole holds by itself.
            config = model.config
            blank = torch.zeros(1, config.num_channels, *to_pair(config.image_size), device=device)
            model(blank, noise=torch.linspace(0, 1, config.num_patches, device=device)[None], return_loss=False)
            model.unshard()
        found = []
        for source, labels in self.sources:
            mapped = map_images(
                lambda pixel_values, rows: {"features": encode(model.mae, pixel_values, "cls")},
                source,
                model.config,
                device,
                is_stopped=context.should_stop,
                **self.options,
            )
            if mapped is None:
                return None
            if not len(mapped.rows):
                raise DataError("None of the images for --knn_epochs can be read.")
            classes = torch.from_numpy(labels.values[mapped.rows])
            found.append((mapped.outputs["features"].to(device), classes.to(device)))
        (known, known_classes), (queries, classes) = found
        scores = knn_scores(known, known_classes, queries, len(self.sources[0][1].names), self.NUM_NEIGHBOURS)
        return Evaluation({"eval_knn_accuracy": (scores.argmax(dim=1) == classes).double().mean().item()})


# How many images of each split --knn_epochs looks at.
_NEIGHBOURS_KNOWN, _NEIGHBOURS_ASKED = 10_000, 2_000


def make_neighbours(
    source: Source,
    held_out: Source | None,
    every_epochs: float,
    seed: int,
    batch_size: int,
    num_workers: int,
    retry_minutes: float,
    label_column_name: str | None = None,
) -> NeighboursEvaluator:
    """
    [`NeighboursEvaluator`] of up to 10,000 training images and 2,000 held-out ones, of each class its share; where the
    data has no held-out images, a sixth of these 12,000 stand for them.

    Raises:
        UserError: where the data has no labels, or several for an image.
    """
    what = "--knn_epochs: the training data"
    labels = read_labels(source, what, label_column_name)
    check_classes(labels, what)
    if labels.is_multi_label:
        raise UserError("--knn_epochs is for images of one class; these have several.")
    if held_out is None:
        count = min(_NEIGHBOURS_KNOWN + _NEIGHBOURS_ASKED, len(labels.values))
        source, labels = select(source, labels, stratified_sample(labels, count, seed, "neighbours"))
        train, asked = hold_out_labelled(source, labels, 1 / 6, seed, "--knn_epochs: a share of")
    else:
        own = read_labels(held_out, "--knn_epochs: the held-out data", label_column_name, labels.names)
        train, asked = (
            select(some, known, stratified_sample(known, min(count, len(known.values)), seed, "neighbours"))
            for some, known, count in ((source, labels, _NEIGHBOURS_KNOWN), (held_out, own, _NEIGHBOURS_ASKED))
        )
    return NeighboursEvaluator(train, asked, every_epochs, batch_size, num_workers, retry_minutes)
