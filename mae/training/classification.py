"""
Training a classifier on an encoder (Section 4.3 and Appendix A.1), as a task of the training loop: all weights, the
last blocks, or a classifier on frozen features.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from configuration_mae import MAEConfig
from mae.data.batch import Batch
from mae.data.labels import Labels
from mae.data.loader import make_loader
from mae.data.normalization import normalize
from mae.data.sources import Source
from mae.data.transforms import ClassificationTransform, SampleDataset, seeded
from mae.evaluation.accuracy import AccuracyEvaluator
from mae.evaluation.features import _read_features, _write_features, encode
from mae.evaluation.inference import Outputs, map_images
from mae.training.loop import Training
from mae.training.optimization import LARS, make_optimizer, parameter_groups
from mae.training.run_directory import RunDirectory
from mae.utils.errors import DataError, UserError
from mae.utils.hashing import hash_key, hash_weights
from modeling_mae import MAEForImageClassification, MAEModelOutput


logger = logging.getLogger(__name__)


def freeze_encoder(model: MAEForImageClassification, num_trainable_blocks: float = 0) -> None:
    """
    Leaves only the classifier to be trained and, for partial fine-tuning (Figure 9), the encoder's last blocks with
    the norm after them. 0.5 is the MLP of the last block, with its norm.

    Raises:
        UserError: for another number.
    """
    depth = len(model.mae.blocks)
    if not (num_trainable_blocks == 0.5 or num_trainable_blocks in range(depth + 1)):
        raise UserError(
            f"--num_trainable_blocks {num_trainable_blocks:g} must be 0.5, or a whole number up to {depth}."
        )
    model.mae.requires_grad_(False)
    last = model.mae.blocks[-1]
    trained = [last.norm2, last.mlp]
    if num_trainable_blocks != 0.5:
        trained = list(model.mae.blocks[depth - int(num_trainable_blocks) :])
    for module in [*trained, model.mae.norm] if trained else []:
        module.requires_grad_(True)


class Classification(Training):
    """
    A run that trains a [`MAEForImageClassification`].

    What is of a whole micro-batch, mixup, cutmix, drop path and the batch norm of a linear probe, follows from the
    seed and the batch's positions: it is the same after a resume, for any number of workers, and as long as processes,
    micro-batches and accumulation divide the batch as before.

    Args:
        labels: Of the source's rows.
        accuracy: The evaluator, which is given the features of a frozen encoder too.
    """

    task = "fine-tuning"

    def __init__(self, model, source, recipe, arguments, accelerator, accuracy: AccuracyEvaluator, labels: Labels):
        self.labels = labels
        self.accuracy = accuracy
        # What does not change is computed once.
        self.is_cached = recipe.protocol == "linear" and recipe.augmentation == "none"
        self.features: Outputs | None = None
        self.min_learning_rate = 0.0 if recipe.protocol == "linear" else 1e-6
        mixes = [
            mix(alpha=alpha, num_classes=len(labels.names))
            for mix, alpha in ((v2.MixUp, recipe.mixup_alpha), (v2.CutMix, recipe.cutmix_alpha))
            if alpha
        ]
        self.mix = v2.RandomChoice(mixes) if mixes else None
        if self.is_cached and (self.mix is not None or recipe.random_erasing):
            raise UserError("--augmentation none excludes --mixup_alpha, --cutmix_alpha and --random_erasing.")
        if recipe.protocol != "finetune":
            self.task = "linear probe" if recipe.protocol == "linear" else "partial fine-tuning"
        if recipe.protocol == "linear" and arguments.per_device_train_batch_size < 2:
            raise UserError("--per_device_train_batch_size must be 2 or more: --protocol linear normalises over it.")
        if self.is_cached:
            if accelerator.is_fsdp2:
                raise UserError("FSDP does not go with --augmentation none here: a classifier is small, use DDP.")
            self.encoder = hash_weights(model.mae)
        super().__init__(model, source, recipe, arguments, accelerator, [accuracy])
        accuracy.options = {"num_workers": self.num_workers, "retry_minutes": arguments.data_retry_minutes}

    @property
    def identity(self) -> dict:
        identity = super().identity
        identity["data"] |= {"labels": self.labels.fingerprint, "classes": len(self.labels.names)}
        identity["model"] |= {"num_labels": len(self.labels.names), "problem_type": self.labels.problem_type}
        return identity

    def make_examples(self) -> ClassificationTransform:
        recipe = self.recipe
        crops = recipe.augmentation != "none"
        return ClassificationTransform(
            self.model.config,
            self.labels.values,
            min_crop_area=recipe.min_crop_area if crops else None,
            randaugment_magnitude=recipe.randaugment_magnitude if recipe.augmentation == "randaugment" else None,
            random_erasing=recipe.random_erasing,
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.protocol == "linear":
            return LARS(parameter_groups(self.model, recipe.weight_decay), lr=0.0, momentum=recipe.adam_beta1)
        betas = recipe.adam_beta1, recipe.adam_beta2
        return make_optimizer(self.model, recipe.weight_decay, betas, recipe.layer_decay)

    def compute_loss(self, batch: Batch) -> torch.Tensor:
        device, recipe = self.accelerator.device, self.recipe
        labels = torch.as_tensor(batch.labels).to(device, non_blocking=True)
        inputs = batch.pixel_values.to(device, non_blocking=True)
        seed = int.from_bytes(hash_key("batch", recipe.seed, batch.keys[:8]), "big") >> 1
        if self.features is not None:
            arguments = {"encoder_outputs": MAEModelOutput(pooler_output=inputs)}
        else:
            # For drop path, which draws from the device's own generator; nothing else draws from it.
            if recipe.drop_path_rate or self.model.config.attention_probs_dropout_prob:
                torch.manual_seed(seed)
            arguments = {"pixel_values": normalize(inputs, self.model.config)}
        if self.mix is not None:
            with seeded(seed):
                arguments["pixel_values"], labels = self.mix(arguments["pixel_values"], labels)
        if recipe.label_smoothing_factor:
            num_classes = len(self.labels.names)
            labels = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
            labels = labels * (1 - recipe.label_smoothing_factor) + recipe.label_smoothing_factor / num_classes
        # A batch that images are missing of may have too few to normalise over.
        self.model.head_norm.train(len(inputs) > 1)
        return self.prepared(labels=labels, **arguments).loss

    # Features of a frozen encoder

    def prepare_data(self, run: RunDirectory, is_stopped: Callable[[], bool]) -> bool:
        if not self.is_cached:
            return True
        self.features = self._features("training", self.source, is_stopped)
        if self.features is not None:
            self.accuracy.features = self._features("held-out", self.accuracy.source, is_stopped)
        return self.accuracy.features is not None

    def _features(self, name: str, source: Source, is_stopped: Callable[[], bool]) -> Outputs | None:
        """Of all images of a source, from the cache where they are there; None where it was stopped."""
        config, accelerator = self.model.config, self.accelerator
        own = {name: getattr(config, name) for name in MAEConfig.__annotations__}
        own |= {"encoder": self.encoder, "data": source.fingerprint, "tf32": self.arguments.tf32}
        key = hash_key("features", json.dumps(own, sort_keys=True), accelerator.mixed_precision, size=16).hex()
        path = Path(datasets.config.HF_DATASETS_CACHE) / "features" / f"{key}.safetensors"
        kept = _read_features(path)
        # All of them compute what one machine lacks.
        is_there = torch.tensor(int(kept is not None), device=accelerator.device)
        if int(accelerator.reduce(is_there, "sum")) == accelerator.num_processes:
            logger.info(f"Features of the {len(kept.rows):,} {name} images: computed before, {path}")
            return kept
        self.model.eval()
        total = sum(source.group_sizes)
        with (
            tqdm(total=total, desc=f"features, {name}", unit="image", disable=not accelerator.is_main_process) as bar,
            accelerator.autocast(),
        ):
            mapped = map_images(
                lambda pixel_values, rows: {"features": encode(self.model.mae, pixel_values, config.pooling)},
                source,
                config,
                accelerator.device,
                self.arguments.per_device_train_batch_size,
                self.num_workers,
                self.arguments.data_retry_minutes,
                is_stopped,
                bar.update,
            )
        self.model.train()
        if mapped is not None and not len(mapped.rows):
            raise DataError(f"None of the {total:,} {name} images can be read: {mapped.skipped[0][1]}.")
        if mapped is not None and PartialState().is_local_main_process and not mapped.skipped:
            _write_features(path, mapped)
        return mapped

    def _make_loader(self, first_step: int) -> DataLoader:
        if self.features is None:
            return super()._make_loader(first_step)
        stream = self.make_stream(first_step, _Rows(self.source))
        return make_loader(stream, FeatureDataset(self.features, self.labels.values))


class _Rows:
    """A source of which only the order counts: its rows hold nothing."""

    def __init__(self, source: Source):
        self.group_sizes = source.group_sizes
        self.origin = source.origin
        self.num_readers = 1

    def read(self, group: int, first_row: int) -> Iterator[bytes]:
        for _ in range(first_row, self.group_sizes[group]):
            yield b""


class FeatureDataset(SampleDataset):
    """Features in the place of images, a micro-batch at once."""

    def __init__(self, features: Outputs, labels: np.ndarray):
        self.features = features.outputs["features"]
        self.labels = labels
        self.reasons = dict(features.skipped)
        self.places = np.full(len(labels), -1)
        self.places[features.rows] = np.arange(len(features.rows))

    def __getitems__(self, samples: list) -> Batch:
        rows = np.array([sample.index for sample in samples])
        places = self.places[rows]
        good = places >= 0
        keys = [sample.position.to_bytes(8, "big") + self.digest(sample) for sample in samples]
        features, labels = self.features[places[good]], self.labels[rows[good]]
        if not good.any():  # a blank of weight 0
            features, labels = self.features.new_zeros(1, self.features.shape[1]), self.labels[:1]
        return Batch(
            pixel_values=features,
            weight=float(good.mean()),
            size=len(samples),
            keys=b"".join(keys),
            skipped=[
                (sample.origin, self.reasons.get(sample.origin, "unreadable"))
                for sample, is_good in zip(samples, good)
                if not is_good
            ],
            rows=rows[good].tolist(),
            labels=labels.astype(np.float32) if labels.ndim == 2 else labels,
        )

    def collate(self, batch: Batch) -> Batch:
        return batch
