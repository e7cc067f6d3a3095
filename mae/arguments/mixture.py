"""Flags that mix several data sets."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.data import DataArguments
from mae.arguments.flags import DATA, flag
from mae.utils.errors import UserError


# The identity of a run holds the fingerprint of the data, and that the weights.
_data = partial(flag, changes_results=False, group=DATA)


@dataclass
class MixtureArguments(DataArguments):
    """Flags that name one data set or several. A single name is kept as a text, and several as a list."""

    dataset_name: list[str] | None = _data(
        None,
        "Data set of Parquet files or tars: a name on the Hub, a folder, a file or a pattern of files. Several are "
        "mixed. owner/name@revision reads a branch, tag or commit.",
        is_path=True,
        default_words="the embedded emoji",
    )
    train_dir: list[str] | None = _data(
        None, "Folder of training images, at any depth. Several are mixed.", is_path=True, default_words="none"
    )
    dataset_weights: list[float] | None = _data(
        None,
        "Shares of the samples that come from each data set of --dataset_name or --train_dir.",
        default_words="equal shares",
    )

    def check(self) -> None:
        for name in ("dataset_name", "train_dir"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) == 1:
                setattr(self, name, value[0])
        super().check()
        names = self.train_dir if self.train_dir is not None else self.dataset_name
        if not isinstance(names, list):
            if self.dataset_weights is not None:
                raise UserError("--dataset_weights needs several values of --dataset_name or --train_dir.")
            return
        weights = self.dataset_weights
        flag_name = "--train_dir" if self.train_dir is not None else "--dataset_name"
        if self.dataset_revision is not None:
            raise UserError(
                f"--dataset_revision {self.dataset_revision} is for one data set. Write {names[0]}@REVISION in "
                "--dataset_name instead."
            )
        if len(set(names)) < len(names):
            raise UserError(f"{flag_name} {' '.join(names)} names a data set twice. Set --dataset_weights instead.")
        if weights is None:
            return
        if len(weights) != len(names) or not all(0 < weight < float("inf") for weight in weights):
            raise UserError(
                f"--dataset_weights {' '.join(f'{item:g}' for item in weights)} must be {len(names)} positive "
                f"numbers, one for each value of {flag_name}."
            )

    def shares(self, count: int) -> list[float]:
        """The weights of so many data sets, which sum to 1."""
        weights = self.dataset_weights or [1.0] * count
        return [weight / sum(weights) for weight in weights]
