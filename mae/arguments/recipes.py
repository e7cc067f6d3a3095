"""
Recipes: the flags that change the results of a training run.

They are kept apart from [`RunArguments`], because the identity of a run is made of them. Flags have the names of
transformers' `TrainingArguments`, run_mae.py and run_image_classification.py.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mae.arguments.augmentation import CropArguments
from mae.arguments.flags import (
    ABOVE_0,
    AT_LEAST_1,
    BELOW_1,
    DATA,
    FRACTION,
    MODEL,
    NOT_NEGATIVE,
    OPTIMISATION,
    POSITIVE,
    REGULARISATION,
    SCHEDULE,
    differs_from_default,
    flag,
    flags_of,
    one_of,
)
from mae.arguments.mixture import MixtureArguments
from mae.arguments.model import ModelArguments
from mae.arguments.tiles import TileArguments
from mae.utils.errors import UserError


# The identity of a run holds the configuration and the initial weights that these lead to.
_model = partial(flag, changes_results=False, group=MODEL)
_optimisation = partial(flag, group=OPTIMISATION)
_schedule = partial(flag, group=SCHEDULE)
_regularisation = partial(flag, group=REGULARISATION)


@dataclass
class CommonRecipe(ModelArguments):
    """Flags that change the results of any training run, with the same default for all."""

    learning_rate: float | None = _optimisation(
        None,
        "Peak learning rate, used instead of --base_learning_rate.",
        default_words="--base_learning_rate times the effective batch size / 256",
        rule=POSITIVE,
    )
    max_grad_norm: float | None = _optimisation(
        None, "Norm to which gradients are clipped.", default_words="no clipping, as in the paper", rule=POSITIVE
    )
    ema_decay: float | None = _optimisation(
        None,
        "Decay of an exponential moving average of the weights, for example 0.9999. The average is what is evaluated "
        "and saved. 0 disables it.",
        default_words="none; the paper has 0.9999 for supervised training from scratch",
        rule=BELOW_1,
    )
    max_steps: int = _schedule(
        -1, "Number of optimizer steps, used instead of --num_train_epochs.", default_words="-1, which is off"
    )
    lr_scheduler_type: str = _schedule(
        "cosine",
        "Learning rate after the warm-up: cosine, a decay over the whole run; constant_with_warmup; or wsd (warm-up, "
        "stable, decay), constant and then a decay. A run with one of the last two can be made longer.",
        only_if_set=True,
        rule=one_of("cosine", "constant_with_warmup", "wsd"),
    )
    decay_ratio: float | None = _schedule(
        None,
        "Share of the run that is the decay of --lr_scheduler_type wsd.",
        only_if_set=True,
        default_words="0.2 with wsd",
        rule=FRACTION,
    )
    warmup_ratio: float | None = _schedule(
        None,
        "Share of the run that is warm-up, used instead of --warmup_epochs.",
        default_words="none",
        rule=FRACTION,
    )
    warmup_steps: int | None = _schedule(
        None,
        "Number of optimizer steps of linear warm-up, used instead of --warmup_epochs.",
        only_if_set=True,
        default_words="none",
        rule=NOT_NEGATIVE,
    )
    lanes: int = flag(
        8,
        "Number of parts of an epoch that are read side by side. It must be a multiple of the number of processes.",
        group=DATA,
        rule=AT_LEAST_1,
    )
    shuffle_buffer_size: int = flag(
        4096, "Number of images, over all lanes, within which the order is shuffled.", group=DATA
    )
    views_per_image: int = flag(
        1,
        "Number of samples of each image in a batch, each with its own crop, flip and mask (repeated augmentation). "
        "The image is decoded once for all of them. It must divide --per_device_train_batch_size.",
        only_if_set=True,
        group=DATA,
        rule=AT_LEAST_1,
    )

    def check(self) -> None:
        super().check()
        if self.max_steps < -1 or self.max_steps == 0:
            raise UserError(f"--max_steps {self.max_steps} must be positive, or -1 for --num_train_epochs.")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("--warmup_steps and --warmup_ratio exclude each other. Give one of them.")
        if self.decay_ratio is not None and self.lr_scheduler_type != "wsd":
            raise UserError(f"--decay_ratio {self.decay_ratio} needs --lr_scheduler_type wsd.")
        if self.warmup_ratio is not None and self.can_grow:
            raise UserError(
                f"--warmup_ratio {self.warmup_ratio} depends on the length of the run, which --lr_scheduler_type "
                f"{self.lr_scheduler_type} leaves open. Use --warmup_epochs or --warmup_steps."
            )

    @property
    def can_grow(self) -> bool:
        """Whether the first steps are the same for any length of the run, so that a longer one can resume it."""
        return self.lr_scheduler_type != "cosine"


def check_epochs(recipe: "CommonRecipe") -> None:
    """With --max_steps the number of epochs has no effect, and may be anything."""
    epochs = recipe.num_train_epochs  # type: ignore[attr-defined]
    if recipe.max_steps <= 0 and epochs is not None and not epochs > 0:
        raise UserError(f"--num_train_epochs {epochs} must be positive.")


@dataclass
class Recipe(CommonRecipe):
    """Flags that change the results of a training run. The defaults are the paper's for pre-training (Table 8)."""

    base_learning_rate: float | None = _optimisation(
        1.5e-4, "Learning rate per 256 images of the effective batch size.", rule=POSITIVE
    )
    weight_decay: float = _optimisation(0.05, "Weight decay of AdamW.", rule=NOT_NEGATIVE)
    adam_beta1: float = _optimisation(0.9, "Beta1 of AdamW.", rule=BELOW_1)
    adam_beta2: float = _optimisation(0.95, "Beta2 of AdamW.", rule=BELOW_1)
    num_train_epochs: float = _schedule(800, "Number of epochs.")
    warmup_epochs: float = _schedule(40, "Number of epochs of linear warm-up.", rule=NOT_NEGATIVE)

    def check(self) -> None:
        super().check()
        check_epochs(self)

    def warmup(self, num_epochs: float, steps_per_epoch: float) -> float:
        """Epochs of linear warm-up of a run of so many epochs."""
        if self.warmup_steps is not None:
            return self.warmup_steps / steps_per_epoch
        if self.warmup_ratio is not None:
            return self.warmup_ratio * num_epochs
        return self.warmup_epochs


