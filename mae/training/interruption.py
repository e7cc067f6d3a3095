"""
Being asked to stop: SIGTERM (preemption, a scheduler) and SIGINT (the keyboard).

A run that is asked finishes its step, saves, and ends with an exit code of its own. Asked of one process, all stop
after the same step.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


# EX_TEMPFAIL of sysexits.h: the same command goes on.
EXIT_CODE = 75
# Seconds that a step may wait for data after the request; launchers and schedulers kill after 30.
DATA_PATIENCE = 10


class StoppedWaiting(BaseException):
    """Raised out of a wait for data that does not come; not an Exception, which the wait would take for its own."""


class Interruption:
    """
    While entered: whether this process was asked to stop. The first request only notes it; a second SIGINT leaves at
    once, as without this.

    Args:
        timeout: How long processes wait for each other.
    """

    def __init__(self, timeout: timedelta | None = None):
        self.signal: signal.Signals | None = None
        self.waiting = False  # whether the training loop waits for data
        self._handlers: dict[int, Any] = {}
        # The processes agree on the CPU, which costs no synchronisation with an accelerator.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._ask)
        if hasattr(signal, "SIGALRM"):
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop_waiting)
        return self

    def __exit__(self, *error: object) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number)
        if hasattr(signal, "SIGALRM"):
            signal.alarm(DATA_PATIENCE)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """
        Around a wait for data.

        Raises:
            StoppedWaiting: some seconds after a request to stop.
        """
        try:
            self.waiting = True
            yield
        finally:
            self.waiting = False

    def _stop_waiting(self, number: int, frame: FrameType | None) -> None:
        signal.alarm(1)
        if self.waiting:
            self.waiting = False  # once: what follows is saving
            raise StoppedWaiting

    def agree(self, *wishes: bool) -> list[bool]:
        """What any process wishes; every process must ask at the same place."""
        if self._group is None:
            return list(wishes)
        flags = torch.tensor(wishes, dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return flags.bool().tolist()
