"""Features of images by a frozen encoder, for what is not trained: nearest neighbours, files of features."""

import torch
from accelerate import Accelerator
from tqdm import tqdm

from mae.arguments.recipes import FeatureArguments
from mae.conversion.loading import Found, load_checkpoint
from mae.data.sources import Source
from mae.evaluation.inference import Mapped, encode, map_images
from mae.training.accelerator import default_num_workers, say
from mae.utils.errors import RunError, UserError
from modeling_mae import MAEModel


def load_encoder(arguments: FeatureArguments, accelerator: Accelerator) -> tuple[MAEModel, Found]:
    """
    The encoder that flags name, on its device, and what was found in the checkpoint. A pooling that none names is
    the encoder's.

    Raises:
        UserError: as [`load_checkpoint`], and for a layer that it does not have.
    """
    size, fields = arguments.image_size, {}
    if size is not None:
        fields["image_size"] = size[0] if len(size) == 1 else tuple(size)
    encoder, found = load_checkpoint(
        arguments.model_name_or_path,
        MAEModel,
        revision=arguments.model_revision,
        allow_pickle=arguments.allow_pickle,
        dtype=torch.float32,
        retry_minutes=arguments.data_retry_minutes,
        **fields,
    )
    depth = len(encoder.blocks)
    if arguments.layer is not None and not -depth <= arguments.layer <= depth:
        raise UserError(f"--layer {arguments.layer}: this encoder has {depth} blocks, 0 to {depth} or -{depth} to -1.")
    if encoder.config.num_channels != 3 and encoder.config.image_mean is None:
        say("Note: images are not normalised, because nothing says what mean and deviation the model is for.")
    arguments.pooling = arguments.pooling or encoder.config.pooling
    return encoder.to(accelerator.device).eval(), found


def compute_features(
    encoder: MAEModel, source: Source, arguments: FeatureArguments, accelerator: Accelerator, what: str
) -> Mapped:
    """
    Features of every image of a source, on all processes; images that cannot be read are told and left out.

    Args:
        what: The images, beside the bar.

    Raises:
        RunError: where none can be read.
    """
    num_workers = arguments.dataloader_num_workers
    bar = tqdm(
        total=sum(source.group_sizes),
        desc=f"features, {what}",
        unit="image",
        disable=not accelerator.is_main_process,
    )
    with bar, accelerator.autocast():
        mapped = map_images(
            lambda pixel_values, rows: {"features": encode(encoder, pixel_values, arguments.pooling, arguments.layer)},
            source,
            encoder.config,
            accelerator.device,
            arguments.batch_size,
            default_num_workers(accelerator.device) if num_workers is None else num_workers,
            arguments.data_retry_minutes,
            show=bar.update,
        )
    for (file, row), reason in mapped.skipped[:5]:
        say(f"Skipped an unreadable image, {file} row {row}: {reason}")
    if len(mapped.skipped) > 5:
        say(f"Skipped {len(mapped.skipped) - 5:,} more unreadable images")
    if not len(mapped.rows):
        raise RunError(f"None of the {what} images can be read.")
    return mapped
