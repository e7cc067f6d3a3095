"""From an undecoded sample to tensors: cropping, flipping, augmentation, evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig, to_pair
from mae.data.bands import bands_of
from mae.data.colors import make_color_changes
from mae.data.crop import Crop, CropOptions, RandomCrop, place, turned
from mae.data.decoding import OpenImage, open_image
from mae.data.stream import Sample
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from modeling_mae import make_image_processor, num_visible_patches


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Let torch's CPU generator draw from a seed while entered, because torchvision v2 takes no generator. Seeding the
    default generator directly costs a fraction of `torch.manual_seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class ImageTransform:
    """Base class of the transforms of images: their size, and the blank image."""

    def __init__(self, config: MAEConfig):
        # Plain attributes, because looking one up in a configuration takes a hundred times as long.
        self.num_channels = config.num_channels
        self.bands = bands_of(config)
        self.size = list(to_pair(config.image_size))
        mean = config.image_mean or [0.5] * config.num_channels
        self.fill = 255 * torch.tensor(mean).view(-1, 1, 1)  # the mean colour, for what is outside of an image

    def blank(self) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(self.num_channels, *self.size, dtype=torch.uint8)}

    def cut(self, image: OpenImage, crop: Crop, keeps_scale: bool = False) -> Tensor:
        """
        A crop, resized to the model's size, turned and flipped if asked.

        Args:
            keeps_scale: Whether the crop is put into the middle instead, surrounded by the mean colour.
        """
        *box, flip, turns = crop
        if not (turns or keeps_scale):
            pixels = image.decode_crop(*box, size=self.size)
            return pixels.flip(-1) if flip else pixels
        whole = turned(self.size, turns)
        size = [crop.height, crop.width] if keeps_scale else whole
        pixels = image.decode_crop(*box, size=size)
        fill = self.fill if pixels.is_floating_point() else self.fill.round()
        offset = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
        return place(pixels, self.size, fill, offset, turns, flip)


class PreTrainingTransform(ImageTransform):
    """
    Transform of pre-training (Section 4.2): a random resized crop of 20 to 100 % of the image and a flip, unless other
    augmentation is asked for, and the noise that the mask is computed from.
    """

    def __init__(
        self,
        config: MAEConfig,
        crop: CropOptions = CropOptions(),  # noqa: B008, it is frozen
        color_jitter: float = 0.0,
        grayscale_prob: float = 0.0,
    ):
        super().__init__(config)
        self.num_patches = config.num_patches
        num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
        self.masking = f"{config.masking} {config.grid_size} {num_visible}"
        self.crop = RandomCrop(crop, self.size)
        self.colors = make_color_changes(color_jitter, grayscale_prob, config.num_channels)
        self.color_options = color_jitter, grayscale_prob

    def blank(self) -> dict[str, Tensor]:
        return super().blank() | {"noise": torch.linspace(0, 1, self.num_patches)}

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        image, crop, noise = self.draw(sample)
        # The noise and the kind of masking stand for the mask, which is a function of both.
        drawn = (*crop.drawn(), noise.numpy().tobytes(), self.masking, *self.crop.kind)
        pixels = self.cut(image, crop, self.crop.keeps_scale)
        if self.colors is not None:
            seed = int.from_bytes(hash_key(sample.seed, "colors"), "big")
            with seeded(seed):
                pixels, changes = self.colors(pixels)
            drawn = (*drawn, seed, *self.color_options, *changes)
        return {"pixel_values": pixels, "noise": noise}, drawn

    def draw(self, sample: Sample) -> tuple[OpenImage, Crop, Tensor]:
        """Draw all that is random of a sample: the box of the crop, whether it is flipped, and the noise."""
        image = open_image(sample.image, self.bands)
        generator = torch.Generator().manual_seed(sample.seed)
        crop = self.crop.draw(image.height, image.width, generator)
        return image, crop, torch.rand(self.num_patches, generator=generator)


class EvaluationTransform(ImageTransform):
    """The model's own image processor, without rescaling and normalisation."""

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.processor = make_image_processor(config)

    def prepare(self, image: OpenImage) -> Tensor:
        """Resize and crop an image, `(C, H, W)`."""
        # The processor itself, because torchvision rounds differently and users of the model get the processor.
        outputs = self.processor(
            image.decode(),
            do_rescale=False,
            do_normalize=False,
            do_convert_rgb=False,
            input_data_format="channels_first",  # it would guess it from sides of 1 or 3
            return_tensors="pt",
        )
        return outputs.pixel_values[0]

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        return {"pixel_values": self.prepare(open_image(sample.image, self.bands))}, ()


