"""
Arguments of the training scripts: dataclasses, a recipe file, flags.

Two parts, kept apart because a run's identity is made of the first: [`Recipe`] is what changes results,
[`RunArguments`] is where and how efficiently. Names are those of `TrainingArguments` and of transformers' own
run_mae.py and run_image_classification.py.
"""

import argparse
import difflib
import os
import re
import sys
from ast import literal_eval
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from configuration_mae import MAEConfig
from mae.conversion.config import LABEL_FIELDS
from mae.utils.errors import UserError


# A flag on the command line -> what of a recipe file it takes the place of, beside itself.
_REPLACED = {
    "model_name_or_path": ("model_revision", "model_size", "config_overrides", "image_size", "patch_size"),
    "model_size": ("config_overrides",),
}


# Flags of transformers' Trainer that commands for its run_mae.py hold, and why they change nothing here.
_TRAINER_FLAGS = {
    "do_train": "training is what this script does",
    "do_eval": "held-out images are looked at wherever the data has them",
    "model_type": "the model is a Masked Autoencoder",
    "remove_unused_columns": "only the column of the images is read",
    "label_names": "labels are found by themselves, or by --label_column_name",
    "per_device_eval_batch_size": "held-out images go through in training batches",
    "logging_strategy": "--logging_steps decides",
    "eval_strategy": "--eval_steps decides",
    "evaluation_strategy": "--eval_steps decides",
    "save_strategy": "--save_steps and --save_minutes decide",
    "load_best_model_at_end": "the last model is kept, as in the paper",
    "lr_scheduler_type": "the schedule is a cosine",
}
# Of these, the values that would mean something else than what is done.
_TRAINER_VALUES = {"model_type": {"vit_mae", "mae"}, "lr_scheduler_type": {"cosine"}}


@dataclass
class DataArguments:
    """Which images."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Parquet data set: on the Hub, a folder, a file or a pattern. Default: the embedded emoji."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, where it has several."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub; resolved to a commit."}
    )
    streaming: bool = field(
        default=True, metadata={"help": "Read the data as it is needed; without it, it is downloaded first."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images. Default: the only one of type Image."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Folder of training images, at any depth."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of held-out images for --train_dir."})
    train_val_split: float | None = field(
        default=None,
        metadata={"help": "Share of the training images to hold out, where the data has no held-out ones."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of all that is drawn: weights, order, crops, masks."})

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """A `UserError` for impossible values and combinations."""
        if self.dataset_name is not None and self.train_dir is not None:
            raise UserError("--dataset_name and --train_dir exclude each other: give one of them.")
        if self.validation_dir is not None and self.train_dir is None:
            raise UserError("--validation_dir goes with --train_dir; a data set has its own splits.")
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise UserError(f"--train_val_split {self.train_val_split} must be between 0 and 1.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} must be in [0, 2^32).")


def _check_sides(flag: str, value: list[int] | None) -> None:
    if value is not None and len(value) not in (1, 2):
        raise UserError(f"--{flag} {' '.join(map(str, value))}: give a side, or height and width.")


@dataclass
class CheckpointArguments(DataArguments):
    """Which images, and which model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from, of any layout: a directory, a file or a model on the Hub. Default: a "
            "model from scratch."
        },
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the Hub; resolved to a commit."}
    )
    allow_pickle: bool = field(
        default=False,
        metadata={"help": "Read a model on the Hub that has no safetensors from its pickle; no code in it is run."},
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels: a side, or height and width. Default: the model's."}
    )

    def check(self) -> None:
        super().check()
        if self.model_revision is not None and self.model_name_or_path is None:
            raise UserError("--model_revision goes with --model_name_or_path.")
        _check_sides("image_size", self.image_size)


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


