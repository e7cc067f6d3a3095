"""Errors of DataLoader workers."""

import multiprocessing
import os
import signal

import pytest
from torch.utils.data import DataLoader

from mae.data.dataset import SampleDataset
from mae.data.loader import batches, make_loader
from mae.utils.errors import DataError


class Failing:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise RuntimeError("a bug in a transform")


class Dying(Failing):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_error_inside_a_worker_keeps_its_type_and_its_text():
    with pytest.raises(RuntimeError, match="a bug in a transform") as error:
        list(batches(DataLoader(Failing(), num_workers=1)))
    assert not isinstance(error.value, DataError) and "Traceback" in str(error.value)


def test_worker_that_is_killed_is_reported_with_advice():
    with pytest.raises(DataError, match="--dataloader_num_workers 0"):
        list(batches(DataLoader(Dying(), num_workers=1)))


def test_workers_end_if_the_first_samples_cannot_be_read():
    """They ignore the request to end that Python sends at exit, and it waits for them."""

    def broken():
        raise DataError("row 20 cannot be read")
        yield

    loader = make_loader(broken(), SampleDataset(None), num_workers=1)
    before = multiprocessing.active_children()
    with pytest.raises(DataError, match="row 20") as error:
        next(batches(loader))
    assert error.value.__traceback__ is not None and multiprocessing.active_children() == before
