"""
Recipes: the flags that change the results of a training run.

They are kept apart from [`RunArguments`], because the identity of a run is made of them. Flags have the names of
transformers' `TrainingArguments`, run_mae.py and run_image_classification.py.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

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
    UP_TO_10,
    flag,
    flags_of,
    one_of,
)
from mae.arguments.model import ModelArguments
from mae.arguments.overrides import parse_overrides
from mae.utils.errors import UserError


if TYPE_CHECKING:
    from configuration_mae import MAEConfig

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
    warmup_ratio: float | None = _schedule(
        None,
        "Share of the run that is warm-up, used instead of --warmup_epochs.",
        default_words="none",
        rule=FRACTION,
    )
    warmup_steps: int | None = _schedule(
        None,
        "Number of optimizer steps of linear warm-up, used instead of --warmup_epochs.",
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
        group=DATA,
        rule=AT_LEAST_1,
    )

    def check(self) -> None:
        super().check()
        if self.max_steps < -1 or self.max_steps == 0:
            raise UserError(f"--max_steps {self.max_steps} must be positive, or -1 for --num_train_epochs.")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("--warmup_steps and --warmup_ratio exclude each other. Give one of them.")


def _check_epochs(recipe: "Recipe | ClassificationFlags") -> None:
    """With --max_steps the number of epochs has no effect, and may be anything."""
    epochs = recipe.num_train_epochs
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
        _check_epochs(self)

    def warmup(self, num_steps: int, num_epochs: float) -> float:
        """Epochs of linear warm-up of a run of so many steps and epochs."""
        if self.warmup_steps is not None:
            return self.warmup_steps / num_steps * num_epochs
        if self.warmup_ratio is not None:
            return self.warmup_ratio * num_epochs
        return self.warmup_epochs


@dataclass
class PreTrainingRecipe(Recipe):
    """Flags that change the results of pre-training. The defaults are the paper's (Table 8) for ViT-B/16."""

    mask_ratio: float | None = _model(
        None, "Share of the patches that are masked.", default_words="the model's, which is 0.75 from scratch"
    )
    norm_pix_loss: bool | None = _model(
        None,
        "Normalise the target pixels within each patch (Table 1d).",
        default_words="the model's, which is off from scratch",
    )
    max_train_samples: int | None = flag(  # the fingerprint of the data changes with it
        None,
        "Number of training images to use, drawn by --seed.",
        changes_results=False,
        group=DATA,
        default_words="all",
        rule=AT_LEAST_1,
    )


