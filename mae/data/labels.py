"""
Labels of images, from class folders or a column of a data set.

All labels are read before training, so that errors surface at once and splits can be stratified.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, LargeList, List, Value

from mae.data.folders import SPLIT_NAMES
from mae.data.sources import Source, View
from mae.data.subsets import take_rows
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key, permutation
from mae.utils.text import encodable, listed


# Columns that may hold labels although their type does not tell.
_USUAL_NAMES = ("label", "labels")


@dataclass(frozen=True)
class Labels:
    """
    Labels of all rows of a source, in their order.

    Args:
        values: Class numbers, int64 of shape (rows,). If images may have several classes, uint8 of shape (rows,
            classes) with 1 for each class that an image has.
        names: Names of the classes.
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


def find_label_column(features: dict[str, Any], label_column_name: str | None) -> str | None:
    """The named column, or the only one that can hold labels; None if there is none."""
    if label_column_name is not None:
        if label_column_name not in features:
            raise UserError(f"--label_column_name {label_column_name} does not exist. Columns: {', '.join(features)}.")
        return label_column_name
    columns = [name for name, feature in features.items() if isinstance(_item(feature), ClassLabel)]
    columns = columns or [name for name in features if name in _USUAL_NAMES]
    if len(columns) > 1:
        raise UserError(f"The data has several columns of labels ({', '.join(columns)}). Choose --label_column_name.")
    return columns[0] if columns else None


def _item(feature: Any) -> Any:
    """The feature of a list's items, or the feature itself."""
    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def read_labels(
    source: Source, what: str, label_column_name: str | None = None, names: list[str] | None = None
) -> Labels:
    """
    Read the labels of a source: the class folders of image files; or a column of a data set with class numbers, words
    or whole numbers, or lists of these.

    The classes of a [`View`] are those of the whole data set, but only the labels of its own rows must be usable.

    Args:
        what: The flag that names the data, for errors.
        label_column_name: The column (default: the only one that can hold labels).
        names: Names of the classes, in the order of training (default: all that are found).

    Raises:
        UserError: if images have no label, or a class that is not among `names`, or the column holds no labels.
    """
    whole, rows = _whole(source)
    folders = whole.class_folders()
    if folders is not None:
        if label_column_name is not None:
            raise UserError(f"--label_column_name {label_column_name}: {what} is a folder, whose folders are classes.")
        return _of_folders(folders, rows, source, what, names)
    column = find_label_column(source.features, label_column_name)
    if column is None:
        raise UserError(
            f"{what} has no column of labels. Choose one with --label_column_name. Columns: "
            f"{', '.join(source.features)}."
        )
    every = whole.read_column(column).combine_chunks()
    return _of_column(every, rows, source, what, column, names)


def _whole(source: Source) -> tuple[Source, np.ndarray]:
    """The source behind views, and the numbers of their rows in it."""
    rows = np.arange(len(source))
    while isinstance(source, View):
        rows = source.row_numbers()[rows]
        source = source.source
    return source, rows


def check_classes(labels: Labels, what: str) -> None:
    """Raise a `UserError` if there are no two classes to tell apart, or no label at all."""
    if len(labels.names) < 2 - labels.is_multi_label:
        found = f"a single class, {labels.names[0]}" if labels.names else "no class"
        raise UserError(f"{what} has {found}. A classifier needs at least two classes.")


def _of_folders(folders: list[str], rows: np.ndarray, source: Source, what: str, names: list[str] | None) -> Labels:
    """
    Labels of some files.

    Args:
        folders: The class folders of all files.
        rows: The files.
        source: These files, for errors.
    """
    found = [encodable(folders[row]) for row in rows]
    bare = np.flatnonzero([not folder for folder in found])
    if len(bare):
        files = [file for file, _ in source.row_origins(bare)]
        raise UserError(
            f"{what}: {len(bare):,} images lie in no class folder ({listed(files)}). Make one folder per class."
        )
    own = sorted({encodable(folder) for folder in folders if folder})
    if len(own) > 1 and {name.lower() for name in own} <= SPLIT_NAMES:
        raise UserError(
            f"{what} holds the folders {listed(own)}, which are splits and no classes. Pass one with --train_dir and "
            "another with --validation_dir."
        )
    return _numbered(found, _distinct(own) if names is None else names, what)


def _composed(name: str) -> str:
    """A name to compare by: file systems and editors differ in how they compose accents."""
    return unicodedata.normalize("NFC", name)


def _distinct(names: Iterable[str]) -> list[str]:
    """Names without those that another one equals once both are composed."""
    return list({_composed(name): name for name in reversed(list(names))}.values())[::-1]


def _numbered(found: list[str], names: list[str], what: str) -> Labels:
    """Labels from the names of classes, in the order of `names`."""
    number = {_composed(name): index for index, name in enumerate(names)}
    unknown = [name for name in _distinct(sorted(set(found))) if _composed(name) not in number]
    if unknown:
        raise UserError(f"{what} has classes that the training data does not have: {listed(unknown)}.")
    return Labels(np.array([number[_composed(name)] for name in found], dtype=np.int64), names)


