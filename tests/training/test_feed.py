"""Batches of a rank, and the end of their workers."""

import multiprocessing
import time

import pytest
import torch
from torch.utils.data import DataLoader

from mae.training.feed import BatchFeed
from mae.training.interruption import Interruption


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index


def loader(num_workers):
    return DataLoader(Slow(), batch_size=2, num_workers=num_workers)


@pytest.fixture
def stranger():
    """A process of the user's, in the same program."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_close_ends_its_own_workers_and_no_other_process(stranger, num_workers):
    before = set(multiprocessing.active_children())  # those of other tests too
    feed = BatchFeed(lambda step: loader(num_workers), 0, Interruption())
    assert feed.next().tolist() == [0, 1] and feed.next().tolist() == [2, 3]
    assert len(set(multiprocessing.active_children()) - before) == num_workers
    feed.close()
    assert set(multiprocessing.active_children()) == before and stranger in before and stranger.is_alive()


def test_loader_is_made_for_the_first_step_when_the_first_batch_is_needed():
    asked = []
    feed = BatchFeed(lambda step: asked.append(step) or loader(0), 7, Interruption())
    assert asked == []
    feed.next()
    feed.next()
    assert asked == [7]
    feed.close()
