"""Views of sources: labels by their source, rows that are read once, rows without images."""

import threading

import numpy as np
import pyarrow as pa
import pytest

from mae.data.folders import open_folder
from mae.data.opening import open_dataset
from mae.data.sources import Source, View
from mae.data.subsets import CachedSource, RowNumbers, Subset, hold_out, take_rows
from mae.utils.errors import UserError


class Counted(Source):
    """Groups of rows that count how often each is read."""

    fingerprint = "counted"

    def __init__(self, sizes, delay=None):
        self.group_sizes = sizes
        self.reads = dict.fromkeys(range(len(sizes)), 0)
        self.started = delay

    def read(self, group, first_row):
        self.reads[group] += 1
        if self.started is not None:
            self.started.wait(0.2)
        for row in range(first_row, self.group_sizes[group]):
            yield bytes([group, row])

    def origin(self, group, row):
        return f"file{group}", row

    def read_column(self, name):
        return pa.chunked_array([np.arange(len(self))])


@pytest.mark.parametrize("view", [CachedSource, RowNumbers, lambda source: take_rows(source, np.array([1, 4, 5]))])
def test_every_view_answers_columns_and_origins_by_its_source(view):
    source = Counted([3, 0, 4])
    found = view(source)
    numbers = found.row_numbers()
    assert found.read_column("label").to_pylist() == numbers.tolist()
    assert found.row_origins(np.arange(len(found))) == source.row_origins(numbers)


def test_view_of_a_view_reads_the_rows_of_the_first_source():
    source = Counted([3, 4])
    inner = take_rows(take_rows(source, np.arange(1, 7)), np.array([0, 3, 5]))
    rows = [row for group, size in enumerate(inner.group_sizes) if size for row in inner.read(group, 0)]
    assert rows == [bytes([0, 1]), bytes([1, 1]), bytes([1, 3])] and isinstance(inner, View)


def test_cached_rows_are_read_once_even_by_two_threads():
    source = Counted([5], threading.Event())
    cached, found = CachedSource(source), []
    threads = [threading.Thread(target=lambda: found.append(list(cached.read(0, 2)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.reads == {0: 1} and found == [[bytes([0, row]) for row in (2, 3, 4)]] * 4
    assert cached._room == 2**30 - 10  # counted once


def test_groups_beyond_the_room_are_read_each_time():
    source = Counted([5, 5])
    cached = CachedSource(source, max_bytes=10)
    for _ in range(2):
        for group in (0, 1):
            assert len(list(cached.read(group, 0))) == 5
    assert source.reads == {0: 1, 1: 2}


def test_row_numbers_hold_no_images_and_read_nothing():
    source = Counted([3])
    assert list(RowNumbers(source).read(0, 1)) == [b"", b""] and source.reads == {0: 0}


def test_hold_out_divides_each_group_and_keeps_every_row():
    parts = hold_out(Counted([10, 1, 20]), 0.2, seed=1)
    numbers = [part.row_numbers().tolist() for part in parts]
    assert sorted(numbers[0] + numbers[1]) == list(range(31)) and isinstance(parts[0], Subset)
    assert parts[0].fingerprint != parts[1].fingerprint


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_held_out_rows_and_the_others_are_the_whole(parquet_folder, image_folder, share):
    """Every row is in one part, in its place; both parts are drawn from everywhere, and by the seed."""
    for source in (open_dataset(str(parquet_folder))[0], open_folder(str(image_folder), "--train_dir")):
        rows = {}
        parts = hold_out(source, share, seed=1)
        for number, part in enumerate(parts):
            for group, size in enumerate(part.group_sizes):
                read = list(part.read(group, 0)) if size else []
                assert len(read) == size
                for row, image in enumerate(read):
                    assert part.origin(group, row) not in rows
                    rows[part.origin(group, row)] = number, image
                    assert row % 5 or list(part.read(group, row)) == read[row:]
        whole = {
            source.origin(group, row): image
            for group in range(len(source.group_sizes))
            for row, image in enumerate(source.read(group, 0))
        }
        assert {origin: image for origin, (_, image) in rows.items()} == whole
        held = sum(parts[1].group_sizes)
        assert held == pytest.approx(share * len(whole), abs=3)
        assert parts[0].fingerprint != parts[1].fingerprint != source.fingerprint
        assert hold_out(source, share, seed=1)[0].group_sizes == parts[0].group_sizes
        assert hold_out(source, share, seed=2)[0].fingerprint != parts[0].fingerprint
    with pytest.raises(UserError, match="--train_val_split 0.001 of 60 images leaves 60 .* and 0"):
        hold_out(source, 0.001, seed=1)
