"""Features of images by a frozen encoder, for what is not trained: nearest neighbours, files of features."""

import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mae.data.loader import default_num_workers
from mae.data.sources import Source
from mae.evaluation.inference import Outputs, map_images
from mae.utils.errors import RunError
from modeling_mae import MAEModel


logger = logging.getLogger(__name__)


def encode(model: MAEModel, pixel_values: Tensor, pooling: str, layer: int | None = None) -> Tensor:
    """
    Features of images, float32 of shape `(B, D)`.

    Args:
        pooling: "cls" for the cls token, "mean" for the mean of the patch tokens.
        layer: The block after which they are taken, from 1, negative ones from the last; 0 is what enters the first.
            Default: the encoder's output, after its final norm.
    """
    outputs = model(pixel_values, output_hidden_states=layer is not None, return_dict=True)
    tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    return (tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)).float()


def compute_features(
    encoder: MAEModel,
    source: Source,
    accelerator: Accelerator,
    what: str,
    pooling: str,
    layer: int | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    retry_minutes: float = 0,
) -> Outputs:
    """
    Features of every image of a source, on all processes; images that cannot be read are told and left out.

    Args:
        what: The images, beside the bar.

    Raises:
        RunError: where none can be read.
    """
    bar = tqdm(
        total=sum(source.group_sizes),
        desc=f"features, {what}",
        unit="image",
        disable=not accelerator.is_main_process,
    )
    with bar, accelerator.autocast():
        mapped = map_images(
            lambda pixel_values, rows: {"features": encode(encoder, pixel_values, pooling, layer)},
            source,
            encoder.config,
            accelerator.device,
            batch_size,
            default_num_workers(accelerator.device) if num_workers is None else num_workers,
            retry_minutes,
            show=bar.update,
        )
    for (file, row), reason in mapped.skipped[:5]:
        logger.info(f"Skipped an unreadable image, {file} row {row}: {reason}")
    if len(mapped.skipped) > 5:
        logger.info(f"Skipped {len(mapped.skipped) - 5:,} more unreadable images")
    if not len(mapped.rows):
        raise RunError(f"None of the {what} images can be read.")
    return mapped


def _read_features(path: Path) -> Outputs | None:
    try:
        tensors = load_file(path)
        return Outputs(tensors["rows"].numpy(), {"features": tensors["features"]})
    except (OSError, SafetensorError, KeyError):  # not there, or damaged: as if it were not there
        return None


def _write_features(path: Path, mapped: Outputs) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"rows": torch.from_numpy(mapped.rows), "features": mapped.outputs["features"]}
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:  # a cache that cannot be written is no reason to stop
        logger.info(f"Note: the features are not kept: {error}")
