"""
From a source to batches: the stream is the sampler, decoding is a pure function of what it yields.

    source -> SampleStream (this process's samples in order, raw) -> Examples (in the workers) -> collate -> batch

The DataLoader never enters `accelerator.prepare`: the stream already yields this process's part of each batch.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig, to_pair
from mae.data.decoding import EncodedImage, decode_image
from mae.data.order import SampleOrder, hash_key, permutation
from mae.data.sources import Source
from mae.data.stream import Sample, SampleStream
from mae.training.interruption import ignore_in_workers
from mae.utils.errors import DataError, UserError, first_line
from mae.utils.retries import with_patience
from modeling_mae import make_image_processor, num_visible_patches


DIGEST_SIZE = 16


@dataclass
class Batch:
    """
    A micro-batch: of the images that could be read, "good", or one blank image where none could.

    pixel_values: of shape (good, C, H, W), uint8, or float32 in the values of 8 bits.
    weight: good / size, by which the mean loss over the good images is scaled.
    size: number of positions consumed.
    keys: position and digest of each sample, one after the other.
    skipped: (origin, reason) of each unreadable image.
    rows: of the good images, over all groups of the source.
    noise: float32 of shape (good, L), in pre-training. No tensor until it is pinned, nor are labels and keys: a worker
        hands over each tensor by a connection of its own, 0.6 ms.
    labels: int64 of shape (good,), or float32 of shape (good, classes), where there are any.
    """

    pixel_values: torch.Tensor
    weight: float
    size: int
    keys: bytes
    skipped: list[tuple[tuple[str, int], str]]
    rows: list[int]
    noise: np.ndarray | torch.Tensor | None = None
    labels: np.ndarray | torch.Tensor | None = None

    @property
    def digests(self) -> torch.Tensor:
        """The keys as uint8 of shape (size, 8 + DIGEST_SIZE)."""
        return torch.frombuffer(bytearray(self.keys), dtype=torch.uint8).view(self.size, -1)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, which cannot look inside. What is not pinned is waited for on its way to a GPU."""
        self.pixel_values = self.pixel_values.pin_memory()
        for name in ("noise", "labels"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, torch.as_tensor(value).pin_memory())
        return self


# Decoding


class Examples(Dataset):
    """
    Samples as a task sees them, each a pure function of the sample: what [`Examples.view`] makes of it, or that it
    cannot be read.
    """

    def __init__(self, config: MAEConfig):
        # Plain attributes: looking one up in a configuration takes a hundred times as long.
        self.num_channels = config.num_channels
        self.size = list(to_pair(config.image_size))

    def view(self, sample: Sample) -> tuple[dict[str, torch.Tensor], tuple]:
        """Tensors by their names in a [`Batch`], and what was drawn, for the digest."""
        raise NotImplementedError

    def blank(self) -> dict[str, torch.Tensor]:
        """What stands for a micro-batch of which nothing can be read."""
        return {"pixel_values": torch.zeros(self.num_channels, *self.size, dtype=torch.uint8)}

    def __getitem__(self, sample: Sample) -> dict:
        try:
            tensors, drawn = self.view(sample)
        except Exception as error:  # whatever is wrong with an image, its position is consumed
            reason = f"{type(error).__name__}: {first_line(error)}"
            return {"sample": sample, "skipped": reason, "digest": self.digest(sample, "skipped")}
        return {"sample": sample, "digest": self.digest(sample, *drawn), **tensors}

    @staticmethod
    def digest(sample: Sample, *what: object) -> bytes:
        return hash_key(sample.epoch, sample.position, sample.origin, *what, size=DIGEST_SIZE)

    def collate(self, examples: list[dict]) -> Batch:
        """Examples of one micro-batch."""
        good = [example for example in examples if "pixel_values" in example]
        blank = self.blank()
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


def draw_crop(crop: v2.RandomResizedCrop, image: EncodedImage) -> tuple[dict[str, int], bool]:
    """The box of a random resized crop, and whether it is flipped."""
    box = crop.make_params([torch.empty(0, image.height, image.width)])
    return box, bool(torch.rand(()) < 0.5)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    While entered, torch's CPU generator draws from a seed: torchvision's v2 takes no generator. Seeding the default
    one directly costs a fraction of torch.manual_seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Decode(Examples):
    """
    A sample as pre-training sees it: decoded, cropped and flipped (Section 4.2: random resized crops of 20 to 100 % of
    the image, flips, nothing else), and the noise that makes its mask.
    """

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.num_patches = config.num_patches
        num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
        self.masking = f"{config.masking} {config.grid_size} {num_visible}"
        self.crop = v2.RandomResizedCrop(self.size, scale=(0.2, 1.0))

    def blank(self) -> dict[str, torch.Tensor]:
        return super().blank() | {"noise": torch.linspace(0, 1, self.num_patches)}

    def view(self, sample: Sample) -> tuple[dict[str, torch.Tensor], tuple]:
        image, box, flip, noise = self.draw(sample)
        pixels = image.decode_crop(**box, size=self.size)
        if flip:
            pixels = TF.horizontal_flip(pixels)
        # The noise and how it is used stand for the mask, which is a function of both.
        return {"pixel_values": pixels, "noise": noise}, (*box.values(), flip, noise.numpy().tobytes(), self.masking)

    def draw(self, sample: Sample) -> tuple[EncodedImage, dict[str, int], bool, torch.Tensor]:
        """All that is random of a sample: the crop's box, whether it is flipped, and the noise."""
        image = EncodedImage(sample.image, self.num_channels)
        with seeded(sample.seed):
            box, flip = draw_crop(self.crop, image)
            noise = torch.rand(self.num_patches)
        return image, box, flip, noise


