"""
From a source to batches: the stream is the sampler, decoding is a pure function of what it yields.

    source -> SampleStream (this process's samples in order, raw) -> Decode (in the workers) -> collate -> batch

The DataLoader never enters `accelerator.prepare`: the stream already yields this process's part of each batch.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig, to_pair
from mae.decoding import EncodedImage, decode_image
from mae.errors import UserError, first_line
from mae.interruption import ignore_in_workers
from mae.order import SampleOrder, hash_key, permutation
from mae.retries import with_patience
from mae.sources import Source
from mae.streaming import Sample, SampleStream
from modeling_mae import num_visible_patches


DIGEST_SIZE = 16


@dataclass
class Batch:
    """
    A micro-batch.

    pixel_values: uint8 of shape (good, C, H, W); one blank image where none could be read.
    noise: float32 of shape (good, L). No tensor until it is pinned, nor are the keys: a worker hands over each tensor
        by a connection of its own, 0.6 ms.
    weight: good / size, by which the mean loss over the good images is scaled.
    size: number of positions consumed.
    keys: position and digest of each sample, one after the other.
    skipped: (origin, reason) of each unreadable image.
    """

    pixel_values: torch.Tensor
    noise: np.ndarray | torch.Tensor
    weight: float
    size: int
    keys: bytes
    skipped: list[tuple[tuple[str, int], str]]

    @property
    def digests(self) -> torch.Tensor:
        """The keys as uint8 of shape (size, 8 + DIGEST_SIZE)."""
        return torch.frombuffer(bytearray(self.keys), dtype=torch.uint8).view(self.size, -1)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, which cannot look inside. What is not pinned is waited for on its way to a GPU."""
        self.pixel_values = self.pixel_values.pin_memory()
        self.noise = torch.as_tensor(self.noise).pin_memory()
        return self


# Decoding


class Decode(Dataset):
    """
    A sample as training sees it: decoded, cropped and flipped (Section 4.2: random resized crops of 20 to 100 % of
    the image, flips, nothing else), and the noise that makes its mask. A pure function of the sample.
    """

    def __init__(self, config: MAEConfig):
        # Plain attributes: looking one up in a configuration takes a hundred times as long.
        self.num_channels = config.num_channels
        self.num_patches = config.num_patches
        num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
        self.masking = f"{config.masking} {config.grid_size} {num_visible}"
        self.size = list(to_pair(config.image_size))
        self.crop = v2.RandomResizedCrop(self.size, scale=(0.2, 1.0))

    def __getitem__(self, sample: Sample) -> dict:
        try:
            image, box, flip, noise = self.draw(sample)
            pixels = image.decode_crop(**box, size=self.size)
        except Exception as error:  # whatever is wrong with an image, its position is consumed
            reason = f"{type(error).__name__}: {first_line(error)}"
            return {"sample": sample, "skipped": reason, "digest": self.digest(sample, "skipped")}
        if flip:
            pixels = TF.horizontal_flip(pixels)
        # The noise and how it is used stand for the mask, which is a function of both.
        digest = self.digest(sample, *box.values(), flip, noise.numpy().tobytes(), self.masking)
        return {"sample": sample, "pixel_values": pixels, "noise": noise, "digest": digest}

    def draw(self, sample: Sample) -> tuple[EncodedImage, dict[str, int], bool, torch.Tensor]:
        """All that is random of a sample: the crop's box, whether it is flipped, and the noise."""
        image = EncodedImage(sample.image, self.num_channels)
        # torchvision's v2 takes no generator. Seeding the default one directly costs a fraction of torch.manual_seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample.seed)
            box = self.crop.make_params([torch.empty(0, image.height, image.width)])
            flip = bool(torch.rand(()) < 0.5)
            noise = torch.rand(self.num_patches)
        return image, box, flip, noise

    @staticmethod
    def digest(sample: Sample, *what: object) -> bytes:
        return hash_key(sample.epoch, sample.position, sample.origin, *what, size=DIGEST_SIZE)


class Collate:
    """Examples of one micro-batch as a [`Batch`]."""

    def __init__(self, config: MAEConfig):
        self.blank = {
            "pixel_values": torch.zeros(config.num_channels, *to_pair(config.image_size), dtype=torch.uint8),
            "noise": torch.linspace(0, 1, config.num_patches),
        }

    def __call__(self, examples: list[dict]) -> Batch:
        good = [example for example in examples if "pixel_values" in example]
        used = good or [self.blank]
        keys = [example["sample"].position.to_bytes(8, "big") + example["digest"] for example in examples]
        return Batch(
            pixel_values=torch.stack([example["pixel_values"] for example in used]),
            noise=torch.stack([example["noise"] for example in used]).numpy(),
            weight=len(good) / len(examples),
            size=len(examples),
            keys=b"".join(keys),
            skipped=[(example["sample"].origin, example["skipped"]) for example in examples if "skipped" in example],
        )


