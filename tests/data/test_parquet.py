"""Parquet files as sources."""

import re

import pyarrow as pa
import pyarrow.parquet as pq

from mae.data.opening import open_dataset
from tests.support.data import write_parquet
from tests.support.samples import batches


def test_parquet_rows_are_the_files_rows(parquet_folder):
    source, held_out = open_dataset(str(parquet_folder))
    assert source.group_sizes == [16, 16, 16, 2, 16, 16, 8] and held_out.group_sizes == [6, 6]
    tables = {path.name: pq.read_table(path)["image"].to_pylist() for path in parquet_folder.iterdir()}
    for group, size in enumerate(source.group_sizes):
        for first_row in (0, size - 1):
            rows = list(source.read(group, first_row))
            assert len(rows) == size - first_row
            for offset, data in enumerate(rows):
                file, row = source.origin(group, first_row + offset)
                assert tables[file][row]["bytes"] == data


def test_fingerprint_follows_the_content_not_the_place(tmp_path, emoji_bytes):
    first = write_parquet(tmp_path / "a" / "data.parquet", emoji_bytes[:20], 8)
    same = write_parquet(tmp_path / "b" / "data.parquet", emoji_bytes[:20], 8)
    regrouped = write_parquet(tmp_path / "c" / "data.parquet", emoji_bytes[:20], 10)
    changed = write_parquet(tmp_path / "d" / "data.parquet", emoji_bytes[1:21], 8)
    prints = [open_dataset(str(path))[0].fingerprint for path in (first, same, regrouped, changed)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_row_groups_without_bytes(tmp_path, emoji_bytes):
    """A row that names a file instead of its bytes, and one that names nothing."""
    (tmp_path / "beside.png").write_bytes(emoji_bytes[0])
    rows = [{"bytes": data, "path": None} for data in emoji_bytes[:40]]
    rows[35] = {"bytes": None, "path": str(tmp_path / "beside.png")}
    rows[36] = None
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "train.parquet")
    source, _ = open_dataset(str(tmp_path / "train.parquet"), image_column_name="image")
    expected = [*emoji_bytes[:35], str(tmp_path / "beside.png"), b"", *emoji_bytes[37:40]]
    assert list(source.read(0, 0)) == expected and list(source.read(0, 33)) == expected[33:]
    # In one of 40 batches of 2 is what cannot be read.
    assert sum(len(batch.skipped) for batch in batches(source, stop=40, batch_size=2)) == 1


def test_very_large_row_group_is_noted(parquet_folder, monkeypatch):
    assert open_dataset(str(parquet_folder))[0].note is None
    monkeypatch.setattr("mae.data.parquet.LARGE_ROW_GROUP", 10_000)
    source, _ = open_dataset(str(parquet_folder))
    assert re.match(r"Note: train-0000\d-of-00002.parquet has a row group of 0.0 GB \(16 rows\), which", source.note)
