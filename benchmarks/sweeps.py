"""Points at which a training step is measured, each in a process of its own."""

import multiprocessing
import statistics
from dataclasses import dataclass, replace

import torch

from benchmarks.timing import PeakMemory, autocast, best_device, seconds_of
from configuration_mae import MAEConfig
from mae.training.flops import training_flops
from mae.training.optimization import make_optimizer
from modeling_mae import MAEForPreTraining


@dataclass(frozen=True)
class Point:
    model_size: str
    image_size: int
    batch_size: int
    mask_ratio: float

    @property
    def config(self) -> MAEConfig:
        """The configuration. Pre-training must remove a patch, so a mask ratio of 0 removes one."""
        config = MAEConfig.from_size(self.model_size, image_size=self.image_size)
        config.mask_ratio = max(self.mask_ratio, 0.5 / config.num_patches)
        return config

    @property
    def flops(self) -> int:
        return self.batch_size * training_flops(self.config)


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and bytes of peak memory (None if unknown)."""

    seconds: float
    memory: int | None


SWEEPS = {
    "image_size": (64, 96, 128, 160, 192, 224, 288, 336, 384, 448),
    "batch_size": (1, 2, 4, 8, 16, 32),
    "mask_ratio": (0.0, 0.25, 0.5, 0.6, 0.75, 0.85, 0.9),
    "model_size": ("tiny", "small", "base", "large"),
}
QUICK = {
    "image_size": (64, 128, 224),
    "batch_size": (1, 4, 8),
    "mask_ratio": (0.0, 0.5, 0.75, 0.9),
    "model_size": ("tiny", "small"),
}


def measure(point: Point, precision: str, rounds: int) -> Cost:
    """Median time and peak memory of the step at a point."""
    device = best_device()
    memory = PeakMemory(device)
    torch.manual_seed(0)
    config = point.config
    model = MAEForPreTraining(config).to(device).train()
    optimizer = make_optimizer(model, 0.05, (0.9, 0.95))
    images = torch.randn(point.batch_size, config.num_channels, point.image_size, point.image_size, device=device)
    noise = torch.rand(point.batch_size, config.num_patches, device=device)

    def step() -> None:
        with autocast(precision, device):
            loss = model(images, noise=noise, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    seconds = [seconds_of(step) for _ in range(rounds)]
    return Cost(statistics.median(seconds), memory.read())


def points_of(sweeps: dict[str, tuple], default: Point) -> dict[str, list[Point]]:
    """Points of each sweep, in the order of their cost. Every sweep contains the default point."""
    found = {}
    for name, values in sweeps.items():
        points = [replace(default, **{name: value}) for value in values]
        points += [default] if default not in points else []
        found[name] = sorted(points, key=lambda point: point.flops)
    return found


def measure_all(points: list[Point], precision: str, rounds: int) -> dict[Point, Cost]:
    """Measure each point once, in a process of its own."""
    # A server that has imported all and computed nothing forks the processes. Threads of torch survive no other fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    costs = {}
    with context.Pool(1, maxtasksperchild=1) as pool:
        for point in dict.fromkeys(points):
            costs[point] = pool.apply(measure, (point, precision, rounds))
    return costs