@dataclass
class PreTrainingRecipe(MixtureArguments, TileArguments, CropArguments, Recipe):
    """Flags that change the results of pre-training. The defaults are the paper's (Table 8) for ViT-B/16."""

    mask_ratio: float | None = _model(
        None, "Share of the patches that are masked.", default_words="the model's, which is 0.75 from scratch"
    )
    norm_pix_loss: bool | None = _model(
        None,
        "Normalise the target pixels within each patch (Table 1d).",
        default_words="the model's, which is off from scratch",
    )
    standardize_images: bool | None = _model(
        None,
        "Give each channel of each image mean 0 and variance 1 in the model, in training and in inference.",
        default_words="the model's, which is off from scratch",
    )
    min_crop_area: float = _regularisation(
        0.2, "Smallest share of an image that a random crop takes.", only_if_set=True, rule=ABOVE_0
    )
    max_nodata_share: float = flag(
        0.5,
        "A patch in which missing data takes a larger share of the values is not predicted.",
        only_if_set=True,
        group=MODEL,
        rule=FRACTION,
    )
    max_train_samples: int | None = flag(  # the fingerprint of the data changes with it
        None,
        "Number of training images to use, drawn by --seed.",
        changes_results=False,
        group=DATA,
        default_words="all",
        rule=AT_LEAST_1,
    )


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """
    The values that belong to the identity of a run: those of the flags that change results by themselves.

    With --max_steps the number of epochs has no effect. The length of a run that can grow is no part of it;
    [`Horizon`] says what runs of two lengths share.
    """
    left_out = {"num_train_epochs"} if recipe.max_steps > 0 else set()
    if recipe.can_grow:
        left_out |= {"max_steps", "num_train_epochs", "decay_ratio"}
    for name, declared in flags_of(recipe).items():
        if not declared.changes_results or (declared.only_if_set and not differs_from_default(recipe, name)):
            left_out.add(name)
    return {name: getattr(recipe, name) for name in flags_of(recipe) if name not in left_out}
