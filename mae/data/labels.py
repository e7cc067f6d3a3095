"""
Labels of images: class folders, or a column of a data set, read whole before training starts, so that what is wrong
with them is told then, and splits can be stratified.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, LargeList, List, Value

from mae.data.sources import ImageFileSource, Source
from mae.data.subsets import Subset, row_origins, take_rows
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key, permutation


_SHOWN = 5
# Of columns that may hold labels without saying so by their type.
_USUAL_NAMES = ("label", "labels")


@dataclass(frozen=True)
class Labels:
    """
    Of all rows of a source, in their order.

    Args:
        values: int64 of shape (rows,), the number of a class; or uint8 of shape (rows, classes), 1 for each class that
            an image has, where it may have several.
        names: Of the classes.
    """

    values: np.ndarray
    names: list[str]

    @property
    def is_multi_label(self) -> bool:
        return self.values.ndim == 2

    @property
    def problem_type(self) -> str:
        return "multi_label_classification" if self.is_multi_label else "single_label_classification"

    @property
    def fingerprint(self) -> str:
        return hash_key(self.values.tobytes(), *self.names).hex()

    def __getitem__(self, rows: np.ndarray) -> "Labels":
        return Labels(self.values[rows], self.names)


def _shown(names: Sequence[object]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def find_label_column(features: dict[str, Any], label_column_name: str | None) -> str | None:
    """The named column, or the only one that can hold labels; None where there is none."""
    if label_column_name is not None:
        if label_column_name not in features:
            raise UserError(
                f"--label_column_name {label_column_name}: there is no such column. Columns: {', '.join(features)}."
            )
        return label_column_name
    columns = [name for name, feature in features.items() if isinstance(_item(feature), ClassLabel)]
    columns = columns or [name for name in features if name in _USUAL_NAMES]
    if len(columns) > 1:
        raise UserError(f"The data has several columns of labels ({', '.join(columns)}): give --label_column_name.")
    return columns[0] if columns else None


def _item(feature: Any) -> Any:
    """What a list holds, or the feature itself."""
    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def read_labels(
    source: Source, what: str, label_column_name: str | None = None, names: list[str] | None = None
) -> Labels:
    """
    The labels of a source: of image files, the folder that they lie in; of a data set, a column of class numbers,
    words or whole numbers, or of lists of these.

    Args:
        what: The flag that names the data, and its split: for errors.
        label_column_name: Default: the only column that can hold labels.
        names: Of the classes, in the order of training; by default all that are found.

    Raises:
        UserError: naming images without a label, classes that are not among `names`, and columns that hold no labels.
    """
    if isinstance(source, Subset):
        return read_labels(source.source, what, label_column_name, names)[source.all_rows()]
    if isinstance(source, ImageFileSource):
        if label_column_name is not None:
            raise UserError(f"--label_column_name {label_column_name}: {what} is a folder, whose folders are classes.")
        return _of_folders(source, what, names)
    column = find_label_column(source.features, label_column_name)
    if column is None:
        raise UserError(
            f"{what} has no column of labels: name one with --label_column_name. Columns: "
            f"{', '.join(source.features)}."
        )
    return _of_column(source, what, column, names)


def check_classes(labels: Labels, what: str) -> None:
    """A `UserError` where there are not two classes to tell apart, or no label at all."""
    if len(labels.names) < 2 - labels.is_multi_label:
        raise UserError(
            f"{what} has {'a single class, ' + labels.names[0] if labels.names else 'no class at all'}: there is "
            "nothing to tell apart."
        )


def _printable(name: str) -> str:
    """A name of a file system that is not UTF-8 can be neither printed nor written."""
    return name.encode("utf-8", "backslashreplace").decode()


def _of_folders(source: ImageFileSource, what: str, names: list[str] | None) -> Labels:
    # On this machine a class is a folder right below the root, as torchvision has it; on the Hub, where splits are
    # folders too, the one that an image lies in, as `datasets` has it.
    part = 0 if source.revision is None else -2
    bare = [_printable(name) for name in source.names if "/" not in name]
    if bare:
        raise UserError(
            f"{what}: {len(bare):,} images lie in no class folder ({_shown(bare)}). Wanted is a folder for each class."
        )
    found = [_printable(name.split("/")[part]) for name in source.names]
    return _numbered(found, names, what)


def _numbered(found: list[str], names: list[str] | None, what: str) -> Labels:
    """Words by their number among the names."""
    own = sorted(set(found))
    if names is not None:
        unknown = sorted(set(own) - set(names))
        if unknown:
            raise UserError(f"{what} has classes that the training data has not: {_shown(unknown)}.")
    names = own if names is None else names
    number = {name: index for index, name in enumerate(names)}
    return Labels(np.array([number[name] for name in found], dtype=np.int64), names)


def _of_column(source: Source, what: str, column: str, names: list[str] | None) -> Labels:
    feature, flat = source.features[column], source.read_column(column).combine_chunks()
    item = _item(feature)
    several, owners = item is not feature, np.arange(len(flat))  # the row that each single value is of
    if flat.null_count:
        _refuse_labels(source, what, column, np.flatnonzero(flat.is_null()), "null")
    if several:
        owners = np.repeat(owners, pc.list_value_length(flat).to_numpy(zero_copy_only=False).astype(np.int64))
        flat = flat.flatten()
        if flat.null_count:
            _refuse_labels(source, what, column, owners[np.flatnonzero(flat.is_null())], "null")
    num_rows = sum(source.group_sizes)
    if isinstance(item, ClassLabel):
        numbers = flat.to_numpy(zero_copy_only=False).astype(np.int64)
        if (numbers < 0).any():
            _refuse_labels(source, what, column, owners[numbers < 0], "-1")
        own = list(item.names)
        if (numbers >= len(own)).any():
            strange = numbers[numbers >= len(own)][0]
            _refuse_labels(source, what, column, owners[numbers >= len(own)], f"{strange}, of {len(own)} classes")
        if names is not None and own != names:
            numbers = _numbered([own[number] for number in numbers], names, what).values
        names = names or own
    elif isinstance(item, Value) and (item.dtype in ("string", "large_string", "bool") or _is_whole(item)):
        # Whole numbers in their own order, 10 after 9.
        if names is None:
            names = [str(value) for value in sorted(pc.unique(flat).to_pylist())]
        encoded = pc.dictionary_encode(flat)
        mapping = _numbered([str(value) for value in encoded.dictionary.to_pylist()], names, what).values
        numbers = mapping[encoded.indices.to_numpy(zero_copy_only=False)]
    else:
        raise UserError(
            f"--label_column_name {column} holds {getattr(item, 'dtype', type(item).__name__)}: wanted are class "
            "numbers, words or whole numbers, or lists of them."
        )
    if not several:
        return Labels(numbers, names)
    hot = np.zeros((num_rows, len(names)), dtype=np.uint8)
    hot[owners, numbers] = 1
    return Labels(hot, names)


def _is_whole(item: Any) -> bool:
    return isinstance(item, Value) and item.dtype.startswith(("int", "uint"))


def _refuse_labels(source: Source, what: str, column: str, rows: np.ndarray, value: str) -> None:
    rows = np.unique(rows)
    places = ", ".join(f"{file} row {row}" for file, row in row_origins(source, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    raise UserError(
        f"{what}: {len(rows):,} images have no usable label ({column} is {value}): {places}{more}. Leave them out, or "
        "name another column; in the place of such held-out images, --train_val_split holds out training images."
    )


def stratified_sample(labels: Labels, count: int, seed: int, what: str) -> np.ndarray:
    """
    `count` rows drawn from a seed, ascending: of each class its share of them, to one image (stratified); of images
    with several labels any.
    """
    if labels.is_multi_label:
        return np.sort(permutation(len(labels.values), seed, what)[:count])
    sizes = np.bincount(labels.values, minlength=len(labels.names))
    exact = sizes * count / len(labels.values)
    counts = np.floor(exact).astype(np.int64)
    # What rounding has left goes to those that it took most from.
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: count - counts.sum()]] += 1
    rows = []
    for number, some in enumerate(counts):
        members = np.flatnonzero(labels.values == number)
        rows.append(members[permutation(len(members), seed, what, number)[:some]])
    return np.sort(np.concatenate(rows))


def select(source: Source, labels: Labels, rows: np.ndarray) -> tuple[Source, Labels]:
    """Some rows of a source, with their labels."""
    return take_rows(source, rows), labels[rows]


def hold_out_labelled(
    source: Source, labels: Labels, share: float, seed: int, flag: str = "--train_val_split"
) -> tuple[tuple[Source, Labels], tuple[Source, Labels]]:
    """
    A labelled source in two parts, the second of `share` of the rows, with the same share of every class.

    Args:
        flag: What asked for it, for the error.

    Raises:
        UserError: where nothing would be left of one of them.
    """
    total = len(labels.values)
    count = round(total * share)
    if not 0 < count < total:
        raise UserError(
            f"{flag} {share:g} of {total} images leaves {total - count} to train on and {count} held out: "
            "give another share."
        )
    held = stratified_sample(labels, count, seed, "held out")
    rest = np.setdiff1d(np.arange(total), held, assume_unique=True)
    return select(source, labels, rest), select(source, labels, held)