@dataclass
class RunArguments:
    """Where a run leaves its files, and what only changes its speed."""

    output_dir: str = field(default="outputs/run_mae", metadata={"help": "Where everything goes."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove an earlier run's files from the output directory and start anew."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images of a micro-batch of a process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches of an optimizer step."})
    bf16: bool = field(
        default=False, metadata={"help": "Mixed precision with bfloat16; or accelerate launch --mixed_precision bf16."}
    )
    fp16: bool = field(
        default=False,
        metadata={"help": "Mixed precision with float16 and a loss scale, for GPUs without bfloat16."},
    )
    tf32: bool = field(
        default=False, metadata={"help": "Products of float32 matrices in TF32, on NVIDIA GPUs that have it."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for more time."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the model's blocks; the first step takes a minute, later ones less."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Decoding processes of each training process. Default: one on a CPU, with an accelerator one for "
            "each core but one, at most 16."
        },
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between two lines of metrics.jsonl."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints."})
    save_minutes: float | None = field(
        default=None, metadata={"help": "Minutes after which a checkpoint is due, beside those of --save_steps."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    eval_steps: int = field(
        default=500, metadata={"help": "Steps between two looks at the held-out images: their loss, and pictures."}
    )
    max_eval_samples: int = field(default=256, metadata={"help": "How many held-out images are looked at."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers: tensorboard, trackio, wandb; each must be installed. Default: none."},
    )
    resume_from_checkpoint: str = field(
        default="auto",
        metadata={"help": "auto: the newest checkpoint of the output directory; none: a start anew; or a path."},
    )
    data_retry_minutes: float = field(
        default=10,
        metadata={"help": "How long faults of the network are waited out, of data, weights and the last push."},
    )
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Push the model to the Hub, with card, pictures, recipe and metrics. Needs a login."},
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository, owner/name. Default: yours, named as the output directory."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Make the repository private. Default: what its owner's default is."}
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, which is made if it does not exist. Default: main."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "end: push once; every_save: also with each checkpoint, in the background."}
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence of your weights for the card, as apache-2.0. Default: unknown."}
    )
    max_nonfinite_steps: int = field(
        default=0,
        metadata={"help": "Steps that may be left out because their gradient is not finite; one more stops the run."},
    )
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Share of images that cannot be read above which the run stops."}
    )

    def __post_init__(self) -> None:
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "max_eval_samples",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} must be at least 1.")
        if self.hub_strategy not in ("end", "every_save"):
            raise UserError(f"--hub_strategy {self.hub_strategy}: wanted is end or every_save.")
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16 exclude each other: give one of them.")
        if self.save_minutes is not None and not self.save_minutes > 0:
            raise UserError(f"--save_minutes {self.save_minutes} must be positive.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction {self.max_bad_fraction} must be in [0, 1].")
        if not self.data_retry_minutes >= 0:
            raise UserError(f"--data_retry_minutes {self.data_retry_minutes} must not be negative.")
        for name in ("dataloader_num_workers", "max_nonfinite_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"--{name} {value} must not be negative.")

    @property
    def trackers(self) -> list[str]:
        return [name for name in self.report_to if name != "none"]


@dataclass
class PreTrainingArguments(RunArguments):
    """Of pre-training."""

    knn_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs between two looks at how well the nearest neighbours of held-out images tell their "
            "labels, where the data has labels. Default: not at all."
        },
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels for --knn_epochs. Default: the only one that can be."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.knn_epochs is not None and not self.knn_epochs > 0:
            raise UserError(f"--knn_epochs {self.knn_epochs} must be positive.")


