"""Features of images, computed by a frozen encoder."""

import logging
from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor

from mae.data.loader import choose_num_workers
from mae.data.sources import Source
from mae.evaluation.inference import EvaluationBatches, Outputs, map_images
from mae.utils.errors import DataError
from mae.utils.progress import ProgressBar
from modeling_mae import MAEModel


logger = logging.getLogger(__name__)

_SKIPPED_SHOWN = 5


def encode(model: MAEModel, pixel_values: Tensor, pooling: str, layer: int | None = None) -> Tensor:
    """
    Features of a batch of images, float32 of shape `(B, D)`.

    Args:
        pooling: "cls" for the cls token, "mean" for the mean of the patch tokens.
        layer: The block after which features are taken: counted from 1, or from the last if negative. 0 is the input
            of the first block, and None the encoder's output after its final norm.
    """
    outputs = model(pixel_values, output_hidden_states=layer is not None, return_dict=True)
    tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    return (tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)).float()


def encode_images(
    encoder: MAEModel,
    images: EvaluationBatches,
    what: str,
    pooling: str,
    layer: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda count: None,
) -> Outputs | None:
    """
    Features of all images, on all ranks: the entry "features" of the outputs. None if `should_stop` returned true.

    The precision is that of the surrounding autocast, and the encoder must be in evaluation mode.

    Args:
        what: The kind of images, for the error.

    Raises:
        DataError: if no image can be read.
    """
    outputs = map_images(
        lambda pixel_values, rows: {"features": encode(encoder, pixel_values, pooling, layer)},
        images,
        next(encoder.parameters()).device,
        should_stop,
        progress,
    )
    if outputs is not None and not len(outputs.rows):
        reason = outputs.skipped[0][1] if outputs.skipped else "there are none"
        raise DataError(f"None of the {images.num_images:,} {what} images can be read: {reason}.")
    return outputs


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
    should_stop: Callable[[], bool] = lambda: False,
) -> Outputs | None:
    """
    Features of all images of a source with a progress bar, in the precision of the accelerator.

    Args:
        what: The kind of images, for the progress bar and the error.
        num_workers: DataLoader workers of each rank. None chooses them by the device.

    Raises:
        DataError: if no image can be read.
    """
    num_workers = choose_num_workers(num_workers, accelerator.device)
    images = EvaluationBatches(source, encoder.config, batch_size, num_workers, retry_minutes)
    was_training = encoder.training
    encoder.eval()
    try:
        with (
            ProgressBar(
                total=images.num_images,
                desc=f"features, {what}",
                unit="image",
            ) as bar,
            accelerator.autocast(),
        ):
            return encode_images(encoder, images, what, pooling, layer, should_stop, bar.update)
    finally:
        encoder.train(was_training)


def log_skipped(outputs: Outputs) -> None:
    """Log the first images that could not be read, and the number of the others."""
    for (file, row), reason in outputs.skipped[:_SKIPPED_SHOWN]:
        logger.info(f"Skipped an unreadable image, {file} row {row}: {reason}")
    if len(outputs.skipped) > _SKIPPED_SHOWN:
        logger.info(f"Skipped {len(outputs.skipped) - _SKIPPED_SHOWN:,} more unreadable images")
