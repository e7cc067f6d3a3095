"""Flags that choose the model and the checkpoint to start from."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mae.arguments.bands import BandArguments
from mae.arguments.data import DataArguments
from mae.arguments.flags import (
    AT_LEAST_1,
    DATA,
    EVALUATION,
    HARDWARE,
    HEIGHT_AND_WIDTH,
    MODEL,
    REQUIRED,
    Arguments,
    flag,
    one_of,
)
from mae.arguments.run import HardwareArguments
from mae.utils.errors import UserError


# The identity of a run holds the configuration and the initial weights that these lead to.
_model = partial(flag, changes_results=False, group=MODEL)
_data = partial(flag, changes_results=False, group=DATA)
_features = partial(flag, changes_results=False, group=EVALUATION)


@dataclass
class CheckpointArguments(DataArguments):
    """Flags that choose the images, and the checkpoint to start from."""

    model_name_or_path: str | None = _model(
        None,
        "Checkpoint to start from, in any layout: a directory, a file or a model on the Hub.",
        is_path=True,
        default_words="none, a model from scratch",
    )
    model_revision: str | None = _model(
        None, "Branch, tag or commit of a model on the Hub. It is resolved to a commit.", default_words="main"
    )
    allow_pickle: bool = _model(
        False, "Read the pickle of a model on the Hub that has no safetensors. No code in the pickle is run."
    )
    image_size: list[int] | None = _model(
        None,
        "Image size in pixels: one side, or height and width.",
        default_words="the model's",
        rule=HEIGHT_AND_WIDTH,
    )

    def check(self) -> None:
        super().check()
        if self.model_revision is not None and self.model_name_or_path is None:
            raise UserError("--model_revision needs --model_name_or_path.")


@dataclass(kw_only=True)
class InferenceArguments(Arguments):
    """The model of a script that trains nothing and reads no dataset."""

    model: str = _model(
        REQUIRED,
        "Model: a directory, a file, or a model on the Hub.",
        is_path=True,
        aliases=("--model_name_or_path",),
    )
    model_revision: str | None = _model(None, "Branch, tag or commit of a model on the Hub.", default_words="main")


@dataclass
class ModelArguments(BandArguments, CheckpointArguments):
    """Flags that choose the images and the model."""

    model_size: str | None = _model(
        None,
        "Size of a model from scratch: tiny, small, base, large or huge.",
        default_words="base, or the checkpoint's",
    )
    config_name: str | None = _model(
        None,
        "Configuration of a model from scratch: a directory or a model on the Hub that has a config.json.",
        is_path=True,
        default_words="that of --model_size",
    )
    image_processor_name: str | None = _model(
        None,
        "Image processor whose mean and std are used: a directory or a model on the Hub.",
        is_path=True,
        default_words="the model's",
    )
    patch_size: list[int] | None = _model(
        None,
        "Patch size in pixels: one side, or height and width.",
        default_words="the model's",
        rule=HEIGHT_AND_WIDTH,
    )
    image_mean: list[str] | None = _model(
        None,
        "Mean of each channel of images in [0, 1], or one for all. auto measures --image_mean and --image_std on "
        "1,000 images.",
        default_words="the model's, which is ImageNet's for 3 channels",
    )
    image_std: list[str] | None = _model(
        None,
        "Standard deviation of each channel of images in [0, 1], or one for all.",
        default_words="the model's, which is ImageNet's for 3 channels",
    )
    config_overrides: str | None = _model(
        None,
        "Fields of the configuration, for example hidden_size=192,num_hidden_layers=6.",
        default_words="none",
    )
    inflate_channels: str | None = _model(
        None,
        "How a checkpoint gets another num_channels: mean of its channels, or repeat them.",
        default_words="not at all",
    )

    def check(self) -> None:
        super().check()
        if (self.image_mean is None) != (self.image_std is None) and self.image_mean != ["auto"]:
            raise UserError("--image_mean and --image_std go together. Give both, or --image_mean auto alone.")
        if self.image_mean == ["auto"] and self.image_std not in (None, ["auto"]):
            raise UserError("--image_mean auto measures --image_std too. Leave --image_std out.")
        if self.config_name is not None:
            for name in ("model_name_or_path", "model_size"):
                if getattr(self, name) is not None:
                    raise UserError(f"--config_name and --{name} exclude each other. Give one of them.")


@dataclass
class EncoderArguments(HardwareArguments, CheckpointArguments):
    """Flags that choose a frozen encoder, images, and the block whose features are taken."""

    layer: int | None = _features(
        None,
        "Block after which the features are taken: counted from 1, or -1 for the last.",
        default_words="the encoder's output",
    )
    max_train_samples: int | None = _data(
        None,
        "Number of training images to use, drawn by --seed and stratified by class.",
        default_words="all",
        rule=AT_LEAST_1,
    )
    max_eval_samples: int | None = _features(
        None, "Number of validation images to use.", default_words="all", rule=AT_LEAST_1
    )
    batch_size: int = _features(64, "Images per forward pass of a process.", group=HARDWARE, rule=AT_LEAST_1)

    def check(self) -> None:
        super().check()
        if self.model_name_or_path is None:
            raise UserError("--model_name_or_path is required: it names the model.")


@dataclass
class FeatureArguments(EncoderArguments):
    """Flags that choose an encoder, labelled images, and which features are taken."""

    pooling: str | None = _features(
        None,
        "Feature of an image: its cls token, or the mean of its patch tokens.",
        default_words="the model's",
        rule=one_of("cls", "mean"),
    )
    label_column_name: str | None = _data(
        None, "Column that holds the labels.", default_words="the only column of class labels, or label"
    )

    @property
    def encoding(self) -> dict[str, Any]:
        """How features are computed, as keyword arguments of `compute_features`."""
        return {
            "pooling": self.pooling,
            "layer": self.layer,
            "batch_size": self.batch_size,
            "num_workers": self.dataloader_num_workers,
            "retry_minutes": self.data_retry_minutes,
        }
