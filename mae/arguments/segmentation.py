"""Recipes of semantic segmentation, and the flags of its data and evaluation."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mae.arguments.augmentation import FlipArguments
from mae.arguments.flags import (
    ABOVE_0,
    AT_LEAST_1,
    BELOW_1,
    CHECKPOINTS,
    DATA,
    EVALUATION,
    HARDWARE,
    MODEL,
    NOT_NEGATIVE,
    OPTIMISATION,
    POSITIVE,
    REGULARISATION,
    SCHEDULE,
    flag,
    one_of,
)
from mae.arguments.masks import MaskedDataArguments
from mae.arguments.recipes import Recipe, check_epochs
from mae.arguments.run import PreviewArguments
from mae.arguments.transfer import TransferArguments, fill_in
from mae.utils.errors import UserError


if TYPE_CHECKING:
    from configuration_mae import MAEConfig

# The identity of a run holds the fingerprint of the masks, and what became of their values.
_data = partial(flag, changes_results=False, group=DATA)
_model = partial(flag, changes_results=False, group=MODEL)
_optimisation = partial(flag, group=OPTIMISATION)
_schedule = partial(flag, group=SCHEDULE)
_regularisation = partial(flag, group=REGULARISATION)

# As for ADE20K: 100 epochs at batch size 16 (Appendix A.4), and the values of BEiT's code, which the paper uses, for
# what the paper leaves out: a rate of 1e-4 at batch size 16, and a warm-up of 1,500 of 160,000 steps.
_FINE_TUNING = {
    "base_learning_rate": 1.6e-3,
    "weight_decay": 0.05,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "layer_decay": (0.65, 0.75, 0.75),
    "drop_path_rate": (0.1, 0.2, 0.3),
    "num_train_epochs": 100,
    "warmup_epochs": 1,
    "segmentation_head": "upernet",
    "color_jitter": 1.0,
}
# The paper has no recipes for these.
_FROM_SCRATCH = _FINE_TUNING | {"layer_decay": 1.0, "num_train_epochs": 300, "warmup_epochs": 10}
_LINEAR = _FINE_TUNING | {
    "base_learning_rate": 1.6e-2,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "drop_path_rate": 0.0,
    "segmentation_head": "linear",
    "color_jitter": 0.0,
}
_RECIPES = {"finetune": _FINE_TUNING, "partial": _FINE_TUNING, "linear": _LINEAR}


@dataclass
class MaskArguments(FlipArguments, MaskedDataArguments, TransferArguments):
    """Flags of a segmentation run that do not depend on the model's size: masks, classes, crops."""

    fields_set_elsewhere: ClassVar[tuple[str, ...]] = (
        "segmentation_head",
        "class_weights",
        "semantic_loss_ignore_index",
        "feature_pyramid",
    )

    max_train_samples: int | None = flag(
        None,
        "Number of training images to use, drawn by --seed.",
        group=DATA,
        default_words="all",
        rule=AT_LEAST_1,
    )
    class_weights: list[str] | None = _model(
        None,
        "Weight of each class in the loss, or balanced for the inverse of its share of the pixels.",
        default_words="1 for all",
    )
    min_scale: float = _regularisation(
        0.5, "Smallest factor by which images are resized before they are cropped.", rule=POSITIVE
    )
    max_scale: float = _regularisation(
        2.0, "Largest factor by which images are resized before they are cropped.", rule=POSITIVE
    )

    def check(self) -> None:
        super().check()
        if self.min_scale > self.max_scale:
            raise UserError(f"--min_scale {self.min_scale:g} must not exceed --max_scale {self.max_scale:g}.")


