"""Pictures on demand: the images, the model, and a grid of pictures of each kind, from flags."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from configuration_mae import MAEConfig
from mae.cli.data import embedded_data
from mae.conversion.loading import load_checkpoint
from mae.conversion.report import LoadReport
from mae.data.bands import bands_of
from mae.data.decoding import DecodingError, decode_image
from mae.data.folders import open_folder
from mae.data.opening import open_dataset
from mae.data.sources import ImageFileSource, Source
from mae.data.subsets import take_rows
from mae.evaluation.features import compute_features
from mae.evaluation.grids import Row, save_grid
from mae.evaluation.inspection import (
    draw_mask,
    fit_to_patches,
    nearest,
    patch_features,
    principal_colours,
    reconstruct,
    to_picture,
)
from mae.evaluation.reconstruction import rows_of_some_groups
from mae.utils.errors import DataError, UserError
from mae.utils.hashing import permutation
from modeling_mae import MAEForPreTraining, MAEModel, MAEPreTrainedModel


# A tried image for each that is drawn, and some more in case that they cannot be read.
_TRIES = 10


def load_model(arguments: Any, needs_decoder: bool) -> tuple[MAEForPreTraining | MAEModel, LoadReport]:
    """
    The model of --model with its decoder, or its encoder alone.

    Raises:
        UserError: as [`load_checkpoint`], or if it has no decoder and needs one.
    """
    options = {
        "revision": arguments.model_revision,
        "allow_pickle": arguments.allow_pickle,
        "dtype": torch.float32,
        "retry_minutes": arguments.data_retry_minutes,
    }
    model: MAEPreTrainedModel
    model, report = load_checkpoint(arguments.model, None if needs_decoder else MAEModel, **options)
    if not needs_decoder:
        return model, report
    if not isinstance(model, MAEForPreTraining):
        raise UserError(
            f"--model {arguments.model} has no decoder, and cannot reconstruct images. Use a model of pre-training, "
            "or --pictures features or neighbours."
        )
    if arguments.masking is not None:
        model.config.masking = arguments.masking
        if arguments.masking == "grid" and arguments.mask_ratio not in (None, [0.75]):
            raise UserError("--masking grid keeps 1 patch of 4. Leave out --mask_ratio.")
        if arguments.masking == "grid":
            model.config.mask_ratio = 0.75
    return model, report


def open_images(names: list[str] | None, config: MAEConfig, retry_minutes: float) -> Source:
    """
    The images of --images.

    Raises:
        UserError: if there are none.
    """
    bands = bands_of(config)
    if names is None:
        return open_dataset(str(embedded_data()))[0]
    missing = [name for name in names if not os.path.exists(name)]
    if len(names) > 1 and missing:
        raise UserError(f"--images {missing[0]} does not exist.")
    if all(os.path.isfile(name) for name in names) and not names[0].endswith((".parquet", ".tar")):
        return ImageFileSource({name: name for name in names}, "files")
    if len(names) > 1:
        raise UserError("--images takes several files, or one folder or dataset.")
    if os.path.isdir(names[0]):
        try:
            return open_folder(names[0], "--images", bands)
        except UserError:
            if not any(Path(names[0]).rglob("*.parquet")) and not any(Path(names[0]).rglob("*.tar")):
                raise
    return open_dataset(names[0], retry_minutes=retry_minutes)[0]


def _load(source: Source, config: MAEConfig, count: int, arguments: Any) -> Iterator[Tensor]:
    """Up to `count` readable images in the model's size and their own shape."""
    reason, found, tried = "", 0, 0
    for _, data in rows_of_some_groups(source, count, arguments.seed, arguments.data_retry_minutes):
        if found == count or tried == _TRIES * count:
            break
        tried += 1
        try:
            image = fit_to_patches(torch.as_tensor(decode_image(data, bands_of(config))), config)
        except DecodingError as error:
            reason = str(error)
            continue
        found += 1
        yield image
    if not found:
        raise DataError(f"None of the first {tried} images of --images can be read: {reason}.")


def _name(arguments: Any) -> str:
    return Path(arguments.model).name if os.path.exists(arguments.model) else arguments.model


