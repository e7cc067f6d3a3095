"""Features of a sample of labelled images, which several evaluations during pre-training share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from configuration_mae import to_pair
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.sources import Source
from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.features import encode_images
from mae.evaluation.inference import EvaluationBatches
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining


# Images that `sample_labelled` takes.
MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 10_000, 2_000


@dataclass(frozen=True)
class LabelledFeatures:
    """
    Features of training and validation images `(N, D)`, and their classes `(N,)`.

    Args:
        num_classes: Number of classes of the labels.
    """

    features: Tensor
    classes: Tensor
    queries: Tensor
    query_classes: Tensor
    num_classes: int


@dataclass
class LabelledSample:
    """
    Training and validation images with one class each, of which the encoder's cls tokens are computed.

    Args:
        train, validation: Images with their labels.
        batch_size: Images of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
    """

    train: tuple[Source, Labels]
    validation: tuple[Source, Labels]
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0
    _last: tuple[int, LabelledFeatures] | None = field(default=None, repr=False)

    def encode(self, model: MAEForPreTraining, context: EvaluationContext) -> LabelledFeatures | None:
        """
        The features after a step, on the model's device. They are computed once for all evaluations of the step. A
        collective. None if the run was asked to stop.
        """
        if self._last is not None and self._last[0] == context.step:
            return self._last[1]
        if isinstance(model, FSDPModule):
            gather_sharded_weights(model)
        found = []
        for what, (source, labels) in (("training", self.train), ("validation", self.validation)):
            images = EvaluationBatches(source, model.config, self.batch_size, self.num_workers, self.retry_minutes)
            outputs = encode_images(model.mae, images, what, "cls", should_stop=context.should_stop)
            if outputs is None:
                return None
            device = next(model.parameters()).device
            found += [outputs.outputs["features"].to(device), torch.from_numpy(labels.values[outputs.rows]).to(device)]
        features = LabelledFeatures(*found, len(self.train[1].names))  # type: ignore[call-arg]
        self._last = context.step, features
        return features


def gather_sharded_weights(model: MAEForPreTraining) -> None:
    """Make the encoder of an FSDP2 model usable: a call of the encoder alone does not gather the model's weights."""
    config, device = model.config, next(model.parameters()).device
    blank = torch.zeros(1, config.num_channels, *to_pair(config.image_size), device=device)
    # The first forward pass of the whole sets FSDP up.
    model(blank, noise=torch.linspace(0, 1, config.num_patches, device=device)[None], return_loss=False)
    model.unshard()


def sample_labelled(
    source: Source,
    validation: Source | None,
    flag: str,
    seed: int,
    batch_size: int,
    num_workers: int,
    retry_minutes: float,
    label_column_name: str | None = None,
) -> LabelledSample:
    """
    A [`LabelledSample`] of up to 10,000 training images and 2,000 validation images, stratified by class. Without
    validation images, up to 12,000 training images are taken, of which a sixth is held out.

    Args:
        flag: The flag that asks for it, for errors.

    Raises:
        UserError: if the data has no labels, or several labels per image.
    """
    what = f"{flag}: the training data"
    labels = read_labels(source, what, label_column_name)
    check_classes(labels, what)
    if labels.is_multi_label:
        raise UserError(f"{flag} needs images of one class, but these have several labels. Leave it out.")
    if validation is None:
        sample = _sample(source, labels, MAX_TRAIN_IMAGES + MAX_VALIDATION_IMAGES, seed)
        train, queries = hold_out_labelled(*sample, 1 / 6, seed, f"{flag}: a share of")
    else:
        others = read_labels(validation, f"{flag}: the validation data", label_column_name, labels.names)
        train = _sample(source, labels, MAX_TRAIN_IMAGES, seed)
        queries = _sample(validation, others, MAX_VALIDATION_IMAGES, seed)
    return LabelledSample(train, queries, batch_size, num_workers, retry_minutes)


def _sample(source: Source, labels: Labels, count: int, seed: int) -> tuple[Source, Labels]:
    return select(source, labels, stratified_sample(labels, min(count, len(labels.values)), seed, "neighbours"))
