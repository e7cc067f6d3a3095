"""What the benchmarks share: alternating measurements, peak memory, the machine, and tables."""

import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

import torch

from mae.utils.distributed import count_cores


PRECISIONS = ("fp32", "bf16")
# Flags of a processor that decide how fast it multiplies matrices, on x86 and on ARM.
_ARITHMETIC = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_PROCESSOR = Path("/proc/cpuinfo")
_HIGH_WATER = Path("/proc/self/clear_refs")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast to bfloat16 for "bf16", and nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds that a call takes, its work on the GPU included."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def alternate(rows: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """
    Time several calls in turn, so that a machine's changes of pace meet all of them alike.

    Args:
        rows: The calls, by name. Every other round runs them in reverse order.
        rounds: Number of rounds.
        warm_up: Number of rounds before them that do not count.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(-warm_up, rounds):
        for name in rows if number % 2 == 0 else reversed(rows):
            taken = seconds_of(rows[name])
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(above / below for above, below in zip(numerators, denominators))


def _release_freed_memory() -> None:
    """Return freed memory to the system. A process that still holds it would hide as much of its next peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:  # glibc
        trim(0)


class PeakMemory:
    """The highest memory in use since this object was made, in bytes above what was in use then."""

    def __init__(self, device: torch.device):
        self.device = device
        _release_freed_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif _HIGH_WATER.exists():
            _HIGH_WATER.write_text("5")  # Linux: reset the high-water mark
            self.start = self._status("VmRSS")

    def read(self) -> int | None:
        """Bytes, or None on a system that does not report them."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self.start
        return self._status("VmHWM") - self.start if _HIGH_WATER.exists() else None

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:,.0f} MiB"


def machine() -> str:
    """Describe what every measurement depends on: GPU or processor with its arithmetic, and versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {versions}"
    facts = {}
    if _PROCESSOR.exists():
        lines = (line.partition(":") for line in _PROCESSOR.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", facts.get("Features", "")).split()
    arithmetic = " ".join(flag for flag in _ARITHMETIC if flag in flags) or "unknown arithmetic"
    return f"{name}, {count_cores()} cores ({arithmetic}), threads: {torch.get_num_threads()}, {versions}"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
