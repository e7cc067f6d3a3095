"""
The order of samples, a pure function of (seed, epoch, position).

A source is a list of groups of rows. An epoch permutes the groups, lays their rows end to end and cuts that line into
`lanes` equal pieces. Inside a lane rows are permuted within windows of `shuffle_buffer_size / lanes`. Position p of an
epoch is row p // lanes of lane p % lanes; positions run on over epochs. Since the number of lanes is a constant of the
run and a multiple of the number of processes, and everything else follows from the position, processes, workers and
gradient accumulation only divide the sequence, and one integer resumes it.

The idea is the elastic determinism of MosaicML Streaming; here it needs no data format of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mae.utils.errors import UserError
from mae.utils.hashing import hash_key, permutation


def sample_seed(seed: int, epoch: int, position: int, view: int = 0) -> int:
    """Seed of all randomness of one sample: crop, flip and mask. View 0 of an image has that of an only view."""
    key = (position, view) if view else (position,)
    return int.from_bytes(hash_key("sample", seed, epoch, *key), "big") >> 1


@dataclass(frozen=True)
class Window:
    """A range of a lane's rows that is shuffled as one: row `start + k` of the lane is `rows[order[k]]`."""

    epoch: int
    lane: int
    start: int  # within the lane
    segments: tuple[tuple[int, int, int], ...]  # (group, first row, number of rows), in the order of reading
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def locate(self, index: int) -> tuple[int, int]:
        """(group, row) of the image that is read as number `index`."""
        for group, first_row, count in self.segments:
            if index < count:
                return group, first_row + index
            index -= count
        raise IndexError(index)


class SampleOrder:
    """
    The sequence of samples of a run.

    Args:
        group_sizes: Number of rows of each group of the source.
        seed: Seed of the run.
        lanes: Number of pieces that an epoch is cut into; a multiple of the number of processes.
        shuffle_buffer_size: Number of rows, over all lanes, within which rows are shuffled.

    Raises:
        UserError: if there are fewer rows than lanes, or fewer buffer places.
    """

    def __init__(self, group_sizes: Sequence[int], seed: int, lanes: int = 8, shuffle_buffer_size: int = 4096):
        self.group_sizes = np.asarray(group_sizes, dtype=np.int64)
        self.seed = seed
        self.lanes = lanes
        self.num_rows = int(self.group_sizes.sum())
        if lanes < 1 or shuffle_buffer_size < lanes:
            raise UserError(
                f"--lanes {lanes} must be at least 1, and --shuffle_buffer_size {shuffle_buffer_size} not smaller."
            )
        if self.num_rows < lanes:
            raise UserError(
                f"The data has {self.num_rows} images, fewer than --lanes {lanes}. Lower --lanes to at most "
                f"{max(self.num_rows, 1)}."
            )
        self.window_size = shuffle_buffer_size // lanes
        self.lane_length = self.num_rows // lanes
        # The last `num_rows % lanes` rows of the permuted order are dropped. With several groups these differ between
        # epochs; with one group they are always the same.
        self.epoch_length = self.lane_length * lanes
        self._line = lru_cache(maxsize=2)(self._lay_line)  # two, because a batch may straddle an epoch's end

    def _lay_line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups of an epoch in their order, and the place on the line where each ends."""
        groups = permutation(len(self.group_sizes), self.seed, epoch)
        return groups, np.cumsum(self.group_sizes[groups])

    def _window_bounds(self, lane: int, index: int) -> tuple[int, int]:
        """Where a window of a lane starts and ends, within the lane."""
        # The first window of lane l is shorter by l / lanes of one, so that the lanes do not all refill at once.
        missing = self.window_size * lane // self.lanes
        start = max(index * self.window_size - missing, 0)
        return start, min((index + 1) * self.window_size - missing, self.lane_length)

    def window(self, epoch: int, lane: int, index: int) -> Window:
        """Window number `index` of a lane."""
        start, stop = self._window_bounds(lane, index)
        order = permutation(stop - start, self.seed, epoch, lane, index)
        return Window(epoch, lane, start, tuple(self._segments(epoch, lane, start, stop)), order)

    def _segments(self, epoch: int, lane: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Where the rows of a lane from `start` to `stop` are, as in [`Window`]."""
        groups, ends = self._line(epoch)
        place, end = lane * self.lane_length + start, lane * self.lane_length + stop
        segments = []
        at = int(np.searchsorted(ends, place, side="right"))
        while place < end:
            group = int(groups[at])
            first_row = place - int(ends[at] - self.group_sizes[group])
            count = min(end, int(ends[at])) - place
            if count:  # empty groups take no place on the line
                segments.append((group, first_row, count))
            place += count
            at += 1
        return segments

    @property
    def is_coarse(self) -> bool:
        """Whether rows come in nearly the same places in each epoch: too few groups to permute, too short windows."""
        return np.count_nonzero(self.group_sizes) < 4 * self.lanes and self.window_size < self.lane_length

    def position(self, window: Window) -> int:
        """The first position of a window, running on over epochs."""
        return window.epoch * self.epoch_length + window.start * self.lanes + window.lane

    def locate(self, position: int) -> tuple[int, int]:
        """(group, row) of a position, which runs on over epochs."""
        epoch, place = divmod(position, self.epoch_length)
        row, lane = divmod(place, self.lanes)
        window = self.window(epoch, lane, self.window_index(lane, row))
        return window.locate(int(window.order[row - window.start]))

    def window_index(self, lane: int, row: int) -> int:
        """The number of the window that holds a row of a lane."""
        return (row + self.window_size * lane // self.lanes) // self.window_size

    def windows(self, start: int, lanes: Sequence[int]) -> Iterator[Window]:
        """All windows of some lanes from a position on, for ever, in the order in which they are needed."""
        epoch, first = divmod(start, self.epoch_length)
        while True:
            needed = []
            for lane in lanes:
                first_row = max(-(-(first - lane) // self.lanes), 0)  # of this lane, at or after the position
                if first_row < self.lane_length:
                    last_index = self.window_index(lane, self.lane_length - 1)
                    for index in range(self.window_index(lane, first_row), last_index + 1):
                        row = max(self._window_bounds(lane, index)[0], first_row)
                        needed.append((row * self.lanes + lane, lane, index))
            for _, lane, index in sorted(needed):
                yield self.window(epoch, lane, index)
            epoch, first = epoch + 1, 0
