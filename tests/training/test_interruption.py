"""A wait for data that is left after a request to stop."""

import signal
import time

import pytest

from mae.training import interruption
from mae.training.interruption import Interruption, StoppedWaiting


def test_a_wait_is_left_once(monkeypatch):
    """And what is saved after it is left in peace, however long it takes."""
    monkeypatch.setattr(interruption, "DATA_PATIENCE", 1)
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as asked:
        assert asked.agree(asked.signal is not None, True) == [False, True]
        signal.raise_signal(signal.SIGTERM)
        assert asked.signal == signal.SIGTERM
        asked.waiting = True
        with pytest.raises(StoppedWaiting):
            time.sleep(10)
        time.sleep(1.5)
    assert signal.getsignal(signal.SIGTERM) == before