def draw_reconstructions(model: MAEForPreTraining, source: Source, arguments: Any, path: Path) -> None:
    """Masked image and reconstruction for each mask ratio and draw, and the original."""
    config = model.config
    ratios = arguments.mask_ratio or [config.mask_ratio]
    masks = [(ratio, draw) for ratio in ratios for draw in range(arguments.num_draws)]
    rows = []
    for number, image in enumerate(_load(source, config, arguments.num_images, arguments)):
        pictures: list[np.ndarray | None] = []
        for ratio, draw in masks:
            try:
                # The same noise for all ratios: what one mask removes, a larger one removes too.
                removed = draw_mask(config, image.shape[1:], ratio, (arguments.seed, number, draw))
            except ValueError as error:
                raise UserError(f"--mask_ratio {ratio}: {error}") from None
            found = reconstruct(model, image, removed, arguments.paste)
            pictures += [found.masked, found.reconstruction]
        rows.append(Row([*pictures, to_picture(image.nan_to_num(0) / 255)]))
    columns = [title for ratio, _ in masks for title in (f"{ratio:.0%} masked", "reconstruction")]
    title = f"{_name(arguments)}: {config.masking} masks"
    if not arguments.paste:
        title += ", visible patches as they are predicted"
    if config.norm_pix_loss:
        title += " (mean and contrast of each patch are those of the original)"
    save_grid(rows, [*columns, "original"], path, title)


def draw_features(encoder: MAEModel, source: Source, arguments: Any, path: Path) -> None:
    """Image, attention of cls, and principal components of the patch tokens, of the last block."""
    images = list(_load(source, encoder.config, arguments.num_images, arguments))
    features = [patch_features(encoder, image) for image in images]
    colours = principal_colours([each.tokens for each in features])
    rows = []
    for image, found, colour in zip(images, features, colours):
        attention = (found.attention / found.attention.max()).numpy()
        rows.append(Row([to_picture(image.nan_to_num(0) / 255), attention, colour]))
    columns = ["image", "attention of cls", "main components"]
    save_grid(rows, columns, path, f"{_name(arguments)}: the last block")


def draw_neighbours(
    encoder: MAEModel, source: Source, arguments: Any, accelerator: Accelerator, count: int, path: Path
) -> None:
    """Each image with those whose mean patch tokens are most like its own, and the cosines."""
    chosen = np.sort(permutation(len(source), arguments.seed, "neighbours")[: arguments.max_images])
    sample = take_rows(source, chosen)
    minutes = arguments.data_retry_minutes
    outputs = compute_features(
        encoder, sample, accelerator, "images", "mean", batch_size=arguments.batch_size, retry_minutes=minutes
    )
    if len(outputs.rows) < 2:
        raise DataError("--pictures neighbours needs two images that can be read.")
    queries = permutation(len(outputs.rows), arguments.seed, "queries")[: arguments.num_images].tolist()
    numbers, cosines = nearest(outputs.outputs["features"], queries, count)
    wanted = {int(outputs.rows[number]) for number in {*queries, *numbers.flatten().tolist()}}
    stored = [data for group in range(len(sample.group_sizes)) for data in _rows(sample, group)]
    images = {row: torch.as_tensor(decode_image(stored[row], bands_of(encoder.config))) for row in wanted}
    fitted = {row: fit_to_patches(image, encoder.config) for row, image in images.items()}
    pictures = {row: to_picture(image.nan_to_num(0) / 255) for row, image in fitted.items()}
    rows = []
    for query, others, values in zip(queries, numbers, cosines):
        drawn = [pictures[int(outputs.rows[number])] for number in (query, *others.tolist())]
        rows.append(Row(drawn, ["", *(f"{value:.3f}" for value in values)]))
    columns = ["image", *(f"neighbour {number}" for number in range(1, numbers.shape[1] + 1))]
    title = (
        f"{_name(arguments)}: neighbours among {len(outputs.rows):,} images, by the cosine of their mean patch tokens"
    )
    save_grid(rows, columns, path, title)


def _rows(source: Source, group: int) -> Iterator[bytes | str]:
    if source.group_sizes[group]:
        yield from source.read(group, 0)
