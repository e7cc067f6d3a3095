"""Reconstruction loss and pictures of fixed images with fixed masks."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from configuration_mae import MAEConfig
from mae.data.bands import bands_of
from mae.data.decoding import DecodingError, open_image
from mae.data.normalization import model_inputs, normalize_images, patch_weights
from mae.data.sources import Source
from mae.data.transforms import EvaluationTransform
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.utils.distributed import is_main_process, on_main_process
from mae.utils.errors import UserError
from mae.utils.files import PICTURES_FOLDER
from mae.utils.hashing import permutation
from mae.utils.retries import retry
from modeling_mae import MAEForPreTraining


# Groups that images are taken from, if there are as many: the first rows of a group are read quickly.
_NUM_GROUPS = 16
# The number of a row, and its image as it is stored.
Row = tuple[int, bytes | str]


def picture_path(folder: Path, step: int) -> Path:
    """Path of the picture of a step, in a run's output directory."""
    return folder / PICTURES_FOLDER / f"step-{step:07}.png"


class ReconstructionEvaluator:
    """
    The loss on fixed images with masks that are drawn once, and pictures of the first images.

    Args:
        load: Loads the images, uint8 of shape (B, C, H, W). Rank 0 calls it, and sends them to the other ranks.
        every_steps: Optimizer steps between two evaluations.
        batch_size: Images of one forward pass.
        title: Title of the pictures.
        seed: Seed of the masks.
        max_nodata_share: A patch with a larger share of missing data does not count.
    """

    NUM_PICTURES = 12
    every_epochs = None

    def __init__(
        self,
        load: Callable[[], Tensor],
        every_steps: int,
        batch_size: int,
        title: str,
        seed: int = 0,
        max_nodata_share: float = 0.5,
    ):
        self.every_steps = every_steps
        self.batch_size = batch_size
        self.title = title
        self.seed = seed
        self.max_nodata_share = max_nodata_share
        # All images on every rank, because a rank's part of a sharded model cannot run alone.
        self.images = on_main_process(load)

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        config, device = model.config, next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(self.images), config.num_patches, generator=generator)
        total = torch.zeros((), device=device)
        for images, some_noise in zip(self.images.split(self.batch_size), noise.split(self.batch_size)):
            if context.should_stop():
                return None
            images = images.to(device)
            pixel_values = model_inputs(images, config)
            weights = patch_weights(images, config, self.max_nodata_share)
            outputs = model(pixel_values, noise=some_noise.to(device), return_logits=False, patch_weights=weights)
            total += outputs.loss * len(images)
        path = picture_path(context.folder, context.step)
        self._draw(model, noise[: self.NUM_PICTURES].to(device), path, context.epoch)
        return Evaluation({"eval_loss": total.item() / len(self.images), "reconstruction": path})

    def _draw(self, model: MAEForPreTraining, noise: Tensor, path: Path, epoch: float) -> None:
        """Draw the first images. Every rank must call this, but only rank 0 writes."""
        pixel_values = normalize_images(self.images[: self.NUM_PICTURES].to(noise.device), model.config)
        outputs = model.reconstruct(pixel_values, noise=noise)
        if is_main_process():
            path.parent.mkdir(exist_ok=True)
            title = f"{self.title} after {epoch:.1f} epochs"
            if model.config.norm_pix_loss:
                title += " (mean and contrast of each patch are those of the original)"
            # Imported late: a run need not wait for matplotlib before its first step.
            from mae.evaluation.visualization import save_reconstruction

            save_reconstruction(model, pixel_values, outputs, path, title)


def load_images(source: Source, config: MAEConfig, count: int, seed: int = 0, retry_minutes: float = 0) -> Tensor:
    """
    Load up to `count` images of a source as the model's image processor prepares them, uint8 of shape (count, C, H,
    W). They are always the same: the first readable rows of some groups, taken from these in turn.

    Raises:
        UserError: if no image can be read.
    """
    transform = EvaluationTransform(config)
    images, num_tried, reason = [], 0, ""
    for _, data in itertools.islice(rows_of_some_groups(source, count, seed, retry_minutes), 10 * count + 1):
        num_tried += 1
        try:
            image = open_image(data, bands_of(config))
            images.append(transform.prepare(image))
        except DecodingError as error:  # training names unreadable images
            reason = str(error)
        if len(images) == count:
            break
    if not images:
        raise UserError(f"None of the first {num_tried} images can be read ({reason}), so there is none to evaluate.")
    return torch.stack(images)


def rows_of_some_groups(source: Source, count: int, seed: int, retry_minutes: float) -> Iterator[Row]:
    """Rows of groups in a fixed random order: one of each group in turn, from several groups at once."""
    groups = permutation(len(source.group_sizes), seed, "evaluation")
    groups = [int(group) for group in groups if source.group_sizes[group]]
    at_once = min(len(groups), _NUM_GROUPS)
    per_group = -(-count // at_once)
    with ThreadPoolExecutor(source.num_readers) as pool:
        for start in range(0, len(groups), at_once):
            read = partial(_read_rows, source, retry_minutes, count=per_group)
            rows = pool.map(read, groups[start : start + at_once])
            yield from (row for turn in itertools.zip_longest(*rows) for row in turn if row is not None)


def _read_rows(source: Source, retry_minutes: float, group: int, count: int) -> list[Row]:
    """Read the first rows of a group."""
    what, first = f"Reading {source.origin(group, 0)[0]}", int(source.starts[group])
    return retry(what, retry_minutes, lambda: list(enumerate(itertools.islice(source.read(group, 0), count), first)))
