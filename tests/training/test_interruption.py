"""Requests to stop: noted, announced, answered while data does not come, and left alone outside the main thread."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from mae.training import interruption
from mae.training.interruption import Interruption, StoppedWaiting


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_request_is_noted_and_announced_at_once(number, capfd):
    before = signal.getsignal(number)
    with Interruption() as asked:
        assert asked.agree(False, True) == [False, True] and not asked.should_stop()
        signal.raise_signal(number)
        assert asked.should_stop() and asked.cause == number.name
        assert f"{number.name}: finishing this step and saving a checkpoint" in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_wait_for_data_is_left_once(monkeypatch):
    """And saving, which follows it, is left in peace, however long it takes."""
    monkeypatch.setattr(interruption, "DATA_PATIENCE", 1)
    with Interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedWaiting), asked.waiting():
            time.sleep(10)
        time.sleep(1.5)


def test_hangup_stays_ignored_under_nohup():
    code = (
        "import signal; from mae.training.interruption import Interruption\n"
        "with Interruption() as asked: signal.raise_signal(signal.SIGHUP); print(asked.signal)"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "None" and done.returncode == 0


def test_other_thread_trains_without_signal_handlers():
    """Python handles signals in the main thread only, and refuses handlers elsewhere."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as asked:
            seen.append((asked.should_stop(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
