"""
Arguments of the training scripts: dataclasses, a recipe file, flags.

Two parts, kept apart because a run's identity is made of the first: [`Recipe`] is what changes results,
[`RunArguments`] is where and how efficiently. Names are those of `TrainingArguments` and of transformers' own
run_mae.py and run_image_classification.py.
"""

from dataclasses import dataclass, field

from configuration_mae import LABEL_FIELDS, MAEConfig
from mae.arguments.data import CheckpointArguments, _check_sides
from mae.arguments.overrides import parse_overrides
from mae.utils.errors import UserError


@dataclass
class Recipe(CheckpointArguments):
    """What changes the results of any training; the defaults are the paper's of pre-training (Table 8)."""

    model_size: str | None = field(
        default=None,
        metadata={"help": "tiny, small, base, large or huge. Default: base, where there is no checkpoint."},
    )
    patch_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels: a side, or height and width. Default: the model's."}
    )
    image_mean: list[str] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel of images in [0, 1], or one for all; auto measures it and --image_std on "
            "1,000 images. Default: the model's, which for 3 channels is ImageNet's."
        },
    )
    image_std: list[str] | None = field(default=None, metadata={"help": "Standard deviation, as --image_mean."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of the configuration: hidden_size=192,num_hidden_layers=6"}
    )
    inflate_channels: str | None = field(
        default=None,
        metadata={"help": "How a checkpoint gets another num_channels: mean of its channels, or repeat them."},
    )
    base_learning_rate: float = field(
        default=1.5e-4, metadata={"help": "Learning rate of 256 images; multiplied by effective batch / 256."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate, in the place of --base_learning_rate x batch / 256."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Beta1 of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    max_grad_norm: float | None = field(
        default=None, metadata={"help": "Norm to which gradients are clipped. Default: not at all, as in the paper."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Decay of an exponential moving average of the weights, say 0.9999; the final model and what is "
            "evaluated are the average then. Default: none, as in the paper's pre-training and fine-tuning."
        },
    )
    num_train_epochs: float = field(default=800, metadata={"help": "Passes over the data."})
    max_steps: int = field(default=-1, metadata={"help": "If positive, optimizer steps instead of epochs."})
    warmup_epochs: float = field(default=40, metadata={"help": "Epochs of linear warm-up."})
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Share of the run that is warm-up, in the place of --warmup_epochs."}
    )
    lanes: int = field(
        default=8, metadata={"help": "Pieces of an epoch that are read side by side; a multiple of the processes."}
    )
    shuffle_buffer_size: int = field(
        default=4096, metadata={"help": "Images, over all lanes, within which the order is shuffled."}
    )

    def check(self) -> None:
        super().check()
        _check_sides("patch_size", self.patch_size)
        if (self.image_mean is None) != (self.image_std is None) and self.image_mean != ["auto"]:
            raise UserError("--image_mean and --image_std go together: give both, or --image_mean auto alone.")
        if self.image_mean == ["auto"] and self.image_std not in (None, ["auto"]):
            raise UserError("--image_mean auto measures --image_std too: leave it out.")
        positive = ["base_learning_rate", "learning_rate", "max_grad_norm"]
        for name in positive + ["num_train_epochs"] * (self.max_steps <= 0):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} {value} must be positive.")
        if self.max_steps < -1 or self.max_steps == 0:
            raise UserError(f"--max_steps {self.max_steps} must be positive, or -1 for --num_train_epochs.")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"--{name} {value} must not be negative.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema_decay {self.ema_decay} must be in [0, 1), 0 for no average.")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"--warmup_ratio {self.warmup_ratio} must be in [0, 1].")
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"--{name} {value} must be in [0, 1).")


@dataclass
class PreTrainingRecipe(Recipe):
    """What changes the results of pre-training. The defaults are the paper's (Table 8) for ViT-B/16."""

    mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of the patches to remove. Default: the model's, 0.75."}
    )
    norm_pix_loss: bool | None = field(
        default=None, metadata={"help": "Normalise target pixels within each patch (Table 1d). Default: the model's."}
    )


