"""Datasets of the DataLoader: samples of the stream become examples, and examples become batches."""

from collections import defaultdict
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mae.data.batch import DIGEST_SIZE, Batch
from mae.data.decoding import DecodingError
from mae.data.pixel_cache import PixelCache, SharedImage
from mae.data.stream import Sample
from mae.utils.hashing import hash_key


class Transform(Protocol):
    """Turns a sample into tensors. It is a pure function of the sample, and runs in DataLoader workers."""

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        """Tensors by their names in a [`Batch`], and all random draws, for the digest."""

    def blank(self) -> dict[str, Tensor]:
        """Tensors that stand for a batch of which no image can be decoded."""


def sample_digest(sample: Sample, *drawn: object) -> bytes:
    """Hash of a sample and of what was drawn for it."""
    return hash_key(sample.epoch, sample.position, sample.origin, *drawn, size=DIGEST_SIZE)


class SampleDataset(Dataset):
    """
    Applies a transform to samples. An image that cannot be decoded is skipped, and consumes its position; any other
    error is an error of the code, and is raised.

    Args:
        cache: Where decoded images are kept.
    """

    def __init__(self, transform: Transform, cache: PixelCache | None = None):
        self.transform = transform
        self.cache = cache

    def __getitem__(self, sample: Sample) -> dict:
        try:
            tensors, drawn = self.transform(sample)
        except DecodingError as error:
            return {"sample": sample, "skipped": str(error), "digest": sample_digest(sample, "skipped")}
        return {"sample": sample, "digest": sample_digest(sample, *drawn), **tensors}

    def __getitems__(self, samples: list[Sample]) -> list[dict]:
        """The examples of a batch. An image is decoded once for all its samples."""
        places = defaultdict(list)
        for place, sample in enumerate(samples):
            places[sample.index].append(place)
        if self.cache is None and len(places) == len(samples):
            return [self[sample] for sample in samples]
        examples: list[dict] = [{}] * len(samples)
        for row, of_the_row in places.items():
            image = SharedImage(samples[of_the_row[0]].image, row, self.cache)
            for place in of_the_row:
                examples[place] = self[samples[place]._replace(image=image)]
                examples[place]["sample"] = samples[place]  # without the decoded image, whose memory is free again
        return examples

    def collate(self, examples: list[dict]) -> Batch:
        """Combine the examples of one batch."""
        good = [example for example in examples if "skipped" not in example]
        blank = self.transform.blank()
        tensors = {name: torch.stack([example[name] for example in good or [blank]]) for name in blank}
        keys = [example["sample"].position.to_bytes(8, "big") + example["digest"] for example in examples]
        return Batch(
            pixel_values=tensors.pop("pixel_values"),
            weight=len(good) / max(len(examples), 1),
            size=len(examples),
            keys=b"".join(keys),
            skipped=[(example["sample"].origin, example["skipped"]) for example in examples if "skipped" in example],
            rows=[example["sample"].index for example in good],
            **{name: tensor.numpy() for name, tensor in tensors.items()},
        )


class FeatureDataset(Dataset):
    """
    Features instead of images, a batch at once.

    Args:
        features: Features of the readable images, `(n, D)`.
        rows: Numbers of these images in the source.
        labels: Labels of all rows of the source, as in [`Labels`].
        skipped: (origin, reason) of each image that could not be read.
    """

    def __init__(
        self, features: Tensor, rows: np.ndarray, labels: np.ndarray, skipped: list[tuple[tuple[str, int], str]]
    ):
        self.features = features
        self.labels = labels
        self.reasons = dict(skipped)
        self.places = np.full(len(labels), -1)
        self.places[rows] = np.arange(len(rows))

    def __getitems__(self, samples: list[Sample]) -> Batch:
        rows = np.array([sample.index for sample in samples])
        places = self.places[rows]
        good = places >= 0
        keys = [sample.position.to_bytes(8, "big") + sample_digest(sample) for sample in samples]
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
