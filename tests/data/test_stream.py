"""The stream of samples."""

import random
import sys
import threading

import pytest
import torch

from mae.data.batch import samples_digest
from mae.data.dataset import SampleDataset
from mae.data.folders import open_folder
from mae.data.loader import make_loader
from mae.data.opening import open_dataset
from mae.data.order import SampleOrder
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils import retries
from mae.utils.errors import DataError, UserError
from tests.support.samples import CONFIG, BrokenSource, TickedSource, assert_same, batches


@pytest.fixture(scope="module", params=["parquet", "folder", "parquet on the Hub", "files on the Hub", "downloaded"])
def source(request, parquet_folder, image_folder, parquet_on_the_hub, files_on_the_hub):
    return {
        "parquet": lambda: open_dataset(str(parquet_folder))[0],
        "folder": lambda: open_folder(str(image_folder), "--train_dir"),
        "parquet on the Hub": lambda: open_dataset(parquet_on_the_hub[0])[0],
        "files on the Hub": lambda: open_dataset(files_on_the_hub[0])[0],
        "downloaded": lambda: open_dataset(files_on_the_hub[0], streaming=False)[0],
    }[request.param]()


def test_workers_do_not_matter(source):
    expected = batches(source)
    for workers in (1, 3):
        torch.manual_seed(workers)
        random.seed(workers)
        assert_same(batches(source, workers), expected)


