"""
The tables of docs/scaling.md: what each model size computes, holds and sends.

    python -m benchmarks.scaling                  computed, in a second
    python -m benchmarks.scaling --activations    measured: the tensors that a forward pass keeps, minutes on a CPU
"""

import argparse

import torch

from benchmarks.timing import table
from configuration_mae import MAEConfig
from mae.training.flops import forward_flops, training_flops
from modeling_mae import MAEForPreTraining


SIZES = ("base", "large", "huge")
IMAGENET = 1_281_167
# Bytes a GPU can send and receive in a second at once, and what they are called.
LINKS = {"NVLink of an H100 (450 GB/s)": 450e9, "InfiniBand, 400 Gb/s": 50e9, "Ethernet, 100 Gb/s": 12.5e9}
# What of a data sheet's FLOP/s is assumed: what the paper's times mean, see `published`.
UTILISATION = 0.3
PEAKS = {"A100": 312e12, "H100": 989e12}
# Hours of 800 epochs on 128 TPU-v3 cores of 61.5 TFLOP/s (Table 2 of the paper).
PUBLISHED = {"large": 15.4, "huge": 34.5}


def build(size: str) -> MAEForPreTraining:
    with torch.device("meta"):
        return MAEForPreTraining(MAEConfig.from_size(size))


def memory() -> str:
    """Of weights, gradients and the two moments of AdamW, in float32."""
    rows = []
    for size in SIZES:
        count = build(size).num_parameters()
        trained = sum(parameter.numel() for parameter in build(size).parameters() if parameter.requires_grad)
        cells = [f"{(4 * count + 12 * trained) / share / 1e9:.2f} GB" for share in (1, 8, 64)]
        rows.append([f"ViT-{size[0].upper()}", f"{count / 1e6:.0f} M", *cells, f"{4 * trained / 1e9:.2f} GB"])
    return table(
        ["model", "parameters", "DDP, each GPU", "FSDP2, each of 8", "each of 64", "`--ema_decay` adds"], rows
    )


def throughput() -> str:
    """From FLOPs and the assumed utilisation."""
    rows = []
    for size in SIZES:
        config = MAEConfig.from_size(size)
        cells = [f"{forward_flops(config) / 1e9:.1f} G", f"{training_flops(config) / 1e9:.0f} G"]
        for peak in PEAKS.values():
            rate = UTILISATION * peak / training_flops(config)
            cells += [f"{rate:,.0f}", f"{800 * IMAGENET / rate / 8 / 3600:.0f} h"]
        rows.append([f"ViT-{size[0].upper()}", *cells])
    header = ["model", "FLOPs forward", "trained"]
    for name in PEAKS:
        header += [f"{name}, images/s", f"800 epochs on 8 {name}"]
    return table(header, rows)


def published() -> str:
    """What utilisation the paper's times mean."""
    rows = []
    for size, hours in PUBLISHED.items():
        done = 800 * IMAGENET * training_flops(MAEConfig.from_size(size))
        rows.append([f"ViT-{size[0].upper()}", f"{hours} h", f"{done / (hours * 3600 * 128 * 61.5e12):.0%}"])
    return table(["model", "128 TPU-v3 cores, 800 epochs", "of their peak"], rows)


def communication() -> str:
    """Of one step of many GPUs: DDP sends gradients twice around a ring, FSDP2 weights twice and gradients once."""
    rows = []
    for size in SIZES:
        trained = sum(parameter.numel() for parameter in build(size).parameters() if parameter.requires_grad)
        rows.append([f"ViT-{size[0].upper()}", f"{8 * trained / 1e9:.1f} GB", f"{12 * trained / 1e9:.1f} GB"])
        rows[-1] += [f"{8 * trained / link * 1e3:.0f} ms" for link in LINKS.values()]
    return table(["model", "DDP", "FSDP2", *(f"DDP over {name}" for name in LINKS)], rows)


class KeptTensors:
    """The tensors that a forward pass keeps for the backward one, each storage once, without the parameters."""

    def __init__(self, model: MAEForPreTraining):
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def activations() -> str:
    """Of one more image in a batch, with bfloat16 autocast."""
    rows = []
    for size in SIZES:
        cells = []
        for checkpointing in (False, True):
            model = MAEForPreTraining(MAEConfig.from_size(size))
            if checkpointing:
                model.gradient_checkpointing_enable()
            kept = []
            for batch_size in (1, 2):
                counter = KeptTensors(model)
                with (
                    torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor),
                    torch.autocast("cpu", torch.bfloat16),
                ):
                    outputs = model(torch.randn(batch_size, 3, 224, 224))
                kept.append(counter.bytes)
                del outputs
            cells.append(f"{(kept[1] - kept[0]) / 2**20:.0f} MiB")
        rows.append([f"ViT-{size[0].upper()}", *cells])
        print(rows[-1], flush=True)
    return table(["model", "an image", "with --gradient_checkpointing"], rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", action="store_true")
    if parser.parse_args(argv).activations:
        print(activations())
    else:
        print("\n\n".join([memory(), communication(), throughput(), published()]))


if __name__ == "__main__":
    main()
