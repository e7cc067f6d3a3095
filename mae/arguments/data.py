"""Flags that choose the data and the checkpoint to start from."""

from dataclasses import dataclass, field
from typing import Any

from mae.arguments.run import RunArguments
from mae.utils.errors import UserError


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
    def encoding(self) -> dict[str, Any]:
        """How features are computed, as keyword arguments."""
        return {
            "pooling": self.pooling,
            "layer": self.layer,
            "batch_size": self.batch_size,
            "num_workers": self.dataloader_num_workers,
            "retry_minutes": self.data_retry_minutes,
        }

    @property
    def run(self) -> RunArguments:
        """What of these a run has too."""
        return RunArguments(
            bf16=self.bf16,
            data_retry_minutes=self.data_retry_minutes,
            dataloader_num_workers=self.dataloader_num_workers,
        )
