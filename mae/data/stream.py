"""
From a source to this rank's samples in order, read ahead in the background.

    source -> WindowReader (threads) -> SampleStream -> lists of samples, one per batch
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from mae.data.decoding import OpenImage
from mae.data.order import SampleOrder, Window, sample_seed
from mae.data.reader import MAX_BYTES_AHEAD, WindowReader
from mae.data.sources import Source
from mae.utils.errors import UserError


class Sample(NamedTuple):
    """A sample for a worker: its key, and its undecoded image."""

    epoch: int
    position: int  # running on over epochs; each view of an image has its own
    origin: tuple[str, int]  # file and row
    seed: int
    image: bytes | str | OpenImage  # the last in a worker, if samples share it
    index: int = -1  # of the row over all groups of the source, and so of its label


class SampleStream:
    """
    This rank's samples from a position on: a batch sampler that yields the samples themselves.

    Args:
        source: Where images come from.
        order: Their order.
        batch_size: Samples of a per-device batch.
        process_index, num_processes: This rank reads the lanes that are `process_index` modulo `num_processes`.
        start, stop: First position over all ranks, and the one after the last.
        views: Samples of each image, one after the other: position p is view p % views of image p // views.
        max_bytes_ahead: About how many bytes are read before they are needed.
        retry_minutes: Minutes for which a source that cannot be read is retried.
    """

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        start: int = 0,
        stop: int | None = None,
        views: int = 1,
        max_bytes_ahead: int = MAX_BYTES_AHEAD,
        retry_minutes: float = 0,
    ):
        if order.lanes % num_processes:
            raise UserError(
                f"--lanes {order.lanes} must be a multiple of the number of processes ({num_processes}), because each "
                f"reads its own lanes. Use --lanes {-(-order.lanes // num_processes) * num_processes}."
            )
        if start % (num_processes * views):
            raise ValueError(f"start={start} must be a multiple of num_processes={num_processes} times views={views}.")
        self.source = source
        self.order = order
        self.batch_size = batch_size
        self.process_index = process_index
        self.num_processes = num_processes
        self.start = start
        self.stop = stop
        self.views = views
        self.max_bytes_ahead = max_bytes_ahead
        self.retry_minutes = retry_minutes

    def __iter__(self) -> Iterator[list[Sample]]:
        # From here on positions are those of images.
        order, views = self.order, self.views
        start, stop = self.start // views, None if self.stop is None else self.stop // views
        lanes = range(self.process_index, order.lanes, self.num_processes)
        windows = order.windows(start, lanes)
        if stop is not None:
            windows = itertools.takewhile(lambda window: order.position(window) < stop, windows)
        # The reader starts here and not in __init__, because the DataLoader forks its workers first.
        reader = WindowReader(self.source, windows, max_bytes=self.max_bytes_ahead, retry_minutes=self.retry_minutes)
        starts = self.source.starts
        current: dict[int, tuple[Window, list]] = {}
        batch = []
        try:
            position = start + self.process_index
            while stop is None or position < stop:
                epoch, place = divmod(position, order.epoch_length)
                row, lane = divmod(place, order.lanes)
                window, images = current.get(lane, (None, None))
                if window is None or window.epoch != epoch or row - window.start >= len(window):
                    # Windows come in the order in which positions first need them, which is this loop's.
                    window, images = current[lane] = reader.get()
                    if (window.epoch, window.lane) != (epoch, lane) or not 0 <= row - window.start < len(window):
                        raise RuntimeError(f"{window} is not the one that position {position} needs.")
                index = int(window.order[row - window.start])
                group, group_row = window.locate(index)
                image, images[index] = images[index], b""  # frees it: a window drains while the next one fills
                origin, row_index = self.source.origin(group, group_row), int(starts[group]) + group_row
                for view in range(views):
                    seed = sample_seed(order.seed, epoch, place, view)
                    batch.append(Sample(epoch, position * views + view, origin, seed, image, row_index))
                if len(batch) == self.batch_size:
                    yield self._spread(batch)
                    batch = []
                position += self.num_processes
            if batch:  # in evaluation; training ends with a whole batch
                yield self._spread(batch)
        finally:
            reader.close()

    def _spread(self, batch: list[Sample]) -> list[Sample]:
        """The first views of all images, then the second ones: mixup and cutmix mix each sample with the next."""
        if self.views == 1:
            return batch
        return [sample for view in range(self.views) for sample in batch[view :: self.views]]
