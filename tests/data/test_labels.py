"""Labels: what is read of folders and columns, what is refused, and how splits are drawn."""

import io
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, List, Value
from PIL import Image

from mae.data.folders import open_folder
from mae.data.labels import Labels, check_classes, hold_out_labelled, read_labels, select, stratified_sample
from mae.data.opening import open_dataset
from mae.data.subsets import CachedSource, hold_out, take_rows
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from tests.support.loopback import upload


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path, column, feature, name="label", row_group_size=3):
    """A parquet file whose image number n is of the grey value n."""
    features = Features({"image": datasets.Image(), name: feature})
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(len(column))], name: column}
    table = pa.table(rows, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=row_group_size)
    return open_dataset(str(path))[0]


def grey_values(source):
    return [
        Image.open(io.BytesIO(image)).getpixel((0, 0))[0]
        for group, size in enumerate(source.group_sizes)
        if size
        for image in source.read(group, 0)
    ]


NAMES = ["cat", "cow", "dog"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "column, feature, names, expected",
    [
        ([2, 0, 1, 1, 0], ClassLabel(names=NAMES), NAMES, [2, 0, 1, 1, 0]),
        (["dog", "cat", "cow", "cow", "cat"], Value("string"), NAMES, [2, 0, 1, 1, 0]),
        ([10, 9, -3, 9, 10], Value("int32"), ["-3", "9", "10"], [2, 1, 0, 1, 2]),
        ([True, False, False, True, True], Value("bool"), ["False", "True"], [1, 0, 0, 1, 1]),
        ([[0, 2], [], [1], [2], [0]], List(ClassLabel(names=NAMES)), NAMES, "101 000 010 001 100"),
        ([["dog", "cat"], [], ["cow"], ["dog"], ["cat"]], List(Value("string")), NAMES, "101 000 010 001 100"),
    ],
)
def test_labels_of_a_column_by_its_type(column, feature, names, expected, streaming, tmp_path):
    source = write(tmp_path / "train.parquet", column, feature)
    if not streaming:
        source = open_dataset(str(tmp_path / "train.parquet"), streaming=False)[0]
    labels = read_labels(source, "--dataset_name x")
    assert labels.names == names
    check_classes(labels, "WHAT")
    if isinstance(expected, str):
        expected = [[int(digit) for digit in word] for word in expected.split()]
        assert labels.is_multi_label and labels.problem_type == "multi_label_classification"
    assert labels.values.tolist() == expected


def test_labels_are_the_names_of_class_folders(tmp_path, emoji_bytes):
    for name in ("b/1.png", "a/deep/2.png", "b/3.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(emoji_bytes[0])
    source = open_folder(str(tmp_path), "--train_dir")
    labels = read_labels(source, "--train_dir x")
    assert dict(zip(source.names, labels.values)) == {"a/deep/2.png": 0, "b/1.png": 1, "b/3.PNG": 1}
    (tmp_path / "4.png").write_bytes(emoji_bytes[0])
    with pytest.raises(UserError, match=r"--train_dir x: 1 images lie in no class folder \(4.png\)"):
        read_labels(open_folder(str(tmp_path), "--train_dir"), "--train_dir x")


def test_class_folders_on_the_hub(tmp_path, emoji_bytes, hub):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(emoji_bytes[0])
    upload("classes", tmp_path)
    source, held_out = open_dataset("me/classes")
    labels = read_labels(source, "x")
    assert labels.names == ["cat", "dog"] and labels.values.tolist() == [0, 1]
    assert read_labels(held_out, "x", names=labels.names).values.tolist() == [1]


def test_what_is_refused(tmp_path):
    path = tmp_path / "train.parquet"

    def refuse(column, feature, message, names=None, **arguments):
        with pytest.raises(UserError, match=message):
            read_labels(write(path, column, feature), "WHAT", names=names, **arguments)

    classes = ClassLabel(names=NAMES)
    refuse([0, None, 1, None], classes, r"WHAT: 2 images have no usable label \(label is null\): .* row 1, .* row 3")
    refuse([0] + [-1] * 7, classes, r"WHAT: 7 images have no usable label \(label is -1\): .* row 5 and 2 more")
    refuse([[0], None], List(classes), "WHAT: 1 images have no usable label")
    refuse(["cat", "bear", "ant"], Value("string"), "WHAT has classes .*: ant, bear", names=NAMES)
    refuse([0, 1], ClassLabel(names=["cat", "bear"]), "WHAT has classes .*: bear", names=NAMES)
    refuse([["bear"]], List(Value("string")), "bear", names=NAMES)
    refuse([[0, -1], [1], [-1]], List(classes), r"2 images have no usable label \(label is -1\): .* row 0, .* row 2")
    refuse([[0, None]], List(classes), r"1 images have no usable label \(label is null\): .* row 0")
    refuse([["a", None], ["b"]], List(Value("string")), r"1 images have no usable label \(label is null\): .* row 0")
    refuse([0, 1, 7], classes, r"1 images have no usable label \(label is 7, of 3 classes\): .* row 2")
    refuse([[0], [1, 7]], List(classes), r"label is 7, of 3 classes\): .* row 1")
    for column, feature, message in (
        (["cat"] * 3, Value("string"), "WHAT has a single class, cat"),
        ([[], []], List(Value("string")), "WHAT has no class"),
    ):
        with pytest.raises(UserError, match=message):
            check_classes(read_labels(write(path, column, feature), "WHAT"), "WHAT")
    refuse([0.5, 1.5], Value("float32"), "holds float32.*class numbers, words")
    refuse([0, 1], classes, "does not exist. Columns: image, label", label_column_name="labels")
    with pytest.raises(UserError, match="WHAT has no column of labels. Choose one with --label_column_name. Col"):
        read_labels(write(path, [1, 2], Value("int64"), name="number"), "WHAT")
    assert read_labels(write(path, [1, 2], Value("int64"), name="number"), "WHAT", "number").names == ["1", "2"]


def test_files_of_other_types(tmp_path):
    """Those of one data set need not agree; words where numbers should be are refused."""
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=NAMES)})
    for number, values in enumerate((pa.array([0, 1], pa.int64()), pa.array([2, 1], pa.int32()))):
        images = pa.array([{"bytes": png(1), "path": None}] * 2, features.arrow_schema.field("image").type)
        table = pa.table({"image": images, "label": values}).replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    assert read_labels(open_dataset(str(tmp_path))[0], "WHAT").values.tolist() == [0, 1, 2, 1]
    table = table.set_column(1, "label", pa.array(["cat", "dog"]))
    pq.write_table(table, tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match="train-1.parquet: column label holds string, not int64"):
        read_labels(open_dataset(str(tmp_path))[0], "WHAT")


