"""The start and the end of a run: three times, in order, of a run that succeeds."""

import sys

import pytest

from benchmarks.start import time_run
from tests.support.data import ROOT


def test_run_has_three_times():
    assert len([seconds for seconds in time_run(ROOT, [sys.executable]) if seconds >= 0]) == 3


def test_failed_run_raises():
    with pytest.raises(RuntimeError, match="failed with exit code 1"):
        time_run(ROOT, [sys.executable, "-c", "raise SystemExit(1)"])