@dataclass
class ClassificationArguments(RunArguments):
    """Of training a classifier."""

    output_dir: str = field(default="outputs/run_image_classification", metadata={"help": "Where everything goes."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on as many held-out images only. Default: on all."}
    )


@dataclass
class FeatureArguments(CheckpointArguments):
    """An encoder, images, and what of the encoder is taken."""

    pooling: str | None = field(
        default=None, metadata={"help": "cls token, or mean of the patch tokens. Default: the model's."}
    )
    layer: int | None = field(
        default=None,
        metadata={"help": "The block after which they are taken, from 1, or -1 for the last. Default: the output."},
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: the only one that can be, or label."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "As many training images only, drawn by --seed, of each class its share."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "As many held-out images only. Default: all."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images of a forward pass of a process."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision with bfloat16."})
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Decoding processes of each process, as in training."}
    )
    data_retry_minutes: float = field(default=10, metadata={"help": "How long faults of the network are waited out."})

    def check(self) -> None:
        super().check()
        if self.model_name_or_path is None:
            raise UserError("--model_name_or_path names the model.")
        if self.pooling not in (None, "cls", "mean"):
            raise UserError(f"--pooling {self.pooling}: wanted is cls or mean.")
        for name in ("batch_size", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} must be at least 1.")
        _ = self.run  # for its checks

    @property
    def run(self) -> RunArguments:
        """What of these a run has too."""
        return RunArguments(
            bf16=self.bf16,
            data_retry_minutes=self.data_retry_minutes,
            dataloader_num_workers=self.dataloader_num_workers,
        )


class _Parser(HfArgumentParser):
    """Tells an error in one line instead of a page of usage, and takes a bare flag for a bool without a default."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        if kwargs.get("type") is string_to_bool and "nargs" not in kwargs:
            kwargs.update(nargs="?", const=True)
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        # "argument --max_steps/--max-steps: invalid" -> "--max_steps: invalid"
        raise UserError(re.sub(r"^argument (--\w+)(/--[\w-]+)?", r"\1", message))


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def parse_statistics(flag: str, values: list[str] | None) -> list[float] | None:
    """The numbers of --image_mean or --image_std; None where they are to be measured, or the model's."""
    if values is None or values == ["auto"]:
        return None
    try:
        return [float(value) for value in values]
    except ValueError:
        raise UserError(f"--{flag} {' '.join(values)}: wanted are numbers, or auto.") from None


def parse_overrides(overrides: str | None) -> dict[str, Any]:
    """The fields of "hidden_size=192,qkv_bias=false", in the types that they have in a configuration."""
    config, fields = MAEConfig(), {}
    for pair in [pair.strip() for pair in (overrides or "").split(",") if pair.strip()]:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not (name in MAEConfig.__annotations__ or name in LABEL_FIELDS):
            raise UserError(
                f"--config_overrides {pair}: wanted are fields of the configuration, as in "
                f"hidden_size=192,qkv_bias=false.{_nearest(name, list(MAEConfig.__annotations__))}"
            )
        try:
            if isinstance(getattr(config, name), bool):
                fields[name] = string_to_bool(value)
            else:
                fields[name] = literal_eval(value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--config_overrides {pair}: {error}") from None
        except (ValueError, SyntaxError):  # a word
            fields[name] = value
    return fields


def read_recipe(path: str, names: list[str]) -> dict[str, Any]:
    """Flag -> value of a recipe file."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"--recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"--recipe {path} must hold lines of the form 'flag: value'.")
    for name, value in recipe.items():
        if name not in names:
            raise UserError(f"--recipe {path}: unknown flag {name}.{_nearest(str(name), names)}")
        if isinstance(value, dict):
            if any(isinstance(item, (list, dict)) for item in value.values()):
                raise UserError(f"--recipe {path}: the values of {name} must be numbers or words.")
            recipe[name] = ",".join(f"{key}={item}" for key, item in value.items())
    return {name: value for name, value in recipe.items() if value is not None}


def _tell_trainer_flags(flags: argparse.Namespace) -> None:
    """One line for each flag that is accepted without effect; an error where it would mean something else."""
    for name, reason in _TRAINER_FLAGS.items():
        values = getattr(flags, name)
        if values is None:
            continue
        allowed = _TRAINER_VALUES.get(name, set(values))
        if not set(values) <= allowed:
            raise UserError(
                f"--{name} {' '.join(values)}: {reason}; leave it out, or say {' or '.join(sorted(allowed))}."
            )
        if os.environ.get("RANK", "0") == "0":
            print(f"Note: --{name} has no effect: {reason}.", file=sys.stderr)


def parse_arguments(
    *dataclasses: type, description: str, default_recipe: Path | None = None, argv: list[str] | None = None
) -> tuple[Any, ...]:
    """
    Dataclasses filled from a recipe file and flags; flags win.

    Args:
        default_recipe: The recipe of a command line that names neither a recipe nor data.

    Raises:
        UserError: for anything wrong on the command line or in the recipe.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(dataclasses, description=description, allow_abbrev=False)
    parser.add_argument("--recipe", help="YAML file of flags; flags on the command line override it.")
    for name, reason in _TRAINER_FLAGS.items():
        parser.add_argument(f"--{name}", nargs="*", help=f"Accepted without effect: {reason}.")
    names = [item.name for dataclass_type in dataclasses for item in fields(dataclass_type)]

    # Flags first alone: --recipe among them, and whether they name data.
    flags, unknown = parser.parse_known_args(argv)
    unknown = [argument for argument in unknown if argument.startswith("-")] or unknown
    if unknown:
        known = [f"--{name}" for name in [*names, "recipe"]]
        name = unknown[0].split("=")[0]
        if name == "--hub_token":
            raise UserError("--hub_token would be seen by others: log in with `hf auth login`, or set HF_TOKEN.")
        raise UserError(f"unknown argument {name}.{_nearest(name, known)}")
    _tell_trainer_flags(flags)
    recipe = flags.recipe
    if recipe is None and default_recipe and flags.dataset_name is None and flags.train_dir is None:
        recipe = str(default_recipe)
    values = {} if recipe is None else read_recipe(recipe, names)
    for flag in [flag for flag in _REPLACED if getattr(flags, flag, None) is not None]:
        values = {name: value for name, value in values.items() if name not in _REPLACED[flag]}
    overrides = getattr(flags, "config_overrides", None)
    if overrides is not None and "config_overrides" in values:
        parse_overrides(overrides)  # an error here is not the recipe's
        argv = [*argv, "--config_overrides", f"{values['config_overrides']},{overrides}"]  # the last of a field counts
    recipe_flags = []
    for name, value in values.items():
        recipe_flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    # The recipe's flags stand before the command line's, whose last word counts.
    try:
        namespace = parser.parse_args(recipe_flags + argv)
    except UserError as error:
        raise UserError(f"{error} (with --recipe {recipe})" if recipe else str(error)) from None
    return tuple(
        dataclass_type(**{item.name: getattr(namespace, item.name) for item in fields(dataclass_type)})
        for dataclass_type in dataclasses
    )
