"""Mixtures: shares, coverage, and one exact sequence, against plain loops."""

import itertools
from collections import Counter

import numpy as np
import pytest

from mae.data.dataset import SampleDataset
from mae.data.loader import make_loader
from mae.data.mixture import MixtureOrder, MixtureSource, make_order, mixture_of
from mae.data.order import SampleOrder
from mae.data.stream import SampleStream
from mae.data.subsets import hold_out
from mae.data.transforms import PreTrainingTransform
from tests.support.samples import CONFIG, BrokenSource, assert_same


LANES = 4


class Numbers(BrokenSource):
    """Groups of rows; each row is an image of its own."""

    def __init__(self, images, sizes, name):
        super().__init__(images)
        self.group_sizes = sizes
        self.name = self.fingerprint = name

    def read(self, group, first_row):
        start, stop = self.starts[group], self.starts[group + 1]
        yield from self.images[start + first_row : stop]

    def origin(self, group, row):
        return self.name, int(self.starts[group]) + row


@pytest.fixture
def mixture(emoji_bytes) -> MixtureSource:
    sizes = [[7, 13, 20], [9, 1, 6, 5], [3, 8]]
    starts = np.cumsum([0, *map(sum, sizes)])
    sources = [
        Numbers(emoji_bytes[start : start + sum(size)], size, name)
        for start, size, name in zip(starts, sizes, "abc", strict=False)
    ]
    return MixtureSource(sources, "ABC", "ABC", [0.5, 0.3, 0.2])


def stream(source, start=0, stop=None, index=0, processes=1, batch_size=4):
    order = make_order(source, seed=3, lanes=LANES, shuffle_buffer_size=16)
    return SampleStream(source, order, batch_size, index, processes, start, stop)


def batches(source, workers=0, **options):
    return list(make_loader(stream(source, **options), SampleDataset(PreTrainingTransform(CONFIG)), workers))


def test_shares_of_every_start_of_a_lane_are_exact_and_rise():
    order = MixtureOrder([1000, 1000, 1000], [(1, 0.55), (1, 0.25), (1, 0.2)], seed=0)
    for length in range(200):
        counts = order.counts(length)
        assert counts.sum() == length and (order.counts(length + 1) - counts >= 0).all()
        assert (abs(counts - length * np.array([0.55, 0.25, 0.2])) <= 1.01).all()


def test_epoch_ends_when_the_first_data_set_is_used_up(mixture):
    order = make_order(mixture, seed=3, lanes=LANES, shuffle_buffer_size=16)
    # 40 / 0.5 = 80, 21 / 0.3 = 70, 11 / 0.2 = 55 samples: by lane 10 / 0.5, 5 / 0.3, 2 / 0.2.
    assert order.epoch_length == 40
    samples = list(itertools.islice(itertools.chain.from_iterable(stream(mixture, stop=order.epoch_length)), 40))
    names = Counter(sample.origin[0].split("/")[0] for sample in samples)
    assert names == {"A": 20, "B": 12, "C": 8}
    assert {sample.epoch for sample in samples} == {0}


def test_images_of_a_data_set_all_come_before_one_comes_again(mixture):
    """An epoch has 40 samples: 20 of the 40 images of A, 12 of the 20 that B has in its lanes, all 8 of C's."""
    samples = list(itertools.chain.from_iterable(stream(mixture, stop=400)))

    def rows(name: str, start: int, stop: int) -> Counter:
        return Counter(sample.origin[1] for sample in samples[start:stop] if sample.origin[0].startswith(name))

    for start in range(0, 400, 80):
        assert rows("A", start, start + 80) == dict.fromkeys(range(40), 1)
    for start in range(0, 400, 40):
        assert len(rows("C", start, start + 40)) == 8
    for start in (0, 200):
        assert rows("B", start, start + 200).total() == 60 and max(rows("B", start, start + 200).values()) <= 3


def test_rows_are_the_images_of_their_data_sets(mixture):
    for sample in itertools.chain.from_iterable(stream(mixture, stop=120)):
        name, row = sample.origin
        number = "ABC".index(name[0])
        assert sample.image == mixture.sources[number].images[row]
        assert sample.index == sum(len(source) for source in mixture.sources[:number]) + row


def test_sequence_is_the_same_for_any_workers_processes_and_restart(mixture):
    whole = batches(mixture, stop=160)
    assert_same(batches(mixture, workers=3, stop=160), whole)
    for start in (4, 36, 40, 44, 76, 120):  # within epochs, at their ends, and within those of each data set
        assert_same(batches(mixture, start=start, stop=160), whole[start // 4 :])
    samples = list(itertools.chain.from_iterable(stream(mixture, stop=160)))
    halves = [itertools.chain.from_iterable(stream(mixture, stop=160, index=at, processes=2)) for at in (0, 1)]
    assert [sample for pair in zip(*halves, strict=True) for sample in pair] == samples
    order = make_order(mixture, seed=3, lanes=LANES, shuffle_buffer_size=16)
    places = [order.locate(position) for position in range(160)]
    assert [mixture.origin(*place) for place in places] == [sample.origin for sample in samples]


def test_data_sets_of_one_size_are_not_in_step(emoji_bytes):
    """In the first epoch A gives all of its images, and B and C half of theirs, but not the same rows."""
    sizes = {"a": [5] * 4, "b": [5] * 8, "c": [5] * 8}
    sources = [Numbers(emoji_bytes[:40], size, name) for name, size in sizes.items()]
    mixture = MixtureSource(sources, "ABC", "ABC", [1 / 3] * 3)
    samples = list(itertools.chain.from_iterable(stream(mixture, stop=60)))
    rows = {name: {sample.origin[1] for sample in samples if sample.origin[0].startswith(name)} for name in "ABC"}
    assert {name: len(found) for name, found in rows.items()} == {"A": 20, "B": 20, "C": 20}
    assert rows["B"] != rows["C"]


def test_validation_images_are_drawn_from_each_data_set(mixture):
    train, held_out = hold_out(mixture, 0.25, seed=0)
    assert len(train) + len(held_out) == 72 and mixture_of(train) is mixture
    assert isinstance(make_order(train, 0, 2, 16), MixtureOrder)
    order = SampleOrder(held_out.group_sizes, 0, lanes=1)
    assert len({order.locate(position) for position in range(order.epoch_length)}) == len(held_out)
    starts = {name for group, size in enumerate(held_out.group_sizes) if size for name in held_out.origin(group, 0)[0]}
    assert {"A", "B", "C"} <= starts


def test_a_single_data_set_keeps_its_order():
    source = Numbers([b""] * 30, [10] * 3, "a")
    order = make_order(source, 5, 2, 8)
    assert type(order) is SampleOrder
