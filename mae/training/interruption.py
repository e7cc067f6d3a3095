"""
Requests to stop: SIGTERM (preemption, a scheduler), SIGINT (the keyboard) and SIGHUP (the terminal closes).

A run that is asked to stop finishes its step, saves a checkpoint, and ends with an exit code of its own. If one rank
is asked, all stop after the same step.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


# Seconds that a step may wait for data after the request; launchers and schedulers kill after 30.
DATA_PATIENCE = 10
_REQUESTS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class StoppedWaiting(BaseException):
    """Raised out of a wait for data; not an Exception, which the code that waits might handle."""


class Interruption:
    """
    While entered, notes requests to stop. A second SIGINT ends the process at once, as without this.

    Outside the main thread, where Python handles no signals, nothing is noted.

    Args:
        timeout: How long ranks wait for each other.
    """

    def __init__(self, timeout: timedelta | None = None):
        self.signal: signal.Signals | None = None
        self._waiting = False  # whether the loop waits for data
        self._handlers: dict[int, Any] = {}
        # Ranks agree on the CPU, which costs no synchronisation with an accelerator.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in _REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets for SIGHUP
                self._handlers[number] = signal.signal(number, self._note)
        if hasattr(signal, "SIGALRM"):
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop_waiting)
        return self

    def __exit__(self, *error: object) -> None:
        if getattr(signal, "SIGALRM", None) in self._handlers:
            signal.alarm(0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.signal is None and os.environ.get("RANK", "0") == "0":
            # At once, because a launcher may return to the prompt before the run has ended. Not by logging, whose
            # locks the code that was interrupted may hold.
            name, again = signal.Signals(number).name, "Press Ctrl-C again to exit without saving."
            try:
                os.write(2, f"\n{name}: finishing this step and saving a checkpoint. {again}\n".encode())
            except OSError:  # the terminal is closed
                pass
        self.signal = signal.Signals(number)
        if hasattr(signal, "SIGALRM"):
            signal.alarm(DATA_PATIENCE)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        Mark a wait for data.

        Raises:
            StoppedWaiting: some seconds after a request to stop.
        """
        try:
            self._waiting = True
            yield
        finally:
            self._waiting = False

    def _stop_waiting(self, number: int, frame: FrameType | None) -> None:
        signal.alarm(1)
        if self._waiting:
            self._waiting = False  # once: saving follows
            raise StoppedWaiting

    def agree(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any rank. A collective."""
        if self._group is None:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.bool().tolist()

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop. A collective."""
        return self.agree(self.signal is not None)[0]

    @property
    def cause(self) -> str:
        return self.signal.name if self.signal is not None else "a signal to another rank"
