"""Opening folders and data sets."""

import os

import pyarrow.parquet as pq
import pytest

from mae.data.decoding import decode_image
from mae.data.opening import open_dataset, open_folder
from mae.utils.errors import UserError
from tests.support.data import EMOJI, write_parquet


def test_embedded_data():
    train, test = open_dataset(str(EMOJI))
    assert sum(train.group_sizes) == 1716 and sum(test.group_sizes) == 190
    assert len(train.group_sizes) > 8
    assert sum(file.stat().st_size for file in EMOJI.iterdir()) <= 8e6
    schema = pq.read_schema(EMOJI / "train-00000-of-00001.parquet")
    assert schema.names == ["image", "label"] and b"Smileys & Emotion" in schema.metadata[b"huggingface"]


def test_parquet_by_file_and_pattern(parquet_folder):
    whole, _ = open_dataset(str(parquet_folder))
    pattern, held_out = open_dataset(str(parquet_folder / "train-*.parquet"))
    assert pattern.fingerprint == whole.fingerprint and held_out is None
    one, _ = open_dataset(str(parquet_folder / "train-00000-of-00002.parquet"))
    assert sum(one.group_sizes) == 50 and one.fingerprint != whole.fingerprint


def test_image_columns(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "photo.parquet", emoji_bytes[:8], 4, column="photo")
    assert open_dataset(str(path))[0].column == "photo"

    table = pq.read_table(path)
    bare = tmp_path / "bare.parquet"
    names = ["raw", "count"]
    raw = [row["bytes"] for row in table["photo"].to_pylist()]
    pq.write_table(type(table).from_pydict(dict(zip(names, [raw, list(range(8))]))), bare)
    with pytest.raises(UserError, match="no column of type Image.*Columns: raw, count"):
        open_dataset(str(bare))
    with pytest.raises(UserError, match="--image_column_name count: that column holds Value"):
        open_dataset(str(bare), image_column_name="count")
    with pytest.raises(UserError, match="--image_column_name photo: there is no such column"):
        open_dataset(str(bare), image_column_name="photo")
    assert list(open_dataset(str(bare), image_column_name="raw")[0].read(0, 0)) == raw

    both = tmp_path / "both.parquet"
    features = '{"info": {"features": {"left": {"_type": "Image"}, "right": {"_type": "Image"}}}}'
    pair = type(table).from_arrays([table["photo"], table["photo"]], names=["left", "right"])
    pq.write_table(pair.replace_schema_metadata({"huggingface": features}), both)
    with pytest.raises(UserError, match="several image columns .left, right."):
        open_dataset(str(both))
    assert open_dataset(str(both), image_column_name="right")[0].column == "right"


def test_bad_parquet(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "data.parquet", emoji_bytes[:8], 4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="data.parquet"):
        open_dataset(str(path))
    with pytest.raises(UserError, match="no such file"):
        open_dataset(str(tmp_path / "nothing-*.parquet"))
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(str(tmp_path / "nothing"))
    empty = write_parquet(tmp_path / "empty.parquet", [], 4)
    with pytest.raises(UserError, match="holds no rows"):
        open_dataset(str(empty))


def test_folder_of_images_as_dataset_is_told_the_flag(image_folder):
    with pytest.raises(UserError, match="use --train_dir"):
        open_dataset(str(image_folder))


def test_folder(image_folder, tmp_path):
    source = open_folder(str(image_folder), "--train_dir")
    names = {source.origin(group, 0)[0] for group in range(len(source.group_sizes))}
    assert len(names) == 60 and "group1/deep/001.png" in names and "group0/deep/003.JPG" in names
    (path,) = source.read(0, 0)
    assert decode_image(path).shape == (3, 64, 64)

    (tmp_path / "inside").mkdir()
    os.symlink(image_folder / "group0" / "000.png", tmp_path / "inside" / "link.png")
    os.symlink(image_folder, tmp_path / "inside" / "link")
    with pytest.raises(UserError, match="holds no image files"):
        open_folder(str(tmp_path), "--train_dir")
    with pytest.raises(UserError, match="--train_dir .*no such folder"):
        open_folder(str(tmp_path / "nothing"), "--train_dir")
