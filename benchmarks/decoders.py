"""
The training step with a cross-attention decoder (CrossMAE) against the paper's decoder.

    python -m benchmarks.decoders [--model_size base] [--batch_size 16] [--rounds 5] [--precisions fp32 bf16]

A step is forward, backward and AdamW. The rows alternate in one process. "FLOP ratio" is the speed-up if FLOPs alone
cost time. bf16 is autocast.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import PRECISIONS, alternate, autocast, best_device, machine, median_ratio, table
from configuration_mae import MAEConfig
from mae.training.flops import forward_flops
from modeling_mae import MAEForPreTraining


FULL = "self-attention"
_CROSS: dict[str, Any] = {"decoder_type": "cross_attention"}
ROWS: dict[str, dict[str, Any]] = {
    FULL: {},
    "cross-attention, all removed patches": _CROSS,
    "cross-attention, 1/4 of the patches": _CROSS | {"prediction_ratio": 0.25},
    "the same, weighted feature maps": _CROSS | {"prediction_ratio": 0.25, "weighted_feature_maps": True},
}


def make_step(config: MAEConfig, batch_size: int, precision: str, device: torch.device) -> Callable[[], None]:
    """A training step of a new model on random images."""
    model = MAEForPreTraining(config).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    shape = batch_size, config.num_channels, config.image_size, config.image_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    noise = torch.rand(batch_size, config.num_patches, device=device)

    def step() -> None:
        with autocast(precision, device):
            loss = model(images, noise=noise, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", default="base", help="tiny, small, base, large or huge (default: base)")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    parser.add_argument("--batch_size", type=int, default=16, help="images a step (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each row (default: 5)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="(default: both)")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    size = {"size": arguments.model_size, "image_size": arguments.image_size, "norm_pix_loss": True}
    configs = {name: MAEConfig.from_size(**size, **fields) for name, fields in ROWS.items()}
    flops = {name: forward_flops(config) for name, config in configs.items()}
    print(f"{machine()}\nViT-{arguments.model_size}, {arguments.image_size} pixels, batch {arguments.batch_size}\n")
    rows = []
    for precision in arguments.precisions:
        make = (arguments.batch_size, precision, best_device())
        seconds = alternate({name: make_step(config, *make) for name, config in configs.items()}, arguments.rounds)
        for name, times in seconds.items():
            speed_up, limit = median_ratio(seconds[FULL], times), flops[FULL] / flops[name]
            rows.append([precision, name, f"{statistics.median(times):.3f} s", f"{speed_up:.2f}", f"{limit:.2f}"])
    print(table(["precision", "decoder", "step", "speed-up", "FLOP ratio"], rows), flush=True)


if __name__ == "__main__":
    main()
