"""Amounts of memory: what a flag says, and what is free."""

import os
import re
from pathlib import Path


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
_MEMBERSHIP = Path("/proc/self/cgroup")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|(?:[KMGT]I?)?B?)", re.IGNORECASE)
# Files of a control group's limit and use, below the folder of its hierarchy: version 2, and version 1.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def parse_memory(text: str, free: int) -> int:
    """
    Bytes that a text names: "4GB" (10^9), "4GiB" (2^30), a number of bytes, or a share of the free memory as "30%".

    Raises:
        ValueError: if it names none.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (found[2] == "%" and float(found[1]) > 100):
        raise ValueError(text)
    number, unit = float(found[1]), found[2].upper()
    return int(number / 100 * free) if unit == "%" else int(number * _UNITS[unit.removesuffix("B")])


def is_memory(text: str) -> bool:
    """Whether a text names an amount of memory."""
    try:
        parse_memory(text, 0)
    except ValueError:
        return False
    return True


def format_bytes(count: int) -> str:
    """A number of bytes as text, for example "1.2 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


def available_memory() -> int:
    """
    Bytes that this process can still use: the machine's, or those that the limit of its container leaves.

    File caches count as free, because the system drops them when memory is needed.
    """
    return min([_machine_memory(), *_group_memory()])


def resident_memory() -> int:
    """Bytes of this process and its children, each shared page counted in parts; 0 where no system file says so."""
    total = 0
    for process in [os.getpid(), *_children(os.getpid())]:
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:  # it has ended, or the system has no such file
            continue
        total += int(found[1]) * 1024 if found else 0
    return total


def _children(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        found = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return found + [other for child in found for other in _children(child)]


def _machine_memory() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # other systems: nothing says what is free


def _group_memory() -> list[int]:
    """What is left of the limit of each control group that this process is in."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit_file, use_file, reclaimable = _CONTROL_GROUPS[bool(controllers)]
        # A container often sees its own group as the root, whatever the path says.
        for folder in {Path(root), *(Path(root, part) for part in _with_parents(group))}:
            try:
                limit = (folder / limit_file).read_text().strip()
                used = int((folder / use_file).read_text())
                statistics = (folder / "memory.stat").read_text()
            except (OSError, ValueError):
                continue
            if limit != "max":
                found = re.search(rf"^{reclaimable} (\d+)$", statistics, re.MULTILINE)
                left.append(max(int(limit) - used + (int(found[1]) if found else 0), 0))
    return left


def _with_parents(group: str) -> list[str]:
    path = Path(group.lstrip("/"))
    return [str(path), *map(str, path.parents)]