def samples_digest(digests: torch.Tensor) -> str:
    """
    One hash for the samples of a step, whoever processed them.

    Args:
        digests: uint8 of shape (global batch, 8 + DIGEST_SIZE), in any order.
    """
    rows = sorted(bytes(row) for row in digests.cpu().numpy())  # a row starts with its position
    return hash_key(b"".join(rows), size=DIGEST_SIZE).hex()


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A value of each channel; kept, because a copy to a GPU is waited for."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalize(images: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """uint8 images `(B, C, H, W)` as the model takes them: float32, by the configuration's mean and std."""
    pixel_values = images.float() / 255
    if config.image_mean is not None:
        mean, std = (_channels(tuple(values), images.device) for values in (config.image_mean, config.image_std))
        pixel_values = (pixel_values - mean) / std
    return pixel_values


def denormalize(pixel_values: torch.Tensor, config: MAEConfig) -> torch.Tensor:
    """The inverse of [`normalize`], as float32 in [0, 1]."""
    if config.image_mean is not None:
        device = pixel_values.device
        mean, std = (_channels(tuple(values), device) for values in (config.image_mean, config.image_std))
        pixel_values = pixel_values * std + mean
    return pixel_values.float().clamp(0, 1)


# Of how many groups images for evaluation are taken at least, where there are as many: what lies before a row in its
# group is read too.
_EVALUATION_GROUPS = 16


def _read_rows(source: Source, retry_minutes: float, group: int, count: int) -> list[bytes | str]:
    """The first rows of a group."""
    what = f"Reading {source.origin(group, 0)[0]}"
    return with_patience(what, retry_minutes, lambda: list(itertools.islice(source.read(group, 0), count)))


def load_images(
    source: Source, config: MAEConfig, count: int, seed: int = 0, retry_minutes: float = 0
) -> torch.Tensor:
    """
    Up to `count` images of a source for evaluation, always the same ones: uint8 of shape (count, C, H, W). For square
    models the shorter side is resized and the centre cropped; rectangular ones get an exact resize. They are the first
    rows of some groups, taken from these in turn.
    """
    height, width = to_pair(config.image_size)
    resize = v2.Resize(
        [height] if height == width else [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    transform = v2.Compose([resize, v2.CenterCrop([height, width])])
    groups = permutation(len(source.group_sizes), seed, "evaluation")
    groups = [int(group) for group in groups if source.group_sizes[group]]
    at_once = min(len(groups), _EVALUATION_GROUPS)
    per_group = -(-count // at_once)
    images, tried, reason = [], 0, ""
    with ThreadPoolExecutor(source.num_readers) as pool:
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            rows = pool.map(partial(_read_rows, source, retry_minutes, count=per_group), some)
            for data in [row for turn in itertools.zip_longest(*rows) for row in turn if row is not None]:
                tried += 1
                try:
                    images.append(transform(decode_image(data, config.num_channels)))
                except Exception as error:  # an unreadable image is told of where it matters, in training
                    reason = f"{type(error).__name__}: {first_line(error)}"
                if len(images) == count:
                    return torch.stack(images)
            if tried > 10 * count:
                break
    if not images:
        raise UserError(f"None of {tried} images tried for evaluation can be read ({reason}).")
    return torch.stack(images)


def measure_statistics(
    source: Source, order: SampleOrder, config: MAEConfig, count: int, retry_minutes: float = 0
) -> tuple[list[float], list[float], int]:
    """
    Mean and standard deviation of each channel, in [0, 1], over the pixels of images from all lanes; and how many
    these were, at most `count`.
    """
    # Without windows to shuffle in, which would be read whole.
    order = SampleOrder(order.group_sizes, order.seed, order.lanes, shuffle_buffer_size=order.lanes)
    size = min(count, order.epoch_length)
    stream = SampleStream(source, order, batch_size=1, stop=size, retry_minutes=retry_minutes)
    total = squares = torch.zeros(config.num_channels, dtype=torch.float64)
    num_images = 0
    for batch in make_loader(stream, config):
        if batch.weight:
            pixels = batch.pixel_values.double() / 255
            total = total + pixels.mean(dim=(0, 2, 3))
            squares = squares + pixels.square().mean(dim=(0, 2, 3))
            num_images += 1
    if not num_images:
        raise UserError(f"None of the first {size} images can be read: --image_mean auto has nothing to measure.")
    mean, variance = total / num_images, squares / num_images - (total / num_images) ** 2
    std = variance.clamp(min=0).sqrt()
    if not std.all():
        raise UserError(f"A channel of the first {num_images} images has the same value everywhere: no --image_std.")
    return mean.tolist(), std.tolist(), num_images


def make_loader(stream: SampleStream, config: MAEConfig, num_workers: int = 0) -> DataLoader:
    """Batches of a stream. The same batches for any number of workers."""
    return DataLoader(
        Decode(config),
        batch_sampler=stream,
        collate_fn=Collate(config),
        num_workers=num_workers,
        worker_init_fn=ignore_in_workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, the DataLoader draws from torch's global generator when it starts.
        generator=torch.Generator(),
    )
