"""The evaluator of patch tokens in pre-training, from flags."""

from accelerate import Accelerator

from mae.arguments.masks import check_masked_data
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.mixture import mixed_names
from mae.cli.segmentation import open_masked_splits
from mae.data.bands import Bands
from mae.data.loader import choose_num_workers
from mae.evaluation.dense_features import MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES, DenseFeaturesEvaluator
from mae.utils.errors import UserError


def make_dense_evaluator(
    recipe: PreTrainingRecipe, arguments: PreTrainingArguments, bands: Bands, accelerator: Accelerator
) -> DenseFeaturesEvaluator:
    """
    The evaluator that --dense_epochs asks for, on up to 200 training images and 50 validation images with masks.

    Raises:
        UserError: if the data has no masks, and for mixtures, tiles and FSDP.
    """
    every = f"--dense_epochs {arguments.dense_epochs:g}"
    if mixed_names(recipe) or recipe.tile_size is not None:
        raise UserError(f"{every} needs one data set without tiles. Leave it out, and call run_dense_features.py.")
    if accelerator.is_fsdp2:
        raise UserError(f"{every} does not work with FSDP, because ranks evaluate images of other sizes. Use DDP.")
    check_masked_data(recipe, arguments)
    minutes = arguments.data_retry_minutes
    data = open_masked_splits(recipe, arguments, bands, minutes, MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES)
    return DenseFeaturesEvaluator(
        data.train,
        data.validation,
        data.coding,
        arguments.dense_epochs,
        arguments.per_device_train_batch_size,
        choose_num_workers(arguments.dataloader_num_workers, accelerator.device),
        minutes,
    )
