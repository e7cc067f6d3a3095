"""
Image classification on an encoder (Section 4.3 and Appendix A.1), as a task: fine-tuning, partial fine-tuning, or a
linear probe on frozen features.
"""

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from mae.arguments.classification import ClassificationRecipe
from mae.arguments.run import RunArguments
from mae.data.batch import Batch
from mae.data.crop import CropOptions
from mae.data.dataset import FeatureDataset, SampleDataset
from mae.data.labels import Labels
from mae.data.normalization import normalize_images
from mae.data.sources import Source
from mae.data.subsets import RowNumbers
from mae.data.transforms import ClassificationTransform, seeded
from mae.evaluation.features_cache import FrozenFeatures
from mae.training.optimization import LARS, make_optimizer, parameter_groups
from mae.training.transfer import PROTOCOL_NAMES, batch_seed
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEModelOutput


logger = logging.getLogger(__name__)


class Classification:
    """
    Training a [`MAEForImageClassification`], as a [`Task`].

    Mixup, cutmix, drop path and the batch norm of a linear probe depend on a whole per-device batch. They follow from
    the seed and the batch's positions: they are the same after a resume, for any number of workers, and as long as
    ranks, per-device batch and accumulation divide the batch as before.

    Args:
        labels: Labels of the source's rows.
        features: Features of a frozen encoder that does not change, to train on instead of images.

    Raises:
        UserError: if the recipe's flags do not fit together.
    """

    flops_per_image = None

    def __init__(
        self,
        model: MAEForImageClassification,
        source: Source,
        labels: Labels,
        recipe: ClassificationRecipe,
        arguments: RunArguments,
        features: FrozenFeatures | None = None,
    ):
        self.model = model
        self.source = source if features is None else RowNumbers(source)
        self.labels = labels
        self.recipe = recipe
        self.features = features
        self.name = PROTOCOL_NAMES[recipe.protocol]
        self.min_learning_rate = 0.0 if recipe.protocol == "linear" else 1e-6
        mixes = [
            mix(alpha=alpha, num_classes=len(labels.names))
            for mix, alpha in ((v2.MixUp, recipe.mixup_alpha), (v2.CutMix, recipe.cutmix_alpha))
            if alpha
        ]
        self.mix = v2.RandomChoice(mixes) if mixes else None
        if uses_frozen_features(recipe) and (self.mix is not None or recipe.random_erasing):
            raise UserError("--augmentation none excludes --mixup_alpha, --cutmix_alpha and --random_erasing.")
        if recipe.augmentation == "none" and (names := recipe.augmentation_set()):
            raise UserError(
                f"--augmentation none excludes --{names[0]} {getattr(recipe, names[0])}. Use --augmentation crop."
            )
        if recipe.augmentation == "none" and recipe.views_per_image > 1:
            raise UserError(
                f"--augmentation none gives --views_per_image {recipe.views_per_image} equal views. Leave one of them "
                "out."
            )
        if recipe.protocol == "linear" and arguments.per_device_train_batch_size < 2:
            raise UserError(
                "--per_device_train_batch_size must be at least 2, because --protocol linear normalises over it."
            )

    def dataset(self, should_stop: Callable[[], bool]) -> SampleDataset | FeatureDataset | None:
        recipe = self.recipe
        if self.features is not None:
            found = self.features(should_stop)
            if found is None:
                return None
            return FeatureDataset(found.outputs["features"], found.rows, self.labels.values, found.skipped)
        crop = None
        if recipe.augmentation != "none":
            crop = CropOptions(**{item.name: getattr(recipe, item.name) for item in fields(CropOptions)})
        transform = ClassificationTransform(
            self.model.config,
            self.labels.values,
            crop=crop,
            randaugment_magnitude=recipe.randaugment_magnitude if recipe.augmentation == "randaugment" else None,
            random_erasing=recipe.random_erasing,
            color_jitter=recipe.color_jitter,
            grayscale_prob=recipe.grayscale_prob,
        )
        return SampleDataset(transform)

    def optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.protocol == "linear":
            return LARS(parameter_groups(self.model, recipe.weight_decay), lr=0.0, momentum=recipe.adam_beta1)
        betas = recipe.adam_beta1, recipe.adam_beta2
        return make_optimizer(self.model, recipe.weight_decay, betas, recipe.layer_decay)

    def loss(self, forward: nn.Module, batch: Batch) -> Tensor:
        device, recipe = self.model.device, self.recipe
        labels = torch.as_tensor(batch.labels).to(device, non_blocking=True)
        inputs = batch.pixel_values.to(device, non_blocking=True)
        seed = batch_seed(recipe.seed, batch)
        if self.features is not None:
            arguments = {"encoder_outputs": MAEModelOutput(pooler_output=inputs)}
        else:
            # For drop path, which draws from the device's own generator; nothing else draws from it.
            if recipe.drop_path_rate or self.model.config.attention_probs_dropout_prob:
                torch.manual_seed(seed)
            arguments = {"pixel_values": normalize_images(inputs, self.model.config)}
        if self.mix is not None:
            with seeded(seed):
                arguments["pixel_values"], labels = self.mix(arguments["pixel_values"], labels)
        if recipe.label_smoothing_factor:
            labels = self.smooth(labels)
        # With unreadable images left out, a batch may be too small to normalise over.
        self.model.head_norm.train(len(inputs) > 1)
        return forward(labels=labels, **arguments).loss

    def smooth(self, labels: Tensor) -> Tensor:
        """Spread a share of each label over all classes: `(B,)` or `(B, classes)` -> `(B, classes)`."""
        num_classes, share = len(self.labels.names), self.recipe.label_smoothing_factor
        labels = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
        return labels * (1 - share) + share / num_classes

    def identity(self) -> dict[str, dict[str, Any]]:
        num_classes = len(self.labels.names)
        return {
            "data": {"labels": self.labels.fingerprint, "classes": num_classes},
            "model": {"num_labels": num_classes, "problem_type": self.labels.problem_type},
        }


def uses_frozen_features(recipe: ClassificationRecipe) -> bool:
    """Whether features do not change during training, and so are computed once."""
    return recipe.protocol == "linear" and recipe.augmentation == "none"