@dataclass
class SegmentationFlags(MaskArguments):
    """
    Flags that change the results of training a segmenter. None stands for the recipe's value for the protocol and the
    model's size, which [`SegmentationFlags.resolve`] fills in.
    """

    segmentation_head: str | None = _model(
        None,
        "Head: linear for one layer on the last block, upernet for UPerNet on four blocks.",
        default_words="upernet; linear with --protocol linear",
        rule=one_of("linear", "upernet"),
    )
    color_jitter: float | None = _regularisation(
        None,
        "Strength of random changes of brightness, contrast, saturation and hue, for half of the images. 0 disables "
        "them.",
        default_words="1, as for ADE20K; 0 with --protocol linear",
        rule=NOT_NEGATIVE,
    )
    drop_path_rate: float | None = _regularisation(
        None,
        "Stochastic depth rate of the last block.",
        default_words="0.1, 0.2, 0.3 for B, L, H; 0 with --protocol linear",
        rule=BELOW_1,
    )
    layer_decay: float | None = _optimisation(
        None,
        "Factor of the learning rate from each layer to the one before it.",
        default_words="0.65, 0.75, 0.75 for B, L, H; 1 from scratch and with --protocol linear",
        rule=ABOVE_0,
    )
    base_learning_rate: float | None = _optimisation(
        None,
        "Learning rate per 256 images of the effective batch size.",
        default_words="1.6e-3, which is 1e-4 at batch size 16; 1.6e-2 with --protocol linear",
        rule=POSITIVE,
    )
    weight_decay: float | None = _optimisation(
        None, "Weight decay of AdamW.", default_words="0.05; 0 with --protocol linear", rule=NOT_NEGATIVE
    )
    adam_beta1: float | None = _optimisation(None, "Beta1 of AdamW.", default_words="0.9", rule=BELOW_1)
    adam_beta2: float | None = _optimisation(None, "Beta2 of AdamW.", default_words="0.999", rule=BELOW_1)
    num_train_epochs: float | None = _schedule(
        None, "Number of epochs.", default_words="100, as for ADE20K; 300 from scratch"
    )
    warmup_epochs: float | None = _schedule(
        None,
        "Number of epochs of linear warm-up.",
        default_words="1; 10 from scratch; less for a shorter run",
        rule=NOT_NEGATIVE,
    )

    def check(self) -> None:
        super().check()
        check_epochs(self)

    def resolve(self, config: "MAEConfig") -> "SegmentationRecipe":
        """Fill in the values of the recipe, for a model at least as wide as the paper's B, L or H."""
        recipe = _FROM_SCRATCH if self.from_scratch else _RECIPES[self.protocol]
        if config.num_channels not in (1, 3):
            recipe = recipe | {"color_jitter": 0.0}
        return SegmentationRecipe(**fill_in(self, recipe, config))

    @property
    def head(self) -> str:
        """The head, before the model is built."""
        return self.segmentation_head or _RECIPES[self.protocol]["segmentation_head"]


@dataclass(kw_only=True)
class SegmentationRecipe(MaskArguments, Recipe):
    """What changes the results of training a segmenter, for a model of a known size: no value is left open."""

    segmentation_head: str
    color_jitter: float
    drop_path_rate: float
    layer_decay: float


@dataclass
class SegmentationArguments(PreviewArguments):
    """Flags of a segmentation run that do not change its results."""

    output_dir: str = flag(
        "outputs/run_semantic_segmentation",
        "Directory for everything that the run writes.",
        False,
        group=CHECKPOINTS,
        is_path=True,
    )
    per_device_train_batch_size: int = flag(
        16, "Images per forward and backward pass of a process.", False, group=HARDWARE, rule=AT_LEAST_1
    )
    max_eval_samples: int | None = flag(
        None,
        "Number of validation images to use.",
        False,
        group=EVALUATION,
        default_words="all",
        rule=AT_LEAST_1,
    )
    eval_overlap: float = flag(
        1 / 3,
        "Smallest share of a window that it has in common with the next one, when validation images are larger.",
        False,
        group=EVALUATION,
        default_words="1/3",
        rule=BELOW_1,
    )
    save_predictions: bool = flag(
        False,
        "Write the predicted masks of the validation images to the folder predictions of --output_dir.",
        False,
        group=EVALUATION,
    )
