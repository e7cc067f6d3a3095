"""Reading ahead."""

import time

import pytest

from mae.data.order import SampleOrder
from mae.data.reader import WindowReader
from mae.data.stream import SampleStream
from tests.support.samples import BrokenSource, TickedSource


def until(condition):
    """Waits for what threads are about to do."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("num_readers", [1, 4])
def test_reading_ahead_is_bounded(num_readers):
    order = SampleOrder([16] * 64, seed=0, lanes=4, shuffle_buffer_size=256)
    for max_windows, max_bytes, ahead in ((2, 10**9, 48 + 32), (32, 100_000, 100), (32, 10, 1)):
        source = TickedSource([bytes(1000)] * 1024, num_readers)
        source.ticks.release(10**6)
        reader = WindowReader(source, order.windows(0, range(4)), max_windows, max_bytes)
        window, _ = reader.get()
        assert len(window) == 64  # of 64,000 bytes, whatever the limits
        assert until(lambda source=source, ahead=ahead: source.read_rows >= 64 + ahead)
        time.sleep(0.05)  # time enough to read too much
        assert source.read_rows <= 64 + ahead + num_readers
        reader.close()
        assert not any(thread.is_alive() for thread in reader.threads)


@pytest.mark.parametrize("num_readers", [1, 4])
def test_a_window_that_ends_finds_the_next_one_read(num_readers, monkeypatch):
    """Two epochs of a source that is an eighth faster than training, and room for what an epoch begins with."""
    source = TickedSource([bytes(1000)] * 1024, num_readers)
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=256)
    waits = []

    def get(reader):
        with reader.changed:
            waits.append(not reader.plan.is_decided)
        if waits[-1]:
            source.ticks.release(256)  # or it would wait for ever
        return real_get(reader)

    real_get = WindowReader.get
    monkeypatch.setattr(WindowReader, "get", get)
    stream = SampleStream(source, order, 8, stop=2 * order.epoch_length, max_bytes_ahead=192_000)
    for _ in stream:
        source.ticks.release(9)
        read_rows = None
        while source.read_rows != read_rows:  # until the ticks are used up, or there is no room
            read_rows = source.read_rows
            time.sleep(0.005)
    assert source.read_rows == 2048
    assert len(waits) > 32 and not any(waits[4:])


def test_windows_that_cannot_be_laid_out():
    def windows():
        yield SampleOrder([8], seed=0, lanes=1).window(0, 0, 0)
        raise MemoryError("too many groups")

    reader = WindowReader(BrokenSource([b"image"] * 8), windows())
    with pytest.raises(MemoryError, match="too many groups"):
        reader.get(), reader.get()
    reader.close()
