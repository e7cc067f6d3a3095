"""
Segmentation by the patch tokens of a frozen encoder, without training: nearest neighbours, or a logistic regression.

As for the frozen features of DINOv3 and CAPI, a patch of the training images has the class that most of its pixels
have. The scores of patches are interpolated to pixels.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from configuration_mae import to_pair
from dense_mae import SegmentationMixin, window_starts
from mae.data.mask_rows import Masks
from mae.data.masks import IGNORED, MaskCoding
from mae.data.normalization import normalize_images
from mae.data.segmentation import MaskedImageTransform
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.inference import EvaluationBatches
from mae.evaluation.logistic import Scorer, check_scikit_learn, fit_logistic
from mae.evaluation.neighbours import NUM_NEIGHBOURS, knn_scores
from mae.evaluation.segmentation import SegmentationEvaluator
from mae.utils.errors import DataError, UserError
from modeling_mae import MAEForPreTraining, MAEModel


# Patches of a training run's evaluations, and images of each side.
NUM_PATCHES, MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 20_000, 200, 50


@dataclass
class LabelledPatches:
    """
    Features of patches and their classes.

    Args:
        features: float32 of shape `(N, D)`.
        classes: int64 of shape `(N,)`.
    """

    features: Tensor
    classes: Tensor


def patch_classes(labels: np.ndarray, patch_size: tuple[int, int], num_classes: int) -> np.ndarray:
    """
    The most frequent class among the pixels of each patch that count, in raster order; the smallest one of equals.

    Args:
        labels: Classes of pixels `(H, W)`, of whole patches.

    Returns:
        int64 of shape `(H / p * W / p,)`, `IGNORED` for a patch in which no pixel counts.
    """
    rows, columns = labels.shape[0] // patch_size[0], labels.shape[1] // patch_size[1]
    numbers = np.arange(rows * columns).reshape(rows, columns).repeat(patch_size[0], 0).repeat(patch_size[1], 1)
    is_counted = labels != IGNORED
    pairs = numbers[is_counted] * num_classes + labels[is_counted]
    counts = np.bincount(pairs, minlength=rows * columns * num_classes).reshape(-1, num_classes)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), IGNORED)


def encode_patches(encoder: MAEModel, pixel_values: Tensor, layer: int | None = None) -> Tensor:
    """Patch tokens of images, float32 of shape `(B, L, D)`. `layer` is as for [`encode`]."""
    outputs = encoder(pixel_values, output_hidden_states=layer is not None, return_dict=True)
    tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    return tokens[:, 1:].float()


def collect_patches(
    encoder: MAEModel,
    source: Source,
    masks: Masks,
    coding: MaskCoding,
    max_patches: int = NUM_PATCHES,
    layer: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    retry_minutes: float = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> LabelledPatches | None:
    """
    Patches of all images with their classes, equally many of each image, drawn by `seed`. Images are cut into windows
    of the encoder's size, in their own resolution. Every rank calls this, and all get the same patches.

    Args:
        max_patches: Number of patches of all images together. Each image gives at least one.
        batch_size: Windows that are encoded at once.
        should_stop: Called before each image, on every rank; None is returned if it returned true.

    Raises:
        DataError: if there is no patch, because no image can be read or no pixel counts.
    """
    images = EvaluationBatches(source, encoder.config, 1, num_workers, retry_minutes)
    own_masks = masks[np.arange(images.first, images.last)]
    images.transform = MaskedImageTransform(encoder.config, own_masks, coding)
    share = max(max_patches // max(images.num_images, 1), 1)
    found: list[tuple[int, Tensor, Tensor]] = []
    for batch in images:
        if should_stop():
            return None
        for row in batch.rows:  # one, or none
            image, labels = batch.pixel_values[0], np.asarray(batch.labels[0])
            drawn = np.random.default_rng((seed, row))
            features, classes = _patches_of_image(
                encoder, image, labels, len(coding.names), share, drawn, layer, batch_size
            )
            found.append((row, features.cpu(), torch.from_numpy(classes)))
    if PartialState().num_processes > 1:
        found = gather_object(found)
    found.sort(key=lambda item: item[0])
    if not any(len(classes) for _, _, classes in found):
        raise DataError(
            f"No patch of the {images.num_images:,} training images has a class: {len(found):,} images could be read, "
            "and all their pixels are ignored."
        )
    return LabelledPatches(torch.cat([item[1] for item in found]), torch.cat([item[2] for item in found]))


@torch.no_grad()
def _patches_of_image(
    encoder: MAEModel,
    image: Tensor,
    labels: np.ndarray,
    num_classes: int,
    share: int,
    drawn: np.random.Generator,
    layer: int | None,
    batch_size: int,
) -> tuple[Tensor, np.ndarray]:
    """Features and classes of up to `share` patches of one image."""
    config, device = encoder.config, next(encoder.parameters()).device
    window = to_pair(config.image_size)
    starts = [window_starts(length, side, overlap=0) for length, side in zip(labels.shape, window)]
    corners = list(itertools.product(*starts))
    padding = [(0, max(side - length, 0)) for side, length in zip(window, labels.shape)]
    labels = np.pad(labels, padding, constant_values=IGNORED)
    classes = np.stack(
        [
            patch_classes(
                labels[top : top + window[0], left : left + window[1]], to_pair(config.patch_size), num_classes
            )
            for top, left in corners
        ]
    )
    candidates = np.flatnonzero(classes != IGNORED)
    chosen = np.sort(drawn.permutation(candidates)[:share])
    windows, patches = np.divmod(chosen, classes.shape[1])
    features = [torch.zeros(0, config.hidden_size, device=device)]
    needed = np.unique(windows)
    for start in range(0, len(needed), batch_size):
        some = needed[start : start + batch_size]
        cut = [image[:, top : top + window[0], left : left + window[1]] for top, left in (corners[n] for n in some)]
        pixels = normalize_images(torch.stack(cut).to(device), config)
        tokens = encode_patches(encoder, F.pad(pixels, (0, padding[1][1], 0, padding[0][1])), layer)
        is_here = np.isin(windows, some)
        places = np.searchsorted(some, windows[is_here])
        features.append(tokens[places, patches[is_here]])
    return torch.cat(features), classes.ravel()[chosen]


def knn_scorer(
    patches: LabelledPatches, num_classes: int, k: int = NUM_NEIGHBOURS, temperature: float = 0.07
) -> Scorer:
    """Shares of the votes of the nearest training patches, see [`knn_scores`]."""

    def score(tokens: Tensor) -> Tensor:
        features, classes = patches.features.to(tokens.device), patches.classes.to(tokens.device)
        votes = knn_scores(features, classes, tokens, num_classes, k, temperature)
        return votes / votes.sum(dim=1, keepdim=True)

    return score


def logistic_scorer(patches: LabelledPatches, num_classes: int, c: float = 1.0) -> Scorer:
    """
    Logits of scikit-learn's logistic regression on standardised features.

    Args:
        c: Inverse strength of the L2 penalty.

    Raises:
        UserError: if scikit-learn is not installed, or all patches have one class.
    """
    check_scikit_learn("pass --methods knn")
    classes = patches.classes.unique()
    if len(classes) < 2:
        raise UserError(
            f"All {len(patches.classes):,} training patches have class {classes[0]}, but a logistic regression needs "
            "two classes. Check the masks, or pass --methods knn."
        )
    return fit_logistic(patches.features, patches.classes, num_classes, c)


class PatchSegmenter(SegmentationMixin, nn.Module):
    """
    A segmenter without training: scores of the patch tokens of a frozen encoder, interpolated to pixels.

    Args:
        layer: As for [`encode`].
    """

    def __init__(self, encoder: MAEModel, score: Scorer, num_classes: int, layer: int | None = None):
        super().__init__()
        self.encoder = encoder
        self.score = score
        self.layer = layer
        self.config = copy.deepcopy(encoder.config)
        self.config.num_labels = num_classes

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        tokens = encode_patches(self.encoder, pixel_values, self.layer)
        size, patch_size = pixel_values.shape[2:], to_pair(self.config.patch_size)
        grid = [side // patch for side, patch in zip(size, patch_size)]
        scores = self.score(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        maps = scores.transpose(1, 2).unflatten(2, grid)
        return SemanticSegmenterOutput(logits=F.interpolate(maps, size, mode="bilinear", align_corners=False))


@dataclass(frozen=True)
class DenseFeaturesEvaluator:
    """
    Mean IoU of nearest neighbours of patches on validation images, by the encoder's patch tokens, see
    [`SegmentationEvaluator`].

    Args:
        train, validation: Images with their masks.
        every_epochs: Epochs between two evaluations.
        batch_size: Windows of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
    """

    train: tuple[Source, Masks]
    validation: tuple[Source, Masks]
    coding: MaskCoding
    every_epochs: float
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0

    every_steps: ClassVar[None] = None

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        reading = {"num_workers": self.num_workers, "retry_minutes": self.retry_minutes}
        patches = collect_patches(
            model.mae, *self.train, self.coding, batch_size=self.batch_size, should_stop=context.should_stop, **reading
        )
        if patches is None:
            return None
        num_classes = len(self.coding.names)
        segmenter = PatchSegmenter(model.mae, knn_scorer(patches, num_classes), num_classes).eval()
        evaluate = SegmentationEvaluator(*self.validation, self.coding, None, self.batch_size, **reading)
        found = evaluate(segmenter, context)
        if found is None:
            return None
        return replace(found, values={"eval_dense_iou": found.values["eval_mean_iou"]})