# Tables 9 (fine-tuning; partial fine-tuning as well, Appendix A.1), 10 (linear probe) and 11 (from scratch), for B, L
# and H where they differ.
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
    # The paper's 0.1 x 16,384 / 256, for any batch: a step of LARS is relative to the weights' norm; with what small
    # batches would have by that rule, short runs would go nowhere.
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
class ClassificationRecipe(Recipe):
    """
    What changes the results of training a classifier. What is None is the paper's, for the protocol and the model's
    size, once [`ClassificationRecipe.resolve`] knows that.
    """

    protocol: str = field(
        default="finetune",
        metadata={
            "help": "finetune: all weights; linear: a classifier on frozen features; partial: the last blocks "
            "(--num_trainable_blocks)."
        },
    )
    num_trainable_blocks: float | None = field(
        default=None, metadata={"help": "With --protocol partial: how many of the last blocks; 0.5 is the last MLP."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Random weights, by the paper's recipe for that: the baseline."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: the only one that can be, or label."}
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on as many images only, drawn by --seed, of each class its share."},
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "none: the evaluation's crop (features of a frozen encoder are computed once then); crop: random "
            "resized crops and flips; randaugment: these and RandAugment. Default: the protocol's, for linear none."
        },
    )
    randaugment_magnitude: float = field(
        default=9, metadata={"help": "Of 10 (the paper's notation: rand-m9), with --augmentation randaugment."}
    )
    min_crop_area: float | None = field(
        default=None, metadata={"help": "Smallest share of an image that a random crop takes. Default: 0.08."}
    )
    random_erasing: float | None = field(
        default=None, metadata={"help": "Probability that a box is filled with noise."}
    )
    mixup_alpha: float | None = field(default=None, metadata={"help": "Of mixup; 0 for none."})
    cutmix_alpha: float | None = field(default=None, metadata={"help": "Of cutmix; 0 for none. With both, either."})
    label_smoothing_factor: float | None = field(default=None, metadata={"help": "Share of a label given to all."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last block."})
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor of the learning rate from each layer to the one before it."}
    )
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of 256 images. Default: the protocol's."}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "Default: the protocol's."})
    adam_beta1: float | None = field(default=None, metadata={"help": "Of AdamW; the momentum of LARS."})
    adam_beta2: float | None = field(default=None, metadata={"help": "Of AdamW."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "Default: the protocol's."})
    warmup_epochs: float | None = field(
        default=None, metadata={"help": "Default: the protocol's; of a shorter run as large a share."}
    )

    def check(self) -> None:
        super().check()
        for name, allowed in (("protocol", tuple(PROTOCOLS)), ("augmentation", (None, *AUGMENTATIONS))):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"--{name} {value}: wanted is one of {', '.join(filter(None, allowed))}.")
        if (self.protocol == "partial") != (self.num_trainable_blocks is not None):
            raise UserError("--protocol partial and --num_trainable_blocks go together: give both, or neither.")
        set_elsewhere = {*LABEL_FIELDS, "head_batch_norm", "drop_path_rate"}
        for name in set_elsewhere & parse_overrides(self.config_overrides).keys():
            where = "--drop_path_rate" if name == "drop_path_rate" else "the data and --protocol"
            raise UserError(f"--config_overrides {name}: {where} says that.")
        if self.from_scratch and self.protocol != "finetune":
            raise UserError("--from_scratch trains all weights: leave --protocol out.")
        if self.from_scratch and self.model_name_or_path is not None:
            raise UserError("--from_scratch and --model_name_or_path exclude each other: give one of them.")
        for name in ("random_erasing", "label_smoothing_factor", "drop_path_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"--{name} {value} must be in [0, 1).")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"--{name} {value} must not be negative.")
        for name in ("layer_decay", "min_crop_area"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"--{name} {value} must be in (0, 1].")
        if not 0 <= self.randaugment_magnitude <= 10:
            raise UserError(f"--randaugment_magnitude {self.randaugment_magnitude} must be in [0, 10].")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise UserError(f"--max_train_samples {self.max_train_samples} must be at least 1.")

    def resolve(self, config: MAEConfig) -> None:
        """Sets what is None to the paper's values, for a model at least as wide as the paper's B, L or H."""
        size = 0 if config.hidden_size < 1024 else 1 if config.hidden_size < 1280 else 2
        values = _FROM_SCRATCH if self.from_scratch else PROTOCOLS[self.protocol]
        values = {name: value[size] if isinstance(value, tuple) else value for name, value in values.items()}
        values["min_crop_area"] = 0.08
        share = values["warmup_epochs"] / values["num_train_epochs"]
        if self.warmup_epochs is None and self.warmup_ratio is None and self.max_steps > 0:
            self.warmup_ratio = share
        if self.num_train_epochs is not None:
            values["warmup_epochs"] = min(values["warmup_epochs"], share * self.num_train_epochs)
        if self.augmentation == "none":
            values["random_erasing"] = 0.0
        if self.base_learning_rate is not None:
            values.pop("learning_rate", None)
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.check()
