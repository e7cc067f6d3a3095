"""Reconstruction loss and pictures of fixed images with fixed masks."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torchvision.transforms import InterpolationMode, v2

from configuration_mae import MAEConfig, to_pair
from mae.data.decoding import decode_image
from mae.data.normalization import normalize
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.visualization import save_reconstruction
from mae.utils.distributed import is_main_process, on_main_process
from mae.utils.errors import UserError, first_line
from mae.utils.files import PICTURES_FOLDER
from mae.utils.hashing import permutation
from mae.utils.retries import retry
from modeling_mae import MAEForPreTraining


def picture_path(folder: Path, step: int) -> Path:
    """Path of the picture of a step, in a run's output directory."""
    return folder / PICTURES_FOLDER / f"step-{step:07}.png"


class ReconstructionEvaluator:
    """
    The loss on fixed images, with masks drawn once, and pictures of the first of them.

    Args:
        load: Gives them, uint8 of shape (B, C, H, W). The main process calls it, for all.
        batch_size: How many of them a forward pass takes.
        title: What they are.
    """

    NUM_PICTURES = 12
    every_epochs = None

    def __init__(self, load: Callable[[], torch.Tensor], every_steps: int, batch_size: int, title: str, seed: int = 0):
        self.every_steps = every_steps
        self.batch_size = batch_size
        self.title = title
        self.seed = seed
        # All of them everywhere: a process's share of a sharded model is of no use alone.
        self.images = on_main_process(load)

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        config, device = model.config, next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(self.images), config.num_patches, generator=generator)
        total = torch.zeros((), device=device)
        for images, some_noise in zip(self.images.split(self.batch_size), noise.split(self.batch_size)):
            if context.should_stop():
                return None
            outputs = model(normalize(images.to(device), config), noise=some_noise.to(device))
            total += outputs.loss * len(images)
        pixel_values = normalize(self.images[: self.NUM_PICTURES].to(device), config)
        outputs = model.reconstruct(pixel_values, noise=noise[: self.NUM_PICTURES].to(device))
        path = picture_path(context.folder, context.step)
        if is_main_process():
            path.parent.mkdir(exist_ok=True)
            title = f"{self.title} after {context.epoch:.1f} epochs"
            if config.norm_pix_loss:
                title += " (mean and contrast of each patch are the true ones)"
            save_reconstruction(model, pixel_values, outputs, path, title)
        return Evaluation({"eval_loss": total.item() / len(self.images), "reconstruction": path})


# Of how many groups images for evaluation are taken at least, where there are as many: what lies before a row in its
# group is read too.
_EVALUATION_GROUPS = 16


def _read_rows(source: Source, retry_minutes: float, group: int, count: int) -> list[bytes | str]:
    """The first rows of a group."""
    what = f"Reading {source.origin(group, 0)[0]}"
    return retry(what, retry_minutes, lambda: list(itertools.islice(source.read(group, 0), count)))


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
