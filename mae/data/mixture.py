"""
Several data sets as one, with weights.

The order of a mixture is a pure function of (seed, epoch, position), as that of a single data set is. Each data set
keeps an order of its own, with as many lanes. The first x rows of a lane hold `counts(x)` rows of each, within one row
of its share, and the rows of a window are shuffled together. A data set that is used up starts its next epoch, in a
new order, so that each of its images comes once before any comes again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mae.data.order import SampleOrder
from mae.data.sources import Source, View
from mae.utils.hashing import hash_key


class MixtureSource(Source):
    """
    The groups of several sources, one source after the other.

    Args:
        sources: The sources.
        names: Their names, for origins and cards.
        paths: What flags name them by, with their commits.
        weights: Their shares of the samples; they sum to 1. None for all rows of each, as evaluation reads them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        paths: Sequence[str],
        weights: Sequence[float] | None = None,
    ):
        self.sources = list(sources)
        self.names = list(names)
        self.paths = list(paths)
        self.group_sizes = [size for source in sources for size in source.group_sizes]
        self.first_groups = np.cumsum([0, *(len(source.group_sizes) for source in sources)])
        if weights is not None:
            self.parts = tuple((len(source.group_sizes), weight) for source, weight in zip(sources, weights))
        prints = [source.fingerprint for source in sources]
        self.fingerprint = hash_key("mixture", prints, list(weights or ())).hex()
        self.num_readers = max(source.num_readers for source in sources)
        self.note = "\n".join(source.note for source in sources if source.note) or None
        # The columns that all of them have.
        self.features = {
            name: feature
            for name, feature in sources[0].features.items()
            if all(source.features.get(name) == feature for source in sources)
        }

    def _part(self, group: int) -> tuple[int, int]:
        """(number of the source, group in it)."""
        number = int(np.searchsorted(self.first_groups, group, side="right")) - 1
        return number, group - int(self.first_groups[number])

    def read(self, group: int, first_row: int) -> Iterator[bytes | str]:
        number, own = self._part(group)
        return self.sources[number].read(own, first_row)

    def origin(self, group: int, row: int) -> tuple[str, int]:
        number, own = self._part(group)
        name, row = self.sources[number].origin(own, row)
        return f"{self.names[number]}/{name}", row

    def read_column(self, name: str) -> pa.ChunkedArray:
        if name not in self.features:
            raise KeyError(name)
        columns = [source.read_column(name) for source in self.sources]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)

    def class_folders(self) -> list[str] | None:
        folders = [source.class_folders() for source in self.sources]
        if any(of_the_source is None for of_the_source in folders):
            return None
        return [folder for of_the_source in folders for folder in of_the_source or ()]

    def describe(self) -> list[dict[str, Any]]:
        """Each source for the identity of a run: what is in it, and its weight."""
        return [
            {"fingerprint": source.fingerprint, "images": len(source), "weight": weight}
            for source, (_, weight) in zip(self.sources, self.parts)
        ]


def mixture_of(source: Source) -> MixtureSource | None:
    """The mixture behind views, if there is one."""
    while isinstance(source, View):
        source = source.source
    return source if isinstance(source, MixtureSource) else None


class MixtureOrder(SampleOrder):
    """
    The sequence of samples of a mixture.

    An epoch ends when the first data set, by its weight, is used up: with weights w over n images the epoch has about
    min(n / w) samples, and each data set gives its share of them.

    Args:
        parts: (number of groups, weight) of each data set, as in [`Source`].

    The others are those of [`SampleOrder`].
    """

    def __init__(
        self,
        group_sizes: Sequence[int],
        parts: Sequence[tuple[int, float]],
        seed: int,
        lanes: int = 8,
        shuffle_buffer_size: int = 4096,
    ):
        super().__init__(group_sizes, seed, lanes, shuffle_buffer_size)
        self.weights = [weight for _, weight in parts]
        self.first_groups = np.cumsum([0, *(number for number, _ in parts)]).tolist()
        # Orders of their own, so that images at the same place of two data sets do not come together.
        self.orders = [
            SampleOrder(self.group_sizes[first:end], _part_seed(seed, number), lanes, shuffle_buffer_size)
            for number, (first, end) in enumerate(zip(self.first_groups, self.first_groups[1:]))
        ]
        longest = int(min(order.lane_length / weight for order, weight in zip(self.orders, self.weights)))
        lengths = np.array([order.lane_length for order in self.orders])
        # Rounding may give a data set one row more than its share.
        while longest > 1 and (self.counts(longest) > lengths).any():
            longest -= 1
        self.lane_length = longest
        self.epoch_length = self.lane_length * lanes
        self.counts_of_epoch = self.counts(self.lane_length)

    def counts(self, length: int) -> np.ndarray:
        """How many of the first rows of a lane are of each data set. No count falls as the length grows."""
        counts, weight = [], 1.0
        for share in self.weights[:-1]:
            # Of what the data sets before leave. Rounded down after a half, so that short lanes hold all of them.
            count = min(int(length * min(share / weight, 1.0) + 0.5), length)
            counts.append(count)
            length, weight = length - count, weight - share
        return np.array([*counts, length], dtype=np.int64)

    def _segments(self, epoch: int, lane: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        segments = []
        for number, order in enumerate(self.orders):
            # Rows of the data set's own lane, which run on over epochs.
            before = epoch * int(self.counts_of_epoch[number])
            row, end = before + int(self.counts(start)[number]), before + int(self.counts(stop)[number])
            while row < end:
                own_epoch, place = divmod(row, order.lane_length)
                count = min(end - row, order.lane_length - place)
                for group, first_row, rows in order._segments(own_epoch, lane, place, place + count):
                    segments.append((self.first_groups[number] + group, first_row, rows))
                row += count
        return segments


def _part_seed(seed: int, number: int) -> int:
    return int.from_bytes(hash_key("mixture", seed, number), "big")


def make_order(source: Source, seed: int, lanes: int, shuffle_buffer_size: int) -> SampleOrder:
    """The order in which a source is trained on."""
    if source.parts:
        return MixtureOrder(source.group_sizes, source.parts, seed, lanes, shuffle_buffer_size)
    return SampleOrder(source.group_sizes, seed, lanes, shuffle_buffer_size)
