"""k-nearest-neighbours accuracy of an encoder."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from configuration_mae import to_pair
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.features import encode_images
from mae.evaluation.inference import EvaluationBatches
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining


# As DINO reports it.
NUM_NEIGHBOURS = 20
# Images that `make_neighbours` takes for an evaluation during pre-training.
MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 10_000, 2_000
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
        train, validation: Images with their labels, one class per image.
        every_epochs: Epochs between two evaluations.
        batch_size: Images of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
    """

    train: tuple[Source, Labels]
    validation: tuple[Source, Labels]
    every_epochs: float
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0

    every_steps: ClassVar[None] = None

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        if isinstance(model, FSDPModule):
            _gather_sharded_weights(model)
        known = self._encode(model, *self.train, "training", context)
        if known is None:
            return None
        queries = self._encode(model, *self.validation, "validation", context)
        if queries is None:
            return None
        (features, labels), (query_features, query_labels) = known, queries
        scores = knn_scores(features, labels, query_features, num_classes=len(self.train[1].names))
        hits = scores.argmax(dim=1) == query_labels
        return Evaluation({"eval_knn_accuracy": hits.double().mean().item()})

    def _encode(
        self, model: MAEForPreTraining, source: Source, labels: Labels, what: str, context: EvaluationContext
    ) -> tuple[Tensor, Tensor] | None:
        """Features and classes of the readable images, on the model's device. None if the run was asked to stop."""
        images = EvaluationBatches(source, model.config, self.batch_size, self.num_workers, self.retry_minutes)
        outputs = encode_images(model.mae, images, what, "cls", should_stop=context.should_stop)
        if outputs is None:
            return None
        device = next(model.parameters()).device
        return outputs.outputs["features"].to(device), torch.from_numpy(labels.values[outputs.rows]).to(device)


def _gather_sharded_weights(model: MAEForPreTraining) -> None:
    """Make the encoder of an FSDP2 model usable: a call of the encoder alone does not gather the model's weights."""
    config, device = model.config, next(model.parameters()).device
    blank = torch.zeros(1, config.num_channels, *to_pair(config.image_size), device=device)
    # The first forward pass of the whole sets FSDP up.
    model(blank, noise=torch.linspace(0, 1, config.num_patches, device=device)[None], return_loss=False)
    model.unshard()


def make_neighbours(
    source: Source,
    validation: Source | None,
    every_epochs: float,
    seed: int,
    batch_size: int,
    num_workers: int,
    retry_minutes: float,
    label_column_name: str | None = None,
) -> NeighboursEvaluator:
    """
    A [`NeighboursEvaluator`] of up to 10,000 training images and 2,000 validation images, stratified by class. Without
    validation images, up to 12,000 training images are taken, of which a sixth is held out.

    Raises:
        UserError: if the data has no labels, or several labels per image.
    """
    what = "--knn_epochs: the training data"
    labels = read_labels(source, what, label_column_name)
    check_classes(labels, what)
    if labels.is_multi_label:
        raise UserError("--knn_epochs needs images of one class, but these have several labels. Leave it out.")
    if validation is None:
        sample = _sample(source, labels, MAX_TRAIN_IMAGES + MAX_VALIDATION_IMAGES, seed)
        train, queries = hold_out_labelled(*sample, 1 / 6, seed, "--knn_epochs: a share of")
    else:
        others = read_labels(validation, "--knn_epochs: the validation data", label_column_name, labels.names)
        train = _sample(source, labels, MAX_TRAIN_IMAGES, seed)
        queries = _sample(validation, others, MAX_VALIDATION_IMAGES, seed)
    return NeighboursEvaluator(train, queries, every_epochs, batch_size, num_workers, retry_minutes)


def _sample(source: Source, labels: Labels, count: int, seed: int) -> tuple[Source, Labels]:
    return select(source, labels, stratified_sample(labels, min(count, len(labels.values)), seed, "neighbours"))
