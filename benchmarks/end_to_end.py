"""
Whole pre-training runs against transformers' Trainer: wall time from the command to the prompt.

    python -m benchmarks.end_to_end [--images DIR] [--cases tiny small_60 small_300] [--rounds 3]

This package: `python examples/run_mae.py`. The peer: benchmarks/vit_mae_trainer.py, which is transformers' road with
ViTMAE, Trainer, `datasets` and torchvision. Both train a model of the same sizes for the same steps on the same
images, with AdamW, the same schedule, gradients clipped to 1, one DataLoader worker, a line of the log every 10 steps,
a checkpoint and the model at the end, and no tracker. Neither uses the network. The Trainer evaluates nothing. This
package cannot leave out the evaluation after the last step, so it evaluates one image and draws it.

The runs are separate processes and alternate. A run of 2 steps goes first, which fills the caches of files and of
`datasets`. Without `--images`, 200 JPEG files of 500 x 375 pixels with the spectrum of photographs are generated.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from benchmarks.timing import PRECISIONS, alternate, machine, median_ratio, table
from configuration_mae import MAEConfig


ROOT = Path(__file__).resolve().parent.parent
OURS, PEER = "this package", "ViTMAE and Trainer"
SCRIPTS = {OURS: ROOT / "examples" / "run_mae.py", PEER: ROOT / "benchmarks" / "vit_mae_trainer.py"}
# Fields of both configurations that decide what a model costs.
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
FIELDS += tuple(f"decoder_{name}" for name in FIELDS[:4])
# 208,512 parameters.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
SMALL |= {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
SMALL |= {"decoder_intermediate_size": 128}


@dataclass(frozen=True)
class Case:
    title: str
    config: MAEConfig
    steps: int
    batch_size: int = 32


CASES = {
    "tiny": Case("ViT-Ti, 30 steps", MAEConfig.from_size("tiny"), 30),
    "small_60": Case("0.2 M parameters, 60 steps", MAEConfig(**SMALL), 60),
    "small_300": Case("0.2 M parameters, 300 steps", MAEConfig(**SMALL), 300),
}


def generate_photographs(folder: Path, count: int = 200, size: tuple[int, int] = (500, 375)) -> Path:
    """Write JPEG files with the spectrum of photographs, whose amplitude falls as 1 / frequency."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    for number in range(count):
        noise = generator.standard_normal((3, height, width))
        noise = 0.8 * noise[:1] + 0.2 * noise  # mostly grey
        image = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(height, width))
        pixels = np.clip(128 + 50 * image / image.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number:04}.jpg", quality=92)
    return folder


def command(name: str, case: Case, precision: str, images: Path, output_dir: Path) -> list[str]:
    """The command of one run. Flags are shared, but for those that only one of the scripts has."""
    overrides = ",".join(f"{field}={getattr(case.config, field)}" for field in FIELDS)
    flags = {
        "train_dir": images,
        "output_dir": output_dir,
        "config_overrides": overrides,
        "norm_pix_loss": True,
        "max_steps": case.steps,
        "per_device_train_batch_size": case.batch_size,
        "learning_rate": 1e-3,
        "warmup_steps": max(case.steps // 10, 1),
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.05,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "dataloader_num_workers": 1,
        "logging_steps": 10,
        "report_to": "none",
        "seed": 0,
        # All batches are full: this package continues a batch across epochs.
        "dataloader_drop_last": True,
        "dataloader_persistent_workers": True,
    }
    if name == OURS:
        flags |= {"eval_steps": case.steps, "max_eval_samples": 1}
    elif not torch.cuda.is_available():
        flags["use_cpu"] = True  # without it the Trainer refuses bf16
    if precision == "bf16":
        flags["bf16"] = True
    return [sys.executable, str(SCRIPTS[name]), *(str(word) for key in flags for word in (f"--{key}", flags[key]))]


def environment(cache: Path) -> dict[str, str]:
    """Variables of both sides: no network, and caches of their own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(arguments: list[str], variables: dict[str, str]) -> None:
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def count_parameters(output_dir: Path) -> int:
    """Number of parameters in the model that a run saved, to check that both sides trained the same."""
    with safe_open(output_dir / "model.safetensors", "pt") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())


def compare(case: Case, precision: str, images: Path, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of whole runs."""
    variables, counts = environment(folder / "datasets"), {}

    def whole_run(name: str, case: Case) -> None:
        output_dir = folder / "run"
        run(command(name, case, precision, images, output_dir), variables)
        counts[name] = count_parameters(output_dir)
        shutil.rmtree(output_dir)

    short = Case(case.title, case.config, 2, case.batch_size)
    alternate({name: lambda name=name: whole_run(name, short) for name in SCRIPTS}, rounds=1, warm_up=0)
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"The models differ in their number of parameters: {counts}.")
    return alternate({name: lambda name=name: whole_run(name, case) for name in SCRIPTS}, rounds, warm_up=0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: generated)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="(default: all)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="(default: both)")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each row (default: 3)")
    arguments = parser.parse_args(argv)

    print(f"{machine()}\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = arguments.images or generate_photographs(folder / "images")
        for case in (CASES[name] for name in arguments.cases):
            for precision in arguments.precisions:
                seconds = compare(case, precision, images.resolve(), arguments.rounds, folder)
                medians = [f"{statistics.median(seconds[name]):.1f} s" for name in (PEER, OURS)]
                ratio = median_ratio(seconds[PEER], seconds[OURS])
                rows.append([f"{case.title} of {case.batch_size}", precision, *medians, f"{ratio:.2f}"])
                print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(["run", "precision", PEER, OURS, "ratio"], rows), flush=True)


if __name__ == "__main__":
    main()
