"""Recipes of image classification: fine-tuning, linear probes, partial fine-tuning, training from scratch."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mae.arguments.augmentation import CropArguments
from mae.arguments.flags import (
    ABOVE_0,
    AT_LEAST_1,
    BELOW_1,
    DATA,
    NOT_NEGATIVE,
    OPTIMISATION,
    POSITIVE,
    REGULARISATION,
    SCHEDULE,
    UP_TO_10,
    flag,
    one_of,
)
from mae.arguments.recipes import Recipe, check_epochs
from mae.arguments.transfer import TransferArguments, fill_in


if TYPE_CHECKING:
    from configuration_mae import MAEConfig

_optimisation = partial(flag, group=OPTIMISATION)
_schedule = partial(flag, group=SCHEDULE)
_regularisation = partial(flag, group=REGULARISATION)


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
class ProtocolArguments(CropArguments, TransferArguments):
    """Flags of a classification run that do not depend on the model's size."""

    fields_set_elsewhere: ClassVar[tuple[str, ...]] = ("head_batch_norm",)

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
        check_epochs(self)

    def resolve(self, config: "MAEConfig") -> "ClassificationRecipe":
        """Fill in the paper's values, for a model at least as wide as the paper's B, L or H."""
        paper = _FROM_SCRATCH if self.from_scratch else PROTOCOLS[self.protocol]
        if self.augmentation == "none":
            paper = paper | {"random_erasing": 0.0}
        if self.crop == "random_resized":
            paper = paper | {"min_crop_area": 0.08}
        return ClassificationRecipe(**fill_in(self, paper, config))


@dataclass(kw_only=True)
class ClassificationRecipe(ProtocolArguments, Recipe):
    """What changes the results of training a classifier, for a model of a known size: no value is left open."""

    augmentation: str
    min_crop_area: float | None
    random_erasing: float
    mixup_alpha: float
    cutmix_alpha: float
    label_smoothing_factor: float
    drop_path_rate: float
    layer_decay: float
