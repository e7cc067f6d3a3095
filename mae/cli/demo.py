"""What the page of examples/demo.py shows: the model, the image and the pictures of a mask."""

import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from configuration_mae import MAEConfig, to_pair
from mae.cli.pictures import open_images
from mae.conversion.loading import load_checkpoint
from mae.data.bands import bands_of
from mae.data.decoding import DecodingError, decode_image
from mae.evaluation.inspection import draw_mask, fit_to_patches, patch_features, reconstruct, to_picture
from mae.evaluation.reconstruction import rows_of_some_groups
from mae.utils.errors import MAEError, UserError
from modeling_mae import MAEForPreTraining


# Masks, beside those that are painted.
MASKINGS = ("random", "block", "grid")
# Models in memory at once, and the largest image file.
_NUM_MODELS = 2
MAX_BYTES = 20_000_000
# A picture on the page has about this many pixels along its longer side.
_SHOWN = 384
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class OpenImage:
    """
    An image as a model sees it.

    Args:
        pixels: `(C, H, W)` in the range of 8 bits, whose sides are multiples of the patch size.
        patch_size: Height and width of a patch.
    """

    pixels: Tensor
    patch_size: tuple[int, int]

    @cached_property
    def scale(self) -> int:
        """How many pixels of the page show a pixel of the image, along each side."""
        return max(_SHOWN // max(self.pixels.shape[1:]), 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = (side // patch for side, patch in zip(self.pixels.shape[1:], self.patch_size))
        return rows, columns

    def enlarge(self, picture: np.ndarray) -> np.ndarray:
        """A picture `(H, W)` or `(H, W, 3)` in [0, 1] for the page, uint8."""
        picture = np.repeat(np.repeat(picture, self.scale, axis=0), self.scale, axis=1)
        return (picture.clip(0, 1) * 255).round().astype(np.uint8)

    @property
    def picture(self) -> np.ndarray:
        return self.enlarge(to_picture(self.pixels.nan_to_num(0) / 255))

    def painted_patches(self, paint: np.ndarray | None) -> Tensor:
        """
        The patches that are painted: at least a tenth of their pixels.

        Args:
            paint: Opacity of the paint for each pixel of `picture`, at any scale, `(H, W)`; None without paint.
        """
        rows, columns = self.grid
        if paint is None:
            return torch.zeros(rows, columns, dtype=torch.bool)
        covered = torch.from_numpy((np.asarray(paint) > 0).astype(np.float32))
        return torch.nn.functional.adaptive_avg_pool2d(covered[None], (rows, columns))[0] >= 0.1


@dataclass(frozen=True)
class Pictures:
    """What the page shows of a mask: pictures, uint8, and a sentence on them."""

    masked: np.ndarray
    reconstruction: np.ndarray
    error: np.ndarray
    attention: np.ndarray
    note: str


@dataclass(frozen=True)
class Examples:
    """Image files to choose from, and pictures of them that a browser can show."""

    files: list[str]
    thumbnails: list[np.ndarray]


class Demo:
    """
    The models and what they make of images.

    Args:
        names: Models that a visitor may choose: directories, files, or names on the Hub.
        device: Where they run.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = list(names)
        self.device = device
        self._models: OrderedDict[str, MAEForPreTraining] = OrderedDict()

    def load(self, name: str) -> MAEForPreTraining:
        """
        A model of the list, or any other on the Hub.

        Raises:
            UserError: if there is no such model, or it has no decoder.
        """
        if name not in self._models:
            # A visitor may name a model on the Hub, and no other file of this machine.
            if name not in self.names and (os.path.exists(name) or not _HUB_ID.fullmatch(name)):
                raise UserError(f"{name} is no name of a model on the Hub. Write it as owner/name.")
            model, _ = load_checkpoint(name, dtype=torch.float32)
            if not isinstance(model, MAEForPreTraining):
                raise UserError(f"{name} has no decoder. Choose a model of pre-training.")
            self._models[name] = model.to(self.device).eval()
        self._models.move_to_end(name)
        while len(self._models) > _NUM_MODELS:
            self._models.popitem(last=False)
        return self._models[name]

    def open(self, name: str, path: str) -> OpenImage:
        """
        An image file, in the size that a model takes.

        Raises:
            UserError: if the model cannot be loaded, or the file is no image that it takes.
        """
        config = self.load(name).config
        if os.path.getsize(path) > MAX_BYTES:
            raise UserError(f"The file has more than {MAX_BYTES // 10**6} MB. Choose a smaller one.")
        try:
            pixels = torch.as_tensor(decode_image(Path(path).read_bytes(), bands_of(config)))
        except DecodingError as error:
            raise UserError(
                f"This file cannot be read as an image with {config.num_channels} channels: {error}."
            ) from None
        # The grid needs even numbers of patches, and every other mask fits them.
        return OpenImage(fit_to_patches(pixels, config, "grid"), to_pair(config.patch_size))

    def show(
        self, name: str, image: OpenImage, masking: str, mask_ratio: float, seed: int, paint: np.ndarray | None = None
    ) -> Pictures:
        """
        The pictures of a mask.

        Args:
            masking: One of `MASKINGS`, or "painted".
            mask_ratio: Share of the patches to remove, for random and block.
            seed: Seed of the mask.
            paint: See [`OpenImage.painted_patches`].

        Raises:
            UserError: if the model cannot be loaded, or the mask removes no patch or all patches.
        """
        model = self.load(name)
        rows, columns = image.grid
        if masking == "painted":
            removed = image.painted_patches(paint)
            if not removed.any() or removed.all():
                what = "no patch" if not removed.any() else "all patches"
                raise UserError(f"The paint covers {what}. Paint some of the image, and leave some of it.")
        else:
            ratio = 0.75 if masking == "grid" else mask_ratio
            try:
                removed = draw_mask(model.config, image.pixels.shape[1:], ratio, (int(seed),), masking)
            except ValueError as error:
                raise UserError(f"The mask cannot be drawn: {error}") from None
        found = reconstruct(model, image.pixels, removed)
        attention = patch_features(model.mae, image.pixels).attention.numpy()
        inferno = matplotlib.colormaps["inferno"]
        peak = np.kron(attention / attention.max(), np.ones(image.patch_size))
        count = int(removed.sum())
        error = found.error.sum() / (np.prod(image.patch_size) * count)  # pasted patches have none
        note = (
            f"{count} of {rows * columns} patches are removed. Their mean absolute error is {255 * error:.1f} of 255. "
            "The error map is black where it is 0, and brightest where it is half of the range or more."
        )
        if model.config.norm_pix_loss:
            note += (
                " This model predicts normalised patches. The mean and the contrast of each patch are those of the "
                "image, so the pictures look better than the predictions are."
            )
        return Pictures(
            image.enlarge(found.masked),
            image.enlarge(found.reconstruction),
            image.enlarge(inferno(2 * found.error)[..., :3]),
            image.enlarge(inferno(peak)[..., :3]),
            note,
        )

    def problem_of(self, name: str) -> str | None:
        """What is wrong with a model, as a sentence; None if it can be loaded."""
        try:
            self.load(name)
        except MAEError as error:
            return str(error)
        return None


def save_examples(name: str | None, count: int, demo: Demo, folder: Path) -> Examples:
    """
    Save the first images of a dataset that the first model can read; without a model, those of three channels.

    Args:
        name: A folder of images, or a dataset here or on the Hub. None is the embedded emoji.
        count: Number of images, if there are as many.
        demo: The models.
        folder: Where the files are saved.

    Raises:
        UserError: if there are no such images.
    """
    problem = demo.problem_of(demo.names[0])
    config = MAEConfig() if problem else demo.load(demo.names[0]).config
    source, found = open_images(None if name is None else [name], config, 0), Examples([], [])
    for row, data in rows_of_some_groups(source, 2 * count, 0, 0):
        try:
            pixels = torch.as_tensor(decode_image(data, bands_of(config)))
        except DecodingError:
            continue
        path = folder / f"{row}.image"
        path.write_bytes(Path(data).read_bytes() if isinstance(data, str) else data)
        found.files.append(str(path))
        found.thumbnails.append((to_picture(pixels.nan_to_num(0) / 255).clip(0, 1) * 255).astype(np.uint8))
        if len(found.files) == count:
            break
    if not found.files:
        raise UserError(f"--examples {name}: none of its images can be read with {config.num_channels} channels.")
    return found