def _of_column(
    every: pa.Array, rows: np.ndarray, source: Source, what: str, column: str, names: list[str] | None
) -> Labels:
    """
    Labels of some rows.

    Args:
        every: The column of the whole data set.
        rows: The rows.
        source: These rows, for errors.
    """
    feature, values = source.features[column], every.take(pa.array(rows))
    item = _item(feature)
    has_several, owners = item is not feature, np.arange(len(values))  # the row of each single value
    if values.null_count:
        _refuse_labels(source, what, column, np.flatnonzero(values.is_null()), "null")
    if has_several:
        owners = np.repeat(owners, pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64))
        values = values.flatten()
        if values.null_count:
            _refuse_labels(source, what, column, owners[np.flatnonzero(values.is_null())], "null")
    if isinstance(item, ClassLabel):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
        if (numbers < 0).any():
            _refuse_labels(source, what, column, owners[numbers < 0], "-1")
        too_large = numbers >= len(item.names)
        if too_large.any():
            value = f"{numbers[too_large][0]}, of {len(item.names)} classes"
            _refuse_labels(source, what, column, owners[too_large], value)
        own = [encodable(name) for name in item.names]
        if names is not None and own != names:
            numbers = _numbered([own[number] for number in numbers], names, what).values
        names = names or own
    elif isinstance(item, Value) and (item.dtype in ("string", "large_string", "bool") or _is_whole(item)):
        encoded = pc.dictionary_encode(values)
        words = [encodable(str(value)) for value in encoded.dictionary.to_pylist()]
        if names is None:
            distinct = pc.unique(every.flatten() if has_several else every).drop_null().to_pylist()
            names = _distinct(encodable(str(value)) for value in sorted(distinct))  # whole numbers: 10 after 9
        numbers = _numbered(words, names, what).values[encoded.indices.to_numpy(zero_copy_only=False)]
    else:
        raise UserError(
            f"--label_column_name {column} holds {getattr(item, 'dtype', type(item).__name__)}. Labels must be class "
            "numbers, words or whole numbers, or lists of them."
        )
    if not has_several:
        return Labels(numbers, names)
    hot = np.zeros((len(source), len(names)), dtype=np.uint8)
    hot[owners, numbers] = 1
    return Labels(hot, names)


def _is_whole(item: Any) -> bool:
    return isinstance(item, Value) and item.dtype.startswith(("int", "uint"))


def _refuse_labels(source: Source, what: str, column: str, rows: np.ndarray, value: str) -> None:
    rows = np.unique(rows)
    places = listed([f"{file} row {row}" for file, row in source.row_origins(rows[:1000])], most=5)
    raise UserError(
        f"{what}: {len(rows):,} images have no usable label ({column} is {value}): {places}. Leave them out or choose "
        "another column. Instead of such a validation split, --train_val_split takes training images."
    )


def stratified_sample(labels: Labels, count: int, seed: int, what: str) -> np.ndarray:
    """
    Draw `count` rows from a seed, ascending, with the same share of each class to one image. Images with several
    labels are drawn regardless of them.
    """
    if labels.is_multi_label:
        return np.sort(permutation(len(labels.values), seed, what)[:count])
    sizes = np.bincount(labels.values, minlength=len(labels.names))
    exact = sizes * count / len(labels.values)
    counts = np.floor(exact).astype(np.int64)
    # The rows that rounding leaves go to the classes that it took most from.
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: count - counts.sum()]] += 1
    rows = []
    for number, some in enumerate(counts):
        members = np.flatnonzero(labels.values == number)
        rows.append(members[permutation(len(members), seed, what, number)[:some]])
    return np.sort(np.concatenate(rows))


def select(source: Source, labels: Labels, rows: np.ndarray) -> tuple[Source, Labels]:
    """Take some rows of a source, with their labels."""
    return take_rows(source, rows), labels[rows]


def hold_out_labelled(
    source: Source, labels: Labels, share: float, seed: int, flag: str = "--train_val_split"
) -> tuple[tuple[Source, Labels], tuple[Source, Labels]]:
    """
    Split a labelled source in two, the second part with `share` of the rows and the same share of every class.

    Args:
        flag: The flag that asks for it, for the error.

    Raises:
        UserError: if one part would be empty.
    """
    total = len(labels.values)
    count = round(total * share)
    if not 0 < count < total:
        raise UserError(
            f"{flag} {share:g} of {total} images leaves {total - count} training images and {count} validation "
            "images. Choose another share."
        )
    held = stratified_sample(labels, count, seed, "held out")
    rest = np.setdiff1d(np.arange(total), held, assume_unique=True)
    return select(source, labels, rest), select(source, labels, held)
