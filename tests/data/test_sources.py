"""Sources: what all kinds of them share."""

import hashlib

import datasets
import numpy as np
import pyarrow as pa
import pytest

from mae.data.folders import open_folder
from mae.data.opening import open_dataset
from mae.data.sources import ArrowSource, Source, View, sample_rows
from mae.data.subsets import CachedSource, RowNumbers, hold_out, take_rows


def rows(source):
    return [image for group, size in enumerate(source.group_sizes) if size for image in source.read(group, 0)]


@pytest.fixture(params=["folder", "parquet", "arrow", "taken rows", "cached", "held out"])
def source(request, image_folder, parquet_folder, emoji_bytes):
    parquet = open_dataset(str(parquet_folder))[0]
    return {
        "folder": lambda: open_folder(str(image_folder), "--train_dir"),
        "parquet": lambda: parquet,
        "arrow": lambda: arrow(emoji_bytes[:20]),
        "taken rows": lambda: take_rows(parquet, np.array([0, 17, 18, 89])),
        "cached": lambda: CachedSource(take_rows(parquet, np.arange(5, 30))),
        "held out": lambda: hold_out(parquet, 0.3, seed=1)[1],
    }[request.param]()


def arrow(images):
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
    columns = {"image": [{"bytes": data, "path": None} for data in images], "number": list(range(len(images)))}
    return ArrowSource(datasets.Dataset.from_dict(columns, features=features), "image", "train")


def test_every_kind_has_the_rows_that_its_groups_promise(source):
    assert isinstance(source, Source) and len(source) == sum(source.group_sizes) == len(rows(source)) > 0
    assert source.starts.tolist() == [0, *np.cumsum(source.group_sizes)]
    assert source.num_readers >= 1 and source.revision is None


def test_group_can_be_read_from_any_row(source):
    for group, size in enumerate(source.group_sizes):
        whole = list(source.read(group, 0)) if size else []
        assert all(list(source.read(group, first)) == whole[first:] for first in range(size))


def test_origins_are_unique_and_agree(source):
    origins = source.row_origins(np.arange(len(source)))
    assert len(set(origins)) == len(source)
    last = len(source.group_sizes) - 1
    while not source.group_sizes[last]:
        last -= 1
    assert origins[-1] == source.origin(last, source.group_sizes[last] - 1)


def test_column_that_does_not_exist_is_a_key_error(source):
    with pytest.raises(KeyError):
        source.read_column("missing")


def test_source_without_its_methods_cannot_be_made():
    with pytest.raises(TypeError, match="read"):
        type("Half", (Source,), {"origin": lambda self, group, row: ("", 0)})()


def test_arrow_rows_columns_and_fingerprint(emoji_bytes):
    source = arrow(emoji_bytes[:20])
    assert [hashlib.sha256(row).digest() for row in rows(source)] == [
        hashlib.sha256(row).digest() for row in emoji_bytes[:20]
    ]
    assert source.read_column("number").to_pylist() == list(range(20)) and source.origin(3, 0) == ("train", 3)
    assert source.fingerprint == arrow(emoji_bytes[:20]).fingerprint != arrow(emoji_bytes[1:21]).fingerprint
    assert source.fingerprint != arrow(emoji_bytes[:19]).fingerprint


class Numbered(Source):
    """Rows that are their numbers, with a column and class folders."""

    fingerprint = "numbered"
    note = "a note"
    num_readers = 3
    features = {"number": datasets.Value("int64")}

    def __init__(self):
        self.group_sizes = [3, 0, 2]

    def read(self, group, first_row):
        yield from (str(row).encode() for row in range(self.starts[group] + first_row, self.starts[group + 1]))

    def origin(self, group, row):
        return f"file{group}", row

    def read_column(self, name):
        return pa.chunked_array([list(range(5))])

    def class_folders(self):
        return ["a", "a", "b", "b", ""]


def test_view_has_the_properties_and_the_values_of_its_rows():
    view = take_rows(Numbered(), np.array([1, 2, 4]))
    assert isinstance(view, View) and rows(view) == [b"1", b"2", b"4"]
    assert view.read_column("number").to_pylist() == [1, 2, 4] and view.class_folders() == ["a", "b", ""]
    assert (view.note, view.num_readers, view.features) == ("a note", 3, Numbered.features)
    assert view.row_origins(np.arange(3)) == [("file0", 1), ("file0", 2), ("file2", 1)]
    assert view.fingerprint not in ("numbered", take_rows(Numbered(), np.array([1, 2, 3])).fingerprint)


def test_view_of_a_view_names_the_first_source():
    view = take_rows(take_rows(Numbered(), np.array([0, 2, 4])), np.array([1, 2]))
    assert rows(view) == [b"2", b"4"] and view.class_folders() == ["b", ""]
    assert view.row_origins(np.arange(2)) == [("file0", 2), ("file2", 1)]


def test_row_numbers_need_no_image():
    assert len(RowNumbers(Numbered())) == 5


@pytest.mark.parametrize("count", [1, 64, 65, 10**6])
def test_sample_of_rows_holds_the_first_and_the_last(count):
    found = sample_rows(count)
    assert found[0] == 0 and found[-1] == count - 1 and len(found) == min(count, 64) and found == sorted(set(found))
