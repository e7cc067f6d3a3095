"""Rank 0, and the cores of a process."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from mae.utils.errors import RunError, UserError


Result = TypeVar("Result")


def has_process_group() -> bool:
    """Whether a launcher's processes are connected. Scripts ask before they need torch, which takes seconds."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_initialized()


def is_main_process() -> bool:
    """Whether this is rank 0, of all machines."""
    return not has_process_group() or sys.modules["torch.distributed"].get_rank() == 0


def count_cores() -> int:
    """This process's share of the machine's cores, rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def on_main_process(function: Callable[[], Result]) -> Result:
    """
    Run a function on rank 0, and broadcast its result. A collective.

    The output directory is only used this way, because other nodes may not see it. A `UserError` or `RunError` of rank
    0 is raised on every rank.
    """
    result, error = None, None
    if is_main_process():
        try:
            result = function()
        except (UserError, RunError) as found:
            error = found
    if has_process_group():
        from accelerate.utils import broadcast_object_list

        values = [result, error]
        broadcast_object_list(values)
        result, error = values
    if error is not None:
        error.already_reported = not is_main_process()
        raise error
    return result
