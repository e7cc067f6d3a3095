"""
The full training step (forward, backward, AdamW) against transformers' ViTMAE.

    python -m benchmarks.step [--model_size base] [--batch_size 16] [--rounds 7] [--precisions fp32 bf16]

Both models alternate in one process, so that a machine's changes of pace meet both alike. Reported are the medians,
the median ratio of neighbouring steps (below 1: ours is faster), and the highest memory above what both models hold
between steps. bf16 is autocast.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from configuration_mae import MAEConfig
from mae.training.optimization import make_optimizer
from modeling_mae import MAEForPreTraining


class PeakMemory:
    """The highest memory in use since `reset`, in bytes above what was in use then; None where it cannot be told."""

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the high-water mark
            self.start = self._status("VmRSS")

    def read(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self.start
        return self._status("VmHWM") - self.start if Path("/proc/self/clear_refs").exists() else None

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def make_models(size: str, device: torch.device) -> dict[str, torch.nn.Module]:
    config = MAEConfig.from_size(size)
    shared = {name: getattr(config, name) for name in ViTMAEConfig.__annotations__ if hasattr(config, name)}
    peer = ViTMAEForPreTraining(ViTMAEConfig(**shared))
    return {"ours": MAEForPreTraining(config).to(device).train(), "ViTMAE": peer.to(device).train()}


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", default="base")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    models = make_models(arguments.model_size, device)
    counts = {name: parameter_count(model) for name, model in models.items()}
    assert len(set(counts.values())) == 1, counts
    config = models["ours"].config
    pixel_values = torch.randn(arguments.batch_size, 3, config.image_size, config.image_size, device=device)
    noise = torch.rand(arguments.batch_size, config.num_patches, device=device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"ViT-{arguments.model_size}, batch {arguments.batch_size}, {counts['ours']:,} parameters, {where}")

    for precision in arguments.precisions:
        optimizers = {
            "ours": make_optimizer(models["ours"], 0.05, (0.9, 0.95)),
            "ViTMAE": torch.optim.AdamW(models["ViTMAE"].parameters(), lr=0.0, betas=(0.9, 0.95), fused=True),
        }

        def step(name: str, optimizers=optimizers, precision=precision) -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = models[name](pixel_values, noise=noise).loss
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        seconds, peaks, memory = {name: [] for name in models}, {}, PeakMemory(device)
        for name in models:
            step(name)
        for number in range(arguments.rounds):
            # Each goes first in every other round.
            for name in list(models) if number % 2 == 0 else reversed(list(models)):
                memory.reset()
                seconds[name].append(step(name))
                peaks[name] = memory.read()
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds["ours"], seconds["ViTMAE"]))
        for name in models:
            low, median, high = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
            speed = arguments.batch_size / median
            peak = "unknown" if peaks[name] is None else f"{peaks[name] / 2**20:,.0f} MiB"
            print(
                f"{precision}  {name:6}  median {median:.3f} s ({low:.3f} to {high:.3f})  {speed:.1f} images/s  "
                f"peak {peak}"
            )
        print(f"{precision}  ours / ViTMAE  time {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
