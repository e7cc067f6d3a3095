"""Create the Accelerator: device, mixed precision, FSDP2 and trackers."""

import os
import platform
import warnings
from collections.abc import Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from mae.arguments.run import HardwareArguments
from mae.utils.distributed import count_cores
from mae.utils.errors import UserError, first_line
from mae.utils.files import LOGS_FOLDER


_TRACKERS = {
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "wandb": is_wandb_available,
}
# Packages whose versions are recorded.
_PACKAGES = ("mae", "torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors")
_PACKAGES += ("numpy", "pillow", "pyarrow")


def make_accelerator(
    arguments: HardwareArguments, output_dir: str | None = None, trackers: Sequence[str] = ()
) -> Accelerator:
    """
    Create the Accelerator of this process.

    Args:
        output_dir: The directory of a run, for the files of trackers.
        trackers: Names of trackers.

    Raises:
        UserError: if the launcher or Accelerate's configuration asks for something else than Accelerate gives, the
            device lacks the precision, or a tracker is not installed.
    """
    for name in trackers:
        if name not in _TRACKERS:
            raise UserError(f"--report_to {name} must be one of {', '.join(_TRACKERS)}, none.")
        if not _TRACKERS[name]():
            raise UserError(f"--report_to {name} is not installed. Run: pip install {name}")
    timeout = InitProcessGroupKwargs(timeout=process_timeout(arguments))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.tf32
    folders = None
    if output_dir is not None:
        folders = ProjectConfiguration(output_dir, os.path.join(output_dir, LOGS_FOLDER))
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and os.environ.get("FSDP_VERSION") != "2":
        raise UserError("Only FSDP2 is supported. Set fsdp_version: 2 in Accelerate's configuration.")
    sharding = None
    if wants_fsdp:
        # Weights stay float32 and autocast casts, as with DDP. Accelerate's own policy would cast everything to
        # bfloat16, including the residual stream, the noise that orders the patches, and the loss.
        sharding = FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())
        # The model changes no view in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="bf16" if arguments.bf16 else "fp16" if arguments.fp16 else None,  # else the launcher's
            # Gradients are views of the buckets that are sent, instead of copies.
            kwargs_handlers=[timeout, DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            log_with=list(trackers) or None,
            project_config=folders,
            fsdp_plugin=sharding,
        )
    except ValueError as error:  # a precision that the device does not have
        raise UserError(first_line(error)) from None
    if accelerator.mixed_precision not in ("no", "bf16", "fp16"):
        raise UserError(f"Mixed precision {accelerator.mixed_precision} is not supported. Use --bf16, --fp16 or none.")
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:  # Accelerate silently uses fp32
        raise UserError("float16 needs a GPU. Use --bf16, or no mixed precision.")
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"Accelerate's configuration has gradient_accumulation_steps {accelerator.gradient_accumulation_steps}. "
            "Remove it there, and pass --gradient_accumulation_steps to this script."
        )
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != world_size:
        raise UserError(
            f"The launcher started {world_size} processes but Accelerate sees {accelerator.num_processes}. On a CPU: "
            f"ACCELERATE_USE_CPU=true python -m torch.distributed.run --nproc_per_node {world_size} …"
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise UserError(f"{accelerator.distributed_type.value} is not supported. Use DDP or FSDP2.")
    if wants_fsdp and not accelerator.is_fsdp2:  # Accelerate silently uses DDP
        raise UserError("FSDP needs several processes, each with a GPU of its own.")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or world_size > 1
    if accelerator.device.type == "cpu" and launched and is_launchers_default("OMP_NUM_THREADS", "1"):
        torch.set_num_threads(max(count_cores(), 1))
    return accelerator


def is_launchers_default(name: str, default: str) -> bool:
    """
    Whether an environment variable has a launcher's default, rather than a value that the user has set.

    Both launchers set OMP_NUM_THREADS=1 if it is not set, which on a CPU leaves half or more of the machine idle.
    """
    if os.environ.get(name) != default:
        return False
    try:  # what the launcher itself was started with
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:  # not on Linux
        return True
    return not any(variable.startswith(f"{name}=".encode()) for variable in started_with)


def process_timeout(arguments: HardwareArguments) -> timedelta:
    """How long ranks wait for each other, because one may wait for its data."""
    return timedelta(minutes=30 + arguments.data_retry_minutes)


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions and machine, as JSON values. Nothing names a user or a host."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout without installing it
            pass
    device: dict[str, Any] = {"type": accelerator.device.type}
    if accelerator.device.type == "cuda":
        device |= {"name": torch.cuda.get_device_name(accelerator.device), "cuda": torch.version.cuda}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": device,
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "cores": count_cores() * int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
    }
