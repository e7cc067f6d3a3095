"""What is looked at while a model is trained: its loss on fixed images with fixed masks, and pictures of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from mae.checkpointing import PICTURES_FOLDER, RunDirectory
from mae.data import normalize
from mae.launching import on_main_process
from mae.visualization import save_reconstruction
from modeling_mae import MAEForPreTraining


class Evaluator(Protocol):
    """
    Looks at a model after every `every` steps and after the last one. Every process calls it at the same steps, with
    the model in evaluation mode and without gradients; it draws nothing from global random states.
    """

    every: int

    def __call__(
        self, model: MAEForPreTraining, step: int, epoch: float, run: RunDirectory, is_stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        """
        Numbers by name, and pictures by their path: what is logged of the step. The main process's count.

        Args:
            is_stopped: Whether the run is to stop, in which case what is returned does not matter: the next start
                looks again. What takes more than seconds asks now and then, in every process alike.
        """


def picture_path(run: RunDirectory, step: int) -> Path:
    """Where the picture of a step is."""
    return run.path / PICTURES_FOLDER / f"step-{step:07}.png"


class Reconstruction:
    """
    The loss on fixed images, with masks drawn once, and pictures of the first of them.

    Args:
        load: Gives them, uint8 of shape (B, C, H, W). The main process calls it, for all.
        batch_size: How many of them a forward pass takes.
        title: What they are.
    """

    NUM_PICTURES = 12

    def __init__(self, load: Callable[[], torch.Tensor], every: int, batch_size: int, title: str, seed: int = 0):
        self.every = every
        self.batch_size = batch_size
        self.title = title
        self.seed = seed
        # All of them everywhere: a process's share of a sharded model is of no use alone.
        self.images = on_main_process(load)

    def __call__(
        self, model: MAEForPreTraining, step: int, epoch: float, run: RunDirectory, is_stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        config, device = model.config, next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(self.images), config.num_patches, generator=generator)
        total = torch.zeros((), device=device)
        for images, some_noise in zip(self.images.split(self.batch_size), noise.split(self.batch_size)):
            if is_stopped():
                return {}
            outputs = model(normalize(images.to(device), config), noise=some_noise.to(device))
            total += outputs.loss * len(images)
        pixel_values = normalize(self.images[: self.NUM_PICTURES].to(device), config)
        outputs = model.reconstruct(pixel_values, noise=noise[: self.NUM_PICTURES].to(device))
        path = picture_path(run, step)
        if run.is_main_process:
            path.parent.mkdir(exist_ok=True)
            title = f"{self.title} after {epoch:.1f} epochs"
            if config.norm_pix_loss:
                title += " (mean and contrast of each patch are the true ones)"
            save_reconstruction(model, pixel_values, outputs, path, title)
        return {"eval_loss": total.item() / len(self.images), "reconstruction": path}
