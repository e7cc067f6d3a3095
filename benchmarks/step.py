"""
The training step (forward, backward, AdamW) against other implementations and against its own matrix products.

    python -m benchmarks.step [--model_size base] [--batch_size 16] [--rounds 7] [--precisions fp32 bf16]

The peers are transformers' ViTMAE and, if timm is installed, the official implementation on timm's blocks
(benchmarks/timm_mae.py). They get normalised images. This package gets uint8 images as in training, so that its step
includes their normalisation. All alternate in one process. "Matrix products" is the floor: the products that the step
cannot do without, forward and backward, with the same shapes and types, and nothing else (benchmarks/products.py).
The ratio is the time of a row divided by the time of this package, the median over the rounds. The peak is the highest
memory above what all models hold between steps. bf16 is autocast.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from benchmarks.products import Multiplication, products_of_step
from benchmarks.timing import (
    PRECISIONS,
    PeakMemory,
    alternate,
    autocast,
    best_device,
    machine,
    mebibytes,
    median_ratio,
    table,
)
from configuration_mae import MAEConfig, to_pair
from mae.training.optimization import make_optimizer
from modeling_mae import MAEForPreTraining
from patches_mae import normalize


OURS, VIT_MAE, OFFICIAL, FLOOR = "this package", "ViTMAE", "official on timm", "matrix products"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_models(config: MAEConfig) -> dict[str, nn.Module]:
    """This package's model and its peers, of the same configuration."""
    shared = {name: getattr(config, name) for name in ViTMAEConfig.__annotations__ if hasattr(config, name)}
    models = {OURS: MAEForPreTraining(config), VIT_MAE: ViTMAEForPreTraining(ViTMAEConfig(**shared))}
    if importlib.util.find_spec("timm"):
        from benchmarks.timm_mae import TimmMAE

        models[OFFICIAL] = TimmMAE(config)
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"The models differ in their number of parameters: {counts}.")
    return models


def training_step(model: nn.Module, images: Tensor, noise: Tensor, precision: str) -> Callable[[], Tensor]:
    """A function that makes one step and returns its loss. The learning rate is 0, so all steps are alike."""
    arguments = {}
    if isinstance(model, MAEForPreTraining):
        optimizer = make_optimizer(model, 0.05, (0.9, 0.95))
        arguments["return_logits"] = False  # as in training
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model.train()

    def step() -> Tensor:
        with autocast(precision, images.device):
            outputs = model(images, noise=noise, **arguments)
        loss = outputs if isinstance(outputs, Tensor) else outputs.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def compare(config: MAEConfig, batch_size: int, rounds: int, precision: str, device: torch.device) -> list[list[str]]:
    """Rows of the table for one precision."""
    shape = (batch_size, config.num_channels, *to_pair(config.image_size))
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    normalized = normalize(pixels, config)
    noise = torch.rand(batch_size, config.num_patches, device=device)
    models = {name: model.to(device) for name, model in make_models(config).items()}
    steps = {
        name: training_step(model, pixels if name == OURS else normalized, noise, precision)
        for name, model in models.items()
    }
    floor = Multiplication(products_of_step(config, batch_size), DTYPES[precision], device)
    seconds = alternate({**steps, FLOOR: floor}, rounds)
    peaks = {FLOOR: "none"}
    for name, step in steps.items():
        memory = PeakMemory(device)
        step()
        peaks[name] = mebibytes(memory.read())
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        ratio = f"{median_ratio(times, seconds[OURS]):.2f}"
        spread = f"{min(times):.3f} to {max(times):.3f} s"
        rows.append([precision, name, f"{median:.3f} s", spread, f"{batch_size / median:.1f}", ratio, peaks[name]])
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", default="base", help="tiny, small, base, large or huge (default: base)")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    parser.add_argument("--batch_size", type=int, default=16, help="images a step (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each row (default: 7)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="(default: both)")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    config = MAEConfig.from_size(arguments.model_size, image_size=arguments.image_size)
    flops = sum(product.flops for product in products_of_step(config, arguments.batch_size))
    print(f"{machine()}\nViT-{arguments.model_size}, {arguments.image_size} pixels, batch {arguments.batch_size}")
    print(f"The matrix products take {flops / 1e9:,.1f} GFLOP.\n")
    rows = []
    for precision in arguments.precisions:
        rows += compare(config, arguments.batch_size, arguments.rounds, precision, best_device())
    header = ["precision", "implementation", "step", "range", "images/s", "ratio to this package", "peak memory"]
    print(table(header, rows), flush=True)


if __name__ == "__main__":
    main()