class EvaluationExamples(Examples):
    """A sample as the model's image processor makes it, except for rescaling and normalisation."""

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.processor = make_image_processor(config)

    def prepare(self, image: EncodedImage) -> torch.Tensor:
        """The processor's resize and crop, `(C, H, W)`."""
        # By the processor itself, whose rounding differs from torchvision's: what is evaluated is what it gives.
        outputs = self.processor(
            image.decode(),
            do_rescale=False,
            do_normalize=False,
            do_convert_rgb=False,
            input_data_format="channels_first",  # it would guess, from sides of 1 or 3
            return_tensors="pt",
        )
        return outputs.pixel_values[0]

    def view(self, sample: Sample) -> tuple[dict[str, torch.Tensor], tuple]:
        return {"pixel_values": self.prepare(EncodedImage(sample.image, self.num_channels))}, ()


class LabelledExamples(EvaluationExamples):
    """
    A sample as training a classifier sees it, with its label (Table 9 and 10): a random resized crop and a flip, or
    the evaluation's crop; RandAugment; erasing.

    timm's `rand-m9-mstd0.5-inc1`, which the paper uses, is approximated by torchvision's RandAugment of two operations
    at 9 / 10 of their range, without its spread of magnitudes and its probability of leaving an operation out.

    Args:
        labels: Of all rows of the source, as in [`Labels`].
        min_crop_area: Smallest share of an image that a crop takes; None for the evaluation's crop.
        randaugment_magnitude: Of 10; None for none.
        random_erasing: Probability that a box is filled with noise, per pixel, as the normalised image has it.
    """

    BINS = 31  # of torchvision's magnitudes

    def __init__(
        self,
        config: MAEConfig,
        labels: np.ndarray,
        min_crop_area: float | None = None,
        randaugment_magnitude: float | None = None,
        random_erasing: float = 0,
    ):
        super().__init__(config)
        self.labels = labels
        self.crop = self.randaugment = self.erasing = None
        if min_crop_area is not None:
            self.crop = v2.RandomResizedCrop(self.size, scale=(min_crop_area, 1.0))
        if randaugment_magnitude is not None:
            if config.num_channels not in (1, 3):
                raise UserError(
                    f"RandAugment is for images of 1 or 3 channels, not {config.num_channels}: --augmentation crop."
                )
            mean = config.image_mean or [0.5] * config.num_channels
            self.randaugment = v2.RandAugment(
                num_ops=2,
                magnitude=round(randaugment_magnitude / 10 * (self.BINS - 1)),
                num_magnitude_bins=self.BINS,
                interpolation=InterpolationMode.BICUBIC,
                fill=[round(255 * value) for value in mean],
            )
        if random_erasing:
            self.erasing = v2.RandomErasing(p=random_erasing, scale=(0.02, 1 / 3), value="random")
        self.normalization = None
        if config.image_mean is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
            self.normalization = 255 * mean, 255 * std

    def blank(self) -> dict[str, torch.Tensor]:
        return super().blank() | {"labels": self.label(0)}

    def label(self, row: int) -> torch.Tensor:
        label = torch.as_tensor(self.labels[row])
        return label.float() if label.ndim else label

    def view(self, sample: Sample) -> tuple[dict[str, torch.Tensor], tuple]:
        image, drawn = EncodedImage(sample.image, self.num_channels), ()
        label = self.label(sample.index)
        with seeded(sample.seed):
            if self.crop is None:
                pixels = self.prepare(image)
            else:
                box, flip = draw_crop(self.crop, image)
                drawn = (*box.values(), flip)
                pixels = image.decode_crop(**box, size=self.size)
                if flip:
                    pixels = TF.horizontal_flip(pixels)
            if self.randaugment is not None:
                # As Pillow's images, because of tensors none can be turned with bicubic interpolation.
                picture = TF.to_pil_image(pixels.round().to(torch.uint8))
                pixels = TF.pil_to_tensor(self.randaugment(picture))
            if self.erasing is not None:
                pixels = self._erase(pixels)
        return {"pixel_values": pixels, "labels": label}, (*drawn, label.numpy().tobytes())

    def _erase(self, pixels: torch.Tensor) -> torch.Tensor:
        """Noise of mean 0 and deviation 1 where the image is normalised; here it is not yet."""
        mean, std = self.normalization or (0.0, 255.0)
        return self.erasing((pixels.float() - mean) / std) * std + mean


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
    for batch in make_loader(stream, Decode(config)):
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


def make_loader(stream: SampleStream, examples: Examples, num_workers: int = 0) -> DataLoader:
    """Batches of a stream. The same batches for any number of workers."""
    return DataLoader(
        examples,
        batch_sampler=stream,
        collate_fn=examples.collate,
        num_workers=num_workers,
        worker_init_fn=ignore_in_workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, the DataLoader draws from torch's global generator when it starts.
        generator=torch.Generator(),
    )


def is_of_a_worker(error: RuntimeError) -> bool:
    """Whether a decoding process has ended: told by torch's handler of a signal, and so from anywhere."""
    return "DataLoader worker" in str(error)


def lost_worker(error: BaseException) -> DataError:
    """What to tell of a decoding process that has ended."""
    return DataError(
        f"A decoding process has ended ({first_line(error)}): it needs more memory, or more shared memory (docker run "
        "--ipc=host), or pass --dataloader_num_workers 0."
    )