class ClassificationTransform(EvaluationTransform):
    """
    Transform of training a classifier, with the label (Tables 9 and 10): a random resized crop and a flip, or the crop
    of evaluation; RandAugment; random erasing.

    torchvision's RandAugment with two operations at 9 / 10 of their range approximates timm's
    `rand-m9-mstd0.5-inc1`, which the paper uses, without its spread of magnitudes and its probability of leaving an
    operation out.

    Args:
        labels: Labels of all rows of the source, as in [`Labels`].
        crop: How images are cropped and flipped; None for the crop of evaluation.
        color_jitter, grayscale_prob: See [`ColorChanges`] in `mae.data.colors`.
        randaugment_magnitude: Magnitude of 10; None for no RandAugment.
        random_erasing: Probability that a box is filled with noise, per pixel of the normalised image.
    """

    BINS = 31  # of torchvision's magnitudes

    def __init__(
        self,
        config: MAEConfig,
        labels: np.ndarray,
        crop: CropOptions | None = None,
        randaugment_magnitude: float | None = None,
        random_erasing: float = 0,
        color_jitter: float = 0.0,
        grayscale_prob: float = 0.0,
    ):
        super().__init__(config)
        self.labels = labels
        self.crop = self.randaugment = self.erasing = None
        self.colors = make_color_changes(color_jitter, grayscale_prob, config.num_channels)
        if crop is not None:
            self.crop = RandomCrop(crop, self.size)
        if randaugment_magnitude is not None:
            self.randaugment = self._make_randaugment(config, randaugment_magnitude)
        if random_erasing:
            self.erasing = v2.RandomErasing(p=random_erasing, scale=(0.02, 1 / 3), value="random")
        self.normalization = None
        if config.image_mean is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
            self.normalization = 255 * mean, 255 * std

    def _make_randaugment(self, config: MAEConfig, magnitude: float) -> v2.RandAugment:
        if config.num_channels not in (1, 3):
            raise UserError(
                f"RandAugment is for images of 1 or 3 channels, not {config.num_channels}. Use --augmentation crop."
            )
        mean = config.image_mean or [0.5] * config.num_channels
        return v2.RandAugment(
            num_ops=2,
            magnitude=round(magnitude / 10 * (self.BINS - 1)),
            num_magnitude_bins=self.BINS,
            interpolation=InterpolationMode.BICUBIC,
            fill=[round(255 * value) for value in mean],
        )

    def blank(self) -> dict[str, Tensor]:
        return super().blank() | {"labels": self._label(0)}

    def _label(self, row: int) -> Tensor:
        label = torch.as_tensor(self.labels[row])
        return label.float() if label.ndim else label

    def __call__(self, sample: Sample) -> tuple[dict[str, Tensor], tuple]:
        image, drawn = open_image(sample.image, self.bands), ()
        label = self._label(sample.index)
        with seeded(sample.seed):
            if self.crop is None:
                pixels = self.prepare(image)
            else:
                crop = self.crop.draw(image.height, image.width, torch.default_generator)
                pixels = self.cut(image, crop, self.crop.keeps_scale)
                drawn = (*crop.drawn(), *self.crop.kind)
            if self.colors is not None:
                pixels, changes = self.colors(pixels)
                drawn = (*drawn, *changes)
            if self.randaugment is not None:
                # As a Pillow image, because torchvision cannot rotate a tensor with bicubic interpolation.
                picture = TF.to_pil_image(torch.where(pixels.isnan(), self.fill, pixels).round().to(torch.uint8))
                pixels = TF.pil_to_tensor(self.randaugment(picture))
            if self.erasing is not None:
                pixels = self._erase(pixels)
        return {"pixel_values": pixels, "labels": label}, (*drawn, label.numpy().tobytes())

    def _erase(self, pixels: Tensor) -> Tensor:
        """Fill a box with noise of mean 0 and std 1 in the normalised image, which this one is not yet."""
        mean, std = self.normalization or (0.0, 255.0)
        return self.erasing((pixels.float() - mean) / std) * std + mean
