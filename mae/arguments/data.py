"""Flags that choose the data."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.flags import (
    BETWEEN_0_AND_1,
    DATA,
    OPTIMISATION,
    UINT32,
    Arguments,
    flag,
)
from mae.utils.errors import UserError


# The identity of a run holds the fingerprint of the data.
_data = partial(flag, changes_results=False, group=DATA)


@dataclass
class DataArguments(Arguments):
    """Flags that choose the images."""

    dataset_name: str | None = _data(
        None,
        "Parquet data set: a name on the Hub, a folder, a file or a pattern of files.",
        is_path=True,
        default_words="the embedded emoji",
    )
    dataset_config_name: str | None = _data(
        None, "Configuration of the data set, if it has several.", default_words="the only one"
    )
    dataset_revision: str | None = _data(
        None, "Branch, tag or commit of a data set on the Hub. It is resolved to a commit.", default_words="main"
    )
    streaming: bool = _data(True, "Read the data while training. --no_streaming downloads the data set first.")
    image_column_name: str | None = _data(
        None, "Column that holds the images.", default_words="the only column of type Image"
    )
    train_dir: str | None = _data(None, "Folder of training images, at any depth.", is_path=True, default_words="none")
    validation_dir: str | None = _data(
        None, "Folder of validation images, with --train_dir.", is_path=True, default_words="none"
    )
    train_val_split: float | None = flag(
        None,
        "Share of the training images that is held out for validation. It has no effect if the data has a validation "
        "split or --validation_dir is given.",
        group=DATA,
        default_words="none; a test split, if there is one, is used for validation",
        rule=BETWEEN_0_AND_1,
    )
    seed: int = flag(42, "Seed of weights, data order, crops and masks.", group=OPTIMISATION, rule=UINT32)
    cache_dir: str | None = _data(
        None,
        "Folder for what is downloaded from the Hub.",
        is_path=True,
        default_words="the folders that HF_HUB_CACHE and HF_DATASETS_CACHE name",
    )

    def check(self) -> None:
        super().check()
        if self.dataset_name is not None and self.train_dir is not None:
            raise UserError("--dataset_name and --train_dir exclude each other. Give one of them.")
        if self.validation_dir is not None and self.train_dir is None:
            raise UserError("--validation_dir needs --train_dir. A data set has splits of its own.")