def test_stream_starts_at_any_batch(source):
    # 90 or 60 rows: positions in the first epoch and in the second; windows of 8, so in mid-window too.
    expected = batches(source)
    for start, workers in ((24, 0), (40, 1), (80, 0)):
        assert_same(batches(source, workers, start), expected[start // 8 :])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_divide_the_global_batch(source, processes):
    expected = [samples_digest(batch.digests) for batch in batches(source)]
    parts = [
        batches(source, batch_size=8 // processes, index=index, processes=processes) for index in range(processes)
    ]
    together = [samples_digest(torch.cat([batch.digests for batch in step])) for step in zip(*parts)]
    assert together == expected


def test_accumulation_divides_the_global_batch(source):
    expected = [samples_digest(batch.digests) for batch in batches(source)]
    halves = batches(source, batch_size=4)
    pairs = [samples_digest(torch.cat([a.digests, b.digests])) for a, b in zip(halves[0::2], halves[1::2])]
    assert pairs == expected


def test_samples_are_the_rows(source):
    """Against the source read on its own: each sample is the row that its origin names, each row once an epoch."""
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    rows = {}
    for group in range(len(source.group_sizes)):
        for row, data in enumerate(source.read(group, 0)):
            rows[source.origin(group, row)] = data
    stream = SampleStream(source, order, batch_size=4, stop=order.epoch_length)
    samples = [sample for batch in stream for sample in batch]
    assert [sample.position for sample in samples] == list(range(order.epoch_length))
    assert all(rows[sample.origin] == sample.image for sample in samples)
    assert len({sample.origin for sample in samples}) == order.epoch_length


def test_a_source_that_ends_early_is_an_error(emoji_bytes):
    with pytest.raises(DataError, match="file has no row 2."):
        batches(BrokenSource(emoji_bytes[:20], claimed=32), stop=32)


def test_lanes_and_processes():
    with pytest.raises(UserError, match="--lanes 4 must be a multiple .*3.*--lanes 6"):
        batches(BrokenSource([b""] * 32), processes=3)


def test_many_readers_give_what_one_gives(monkeypatch):
    """Random groups, limits and faults, with threads that change places as often as they can."""

    class Faulty(BrokenSource):
        def __init__(self, sizes, num_readers):
            super().__init__([])
            self.group_sizes, self.num_readers, self.random = sizes, num_readers, random.Random(0)

        def read(self, group, first_row):
            for row in range(first_row, self.group_sizes[group]):
                if self.num_readers > 1 and self.random.random() < 0.01:
                    raise ConnectionError("reset")
                yield f"{group} {row}".encode()

    monkeypatch.setattr(retries, "FIRST_DELAY", 0.0001)
    draw, interval = random.Random(1), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for case in range(30):
            sizes = [draw.choice([0, 1, 3, 20, 100]) for _ in range(draw.randint(8, 40))] + [8]
            order = SampleOrder(sizes, seed=case, lanes=4, shuffle_buffer_size=draw.choice([4, 40, 400]))
            start = draw.randrange(0, 2 * order.epoch_length, 2)
            arguments = {"process_index": 1, "num_processes": 2, "start": start, "stop": start + 400}
            one, many = (
                [
                    sample
                    for batch in SampleStream(
                        Faulty(sizes, num_readers), order, 5, max_bytes_ahead=max_bytes, retry_minutes=1, **arguments
                    )
                    for sample in batch
                ]
                for num_readers, max_bytes in ((1, 10**6), (draw.randint(2, 8), draw.choice([1, 100, 10**6])))
            )
            assert one == many and len(one) == 200
            for sample in one:
                group, row = order.locate(sample.position)
                assert sample.image == f"{group} {row}".encode()
    finally:
        sys.setswitchinterval(interval)


def test_a_group_is_read_on_over_windows_and_epochs():
    """With room for one image: nothing is read twice but what lies before a lane's first row in a group."""

    source = TickedSource([bytes(1000)] * 1024, num_readers=4)
    source.ticks.release(10**6)
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=20)
    stream = SampleStream(source, order, 8, stop=3 * order.epoch_length, max_bytes_ahead=1)
    assert sum(len(batch) for batch in stream) == 3 * 1024
    assert source.read_rows == 3 * 1024  # lanes of 256 rows end with a group of 16


def test_a_dropped_stream_leaves_no_thread(parquet_folder):
    source, _ = open_dataset(str(parquet_folder))
    order = SampleOrder(source.group_sizes, seed=0, lanes=4)
    iterator = iter(SampleStream(source, order, batch_size=4))
    next(iterator)
    assert any(thread.name.startswith("window-reader") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith("window-reader") for thread in threading.enumerate())


def views_of(source, views, workers=0, start=0, stop=96, batch_size=8, index=0, processes=1):
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(source, order, batch_size, index, processes, start, stop, views=views)
    return list(make_loader(stream, SampleDataset(PreTrainingTransform(CONFIG)), workers))


@pytest.fixture(scope="module")
def parquet(parquet_folder):
    return open_dataset(str(parquet_folder))[0]


def test_views_of_an_image_have_their_own_keys_and_the_first_is_that_of_a_single_view(parquet):
    one = [row for batch in batches(parquet, stop=24) for row in batch.rows]
    single = {
        row: (pixels, noise)
        for batch in batches(parquet, stop=24)
        for row, pixels, noise in zip(batch.rows, batch.pixel_values, batch.noise)
    }
    found = views_of(parquet, 4)
    assert [row for batch in found for row in batch.rows[:2]] == one  # 8 samples are 2 images
    for batch in found:
        assert batch.rows == batch.rows[:2] * 4
        noises = {noise.tobytes() for noise in batch.noise}
        assert len(noises) == 8 and not torch.equal(batch.pixel_values[0], batch.pixel_values[2])
        for place in range(2):
            pixels, noise = single[batch.rows[place]]
            assert torch.equal(batch.pixel_values[place], pixels) and (batch.noise[place] == noise).all()
    positions = [int.from_bytes(bytes(row[:8]), "big") for batch in found for row in batch.digests.numpy()]
    assert sorted(positions) == list(range(96))


def test_views_do_not_depend_on_workers_start_and_ranks(parquet):
    expected = views_of(parquet, 4, stop=480)  # several epochs of images
    assert_same(views_of(parquet, 4, workers=2, stop=480), expected)
    assert_same(views_of(parquet, 4, start=200, stop=480), expected[25:])
    ranks = [views_of(parquet, 4, batch_size=4, index=index, processes=2, stop=480) for index in range(2)]
    for whole, *parts in zip(expected, *ranks):
        assert samples_digest(torch.cat([part.digests for part in parts])) == samples_digest(whole.digests)