def test_folders_that_are_not_utf8(tmp_path, emoji_bytes):
    for name in (b"caf\xe9", b"tea"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        with open(folder + b"/1.png", "wb") as file:
            file.write(emoji_bytes[0])
    labels = read_labels(open_folder(str(tmp_path), "--train_dir"), "WHAT")
    assert labels.names == ["caf\\udce9", "tea"] and all(name.encode() for name in labels.names)


def test_few_rows_are_read_once(tmp_path):
    source = write(tmp_path / "train.parquet", [0, 1] * 20, ClassLabel(names=["even", "odd"]), row_group_size=7)
    some, _ = select(source, read_labels(source, "WHAT"), np.array([0, 3, 5, 20, 39]))
    reads, read = [], some.read
    some.read = lambda group, row: reads.append(group) or read(group, row)
    kept = CachedSource(some, max_bytes=10**6)
    assert grey_values(kept) == grey_values(kept) == [0, 3, 5, 20, 39] and reads == [0, 2, 5]
    group = next(group for group, size in enumerate(kept.group_sizes) if size == 3)
    assert len(list(kept.read(group, 2))) == 1 and kept.origin(group, 2)[1] == 5
    # Without room for them they are read again.
    reads.clear()
    kept = CachedSource(some, max_bytes=0)
    assert grey_values(kept) == grey_values(kept) == [0, 3, 5, 20, 39] and reads == [0, 2, 5] * 2


def test_labels_of_parts(tmp_path):
    source = write(tmp_path / "train.parquet", [0, 1, 2] * 8, ClassLabel(names=NAMES), row_group_size=5)
    for part in hold_out(source, 0.3, 1):
        values = grey_values(part)
        assert read_labels(part, "WHAT").values.tolist() == [value % 3 for value in values] and values


def test_names_of_training_count(tmp_path):
    """A split that names its classes in another order is put into that of training."""
    source = write(tmp_path / "train.parquet", [0, 1, 1], ClassLabel(names=["dog", "cat"]))
    assert read_labels(source, "WHAT", names=NAMES).values.tolist() == [2, 0, 0]


def test_drawn_rows_are_stratified():
    values = np.repeat([0, 1, 2], [700, 200, 100])
    labels = Labels(np.random.default_rng(0).permutation(values), NAMES)
    for count in (10, 33, 500, 1000):
        rows = stratified_sample(labels, count, 1, "what")
        assert len(rows) == len(set(rows.tolist())) == count and (np.diff(rows) > 0).all()
        shares = np.bincount(labels.values[rows], minlength=3)
        assert np.abs(shares - count * np.array([0.7, 0.2, 0.1])).max() < 1
    assert stratified_sample(labels, 50, 1, "what").tolist() == stratified_sample(labels, 50, 1, "what").tolist()
    assert stratified_sample(labels, 50, 2, "what").tolist() != stratified_sample(labels, 50, 1, "what").tolist()
    equal = Labels(np.arange(100) % 10, [str(number) for number in range(10)])
    assert sorted(np.bincount(equal.values[stratified_sample(equal, 55, 1, "what")])) == [5] * 5 + [6] * 5
    several = Labels(np.eye(3, dtype=np.uint8)[labels.values], NAMES)
    assert len(set(stratified_sample(several, 50, 1, "what").tolist())) == 50


def test_parts_hold_the_right_images(tmp_path):
    source = write(tmp_path / "train.parquet", [0, 1] * 20, ClassLabel(names=["even", "odd"]), row_group_size=7)
    labels = read_labels(source, "WHAT")
    (train, train_labels), (held, held_labels) = hold_out_labelled(source, labels, 0.25, 3)
    values = grey_values(train), grey_values(held)
    assert sorted(values[0] + values[1]) == list(range(40)) and len(values[1]) == 10
    for found, some in zip(values, (train_labels, held_labels)):
        assert [value % 2 for value in found] == some.values.tolist()
    assert np.bincount(held_labels.values).tolist() == [5, 5]
    assert train.fingerprint != held.fingerprint != source.fingerprint
    assert [row for _, row in held.row_origins(np.arange(10))] == values[1]
    again, _ = select(*select(source, labels, np.arange(1, 40, 2)), np.array([0, 5, 19]))
    assert grey_values(again) == [1, 11, 39]
    with pytest.raises(UserError, match="--train_val_split 0.001 of 40 images leaves 40 .* and 0"):
        hold_out_labelled(source, labels, 0.001, 3)


def test_names_that_look_the_same_are_one_class_and_keep_the_spelling_of_training(tmp_path, emoji_bytes):
    """macOS writes accents decomposed, other systems composed."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for folder, names in (
        ("train", [decomposed, "tea"]),
        ("val", [composed, "tea"]),
        ("both", [composed, decomposed, "z"]),
    ):
        for number, name in enumerate(names):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "1.png").write_bytes(emoji_bytes[number])
    train, validation, both = (open_folder(str(tmp_path / name), "--train_dir") for name in ("train", "val", "both"))
    labels = read_labels(train, "x")
    # As earlier versions stored them: the fingerprint of a run's labels must stay.
    assert labels.names == [decomposed, "tea"]
    assert labels.fingerprint == hash_key(np.array([0, 1]).tobytes(), decomposed, "tea").hex()
    assert read_labels(validation, "x", names=labels.names).values.tolist() == [0, 1]
    assert sorted(read_labels(both, "x").values.tolist()) == [0, 0, 1]
    column = write(tmp_path / "c.parquet", [composed, "tea", decomposed], Value("string"))
    assert read_labels(column, "x", names=labels.names).values.tolist() == [0, 1, 0]
    assert read_labels(column, "x").values.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "column, feature, expected",
    [
        ([None, "b", "a", "c", "b"], Value("string"), (["a", "b", "c"], [1, 0])),
        ([-1, 1, 0, 2, 1], ClassLabel(names=["a", "b", "c"]), (["a", "b", "c"], [1, 0])),
        ([None, [10, 9], [9], [8], []], List(Value("int64")), (["8", "9", "10"], [[0, 1, 1], [0, 1, 0]])),
        ([[None], ["b"], ["a"], ["c"], []], List(Value("string")), (["a", "b", "c"], [[0, 1, 0], [1, 0, 0]])),
    ],
)
def test_view_has_all_classes_and_refuses_only_bad_labels_of_its_own_rows(column, feature, expected, tmp_path):
    source = write(tmp_path / "train.parquet", column, feature, row_group_size=2)
    view = CachedSource(take_rows(take_rows(source, np.array([1, 2, 3])), np.array([0, 1])))
    labels = read_labels(view, "WHAT")
    assert (labels.names, labels.values.tolist()) == expected
    bad = take_rows(source, np.array([0, 3]))
    with pytest.raises(UserError, match=r"WHAT: 1 images have no usable label .*train.parquet row 0\."):
        read_labels(bad, "WHAT")


def test_view_of_a_folder_has_all_classes_and_ignores_files_outside_of_it(tmp_path, emoji_bytes):
    for name in ("0.png", "a/1.png", "b/2.png", "c/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(emoji_bytes[0])
    source = open_folder(str(tmp_path), "--train_dir")
    labels = read_labels(take_rows(source, np.array([1, 3])), "WHAT")
    assert labels.names == ["a", "b", "c"] and labels.values.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"WHAT: 1 images lie in no class folder \(0.png\)"):
        read_labels(take_rows(source, np.array([0, 3])), "WHAT")
    with pytest.raises(UserError, match="classes that the training data does not have: c"):
        read_labels(take_rows(source, np.array([1, 3])), "WHAT", names=["a", "b"])
    assert read_labels(take_rows(source, np.array([1, 2])), "WHAT", names=["a", "b"]).values.tolist() == [0, 1]