# Tables 9 (fine-tuning; partial fine-tuning as well, Appendix A.1), 10 (linear probe) and 11 (from scratch), for B, L
# and H if they differ.
_FINE_TUNING = {
    "base_learning_rate": (5e-4, 1e-3, 1e-3),
    "weight_decay": 0.05,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "layer_decay": (0.65, 0.75, 0.75),
    "drop_path_rate": (0.1, 0.2, 0.3),
    "num_train_epochs": (100, 50, 50),
    "warmup_epochs": 5,
    "augmentation": "randaugment",
    "random_erasing": 0.25,
    "label_smoothing_factor": 0.1,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
_FROM_SCRATCH = _FINE_TUNING | {
    "base_learning_rate": 1e-4,
    "weight_decay": 0.3,
    "adam_beta2": 0.95,
    "layer_decay": 1.0,
    "drop_path_rate": (0.1, 0.2, 0.2),
    "num_train_epochs": (300, 200, 200),
    "warmup_epochs": 20,
    "ema_decay": 0.9999,
}
_LINEAR = {
    # The paper's 0.1 x 16,384 / 256 for any batch size. A step of LARS is relative to the norm of the weights; scaled
    # to a small batch, it would be too small for a short run.
    "learning_rate": 6.4,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,  # the momentum of LARS
    "adam_beta2": 0.0,
    "layer_decay": 1.0,
    "drop_path_rate": 0.0,
    "num_train_epochs": 90,
    "warmup_epochs": 10,
    "augmentation": "none",
    "random_erasing": 0.0,
    "label_smoothing_factor": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}
PROTOCOLS = {"finetune": _FINE_TUNING, "linear": _LINEAR, "partial": _FINE_TUNING}
AUGMENTATIONS = ("none", "crop", "randaugment")


@dataclass
class ProtocolArguments(CommonRecipe):
    """Flags of a classification run that do not depend on the model's size."""

    protocol: str = flag(
        "finetune",
        "Weights to train: finetune for all, linear for a classifier on frozen features, partial for the last blocks "
        "(--num_trainable_blocks).",
        group=MODEL,
        rule=one_of(*PROTOCOLS),
    )
    num_trainable_blocks: float | None = flag(
        None,
        "Number of the last blocks that --protocol partial trains. 0.5 is the last MLP.",
        group=MODEL,
        default_words="none",
    )
    from_scratch: bool = flag(
        False, "Train a model of random weights by the paper's recipe, the baseline.", group=MODEL
    )
    label_column_name: str | None = flag(  # the identity holds the labels' fingerprint
        None,
        "Column that holds the labels.",
        changes_results=False,
        group=DATA,
        default_words="the only column of class labels, or label",
    )
    max_train_samples: int | None = flag(
        None,
        "Number of training images to use, drawn by --seed and stratified by class.",
        group=DATA,
        default_words="all",
        rule=AT_LEAST_1,
    )
    randaugment_magnitude: float = _regularisation(
        9, "Magnitude of RandAugment, of 10 (the paper's rand-m9), with --augmentation randaugment.", rule=UP_TO_10
    )

    def check(self) -> None:
        super().check()
        if (self.protocol == "partial") != (self.num_trainable_blocks is not None):
            raise UserError("--protocol partial and --num_trainable_blocks go together. Give both, or neither.")
        self._check_overrides()
        if self.from_scratch and self.protocol != "finetune":
            raise UserError(f"--from_scratch trains all weights. Leave --protocol {self.protocol} out.")
        if self.from_scratch and self.model_name_or_path is not None:
            raise UserError("--from_scratch and --model_name_or_path exclude each other. Give one of them.")

    def _check_overrides(self) -> None:
        if not self.config_overrides:
            return
        from configuration_mae import LABEL_FIELDS  # imports torch, which --help need not wait for

        set_elsewhere = {*LABEL_FIELDS, "head_batch_norm", "drop_path_rate"}
        for name in sorted(set_elsewhere & parse_overrides(self.config_overrides).keys()):
            place = "by --drop_path_rate" if name == "drop_path_rate" else "from the data and --protocol"
            raise UserError(f"--config_overrides {name} cannot be set: its value is set {place}.")


@dataclass
class ClassificationFlags(ProtocolArguments):
    """
    Flags that change the results of training a classifier. None stands for the paper's value for the protocol and the
    model's size, which [`ClassificationFlags.resolve`] fills in.
    """

    augmentation: str | None = _regularisation(
        None,
        "Augmentation: none for the centre crop of evaluation, for which features of a frozen encoder are computed "
        "once; crop for random resized crops and flips; randaugment for both and RandAugment.",
        default_words="randaugment; none for a linear probe",
        rule=one_of(*AUGMENTATIONS),
    )
    min_crop_area: float | None = _regularisation(
        None, "Smallest share of an image that a random crop takes.", default_words="0.08", rule=ABOVE_0
    )
    random_erasing: float | None = _regularisation(
        None,
        "Probability that a box of an image is filled with noise.",
        default_words="0.25; 0 for a linear probe",
        rule=BELOW_1,
    )
    mixup_alpha: float | None = _regularisation(
        None, "Mixup alpha. 0 disables mixup.", default_words="0.8; 0 for a linear probe", rule=NOT_NEGATIVE
    )
    cutmix_alpha: float | None = _regularisation(
        None,
        "Cutmix alpha. 0 disables cutmix. With mixup, one of both is drawn per batch.",
        default_words="1; 0 for a linear probe",
        rule=NOT_NEGATIVE,
    )
    label_smoothing_factor: float | None = _regularisation(
        None,
        "Share of a label that is spread over all classes.",
        default_words="0.1; 0 for a linear probe",
        rule=BELOW_1,
    )
    drop_path_rate: float | None = _regularisation(
        None,
        "Stochastic depth rate of the last block.",
        default_words="0.1, 0.2, 0.3 for B, L, H; 0.1, 0.2, 0.2 from scratch; 0 for a linear probe",
        rule=BELOW_1,
    )
    layer_decay: float | None = _optimisation(
        None,
        "Factor of the learning rate from each layer to the one before it.",
        default_words="0.65, 0.75, 0.75 for B, L, H; 1 from scratch and for a linear probe",
        rule=ABOVE_0,
    )
    base_learning_rate: float | None = _optimisation(
        None,
        "Learning rate per 256 images of the effective batch size.",
        default_words="5e-4, 1e-3, 1e-3 for B, L, H; 1e-4 from scratch; a linear probe has --learning_rate 6.4",
        rule=POSITIVE,
    )
    weight_decay: float | None = _optimisation(
        None, "Weight decay.", default_words="0.05; 0.3 from scratch; 0 for a linear probe", rule=NOT_NEGATIVE
    )
    adam_beta1: float | None = _optimisation(
        None, "Beta1 of AdamW, or the momentum of LARS for a linear probe.", default_words="0.9", rule=BELOW_1
    )
    adam_beta2: float | None = _optimisation(
        None, "Beta2 of AdamW.", default_words="0.999; 0.95 from scratch", rule=BELOW_1
    )
    num_train_epochs: float | None = _schedule(
        None,
        "Number of epochs.",
        default_words="100, 50, 50 for B, L, H; 300, 200, 200 from scratch; 90 for a linear probe",
    )
    warmup_epochs: float | None = _schedule(
        None,
        "Number of epochs of linear warm-up.",
        default_words="5; 20 from scratch; 10 for a linear probe; less for a shorter run",
        rule=NOT_NEGATIVE,
    )

    def check(self) -> None:
        super().check()
        _check_epochs(self)

    def resolve(self, config: "MAEConfig") -> "ClassificationRecipe":
        """Fill in the paper's values, for a model at least as wide as the paper's B, L or H."""
        size = 0 if config.hidden_size < 1024 else 1 if config.hidden_size < 1280 else 2
        paper = _FROM_SCRATCH if self.from_scratch else PROTOCOLS[self.protocol]
        paper = {name: value[size] if isinstance(value, tuple) else value for name, value in paper.items()}
        paper["min_crop_area"] = 0.08
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        share = paper["warmup_epochs"] / paper["num_train_epochs"]
        warms_up = {self.warmup_epochs, self.warmup_ratio, self.warmup_steps} != {None}
        if not warms_up and self.max_steps > 0:
            values["warmup_ratio"] = share
        if self.num_train_epochs is not None:
            paper["warmup_epochs"] = min(paper["warmup_epochs"], share * self.num_train_epochs)
        if self.augmentation == "none":
            paper["random_erasing"] = 0.0
        if self.base_learning_rate is not None:
            paper.pop("learning_rate", None)
        values |= {name: value for name, value in paper.items() if values[name] is None}
        return ClassificationRecipe(**values)


@dataclass(kw_only=True)
class ClassificationRecipe(ProtocolArguments, Recipe):
    """What changes the results of training a classifier, for a model of a known size: no value is left open."""

    augmentation: str
    min_crop_area: float
    random_erasing: float
    mixup_alpha: float
    cutmix_alpha: float
    label_smoothing_factor: float
    drop_path_rate: float
    layer_decay: float


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """
    The values that belong to the identity of a run: those of the flags that change results by themselves.

    With --max_steps the number of epochs has no effect. --warmup_steps and --views_per_image are in it only if they
    have an effect, so that runs that were started before there were these flags can be resumed.
    """
    left_out = {"num_train_epochs"} if recipe.max_steps > 0 else set()
    if recipe.warmup_steps is None:
        left_out.add("warmup_steps")
    if recipe.views_per_image == 1:
        left_out.add("views_per_image")
    return {
        name: getattr(recipe, name)
        for name, declared in flags_of(recipe).items()
        if declared.changes_results and name not in left_out
    }
