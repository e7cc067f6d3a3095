"""From an undecoded sample to tensors: cropping, flipping, augmentation, evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig, to_pair
from mae.data.batch import DIGEST_SIZE, Batch
from mae.data.decoding import EncodedImage
from mae.data.stream import Sample
from mae.utils.errors import UserError, first_line
from mae.utils.hashing import hash_key
from modeling_mae import make_image_processor, num_visible_patches


# Decoding
class SampleDataset(Dataset):
    """
    Samples as a task sees them, each a pure function of the sample: what [`SampleDataset.view`] makes of it, or that
    it cannot be read.
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


class PreTrainingTransform(SampleDataset):
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


class EvaluationTransform(SampleDataset):
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


class ClassificationTransform(EvaluationTransform):
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
