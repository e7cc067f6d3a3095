"""Rank 0, and the cores of a process."""

import os
import subprocess
import sys

import pytest

from mae.utils.distributed import count_cores, is_main_process, on_main_process
from mae.utils.errors import UserError
from tests.support.data import ROOT
from tests.support.runs import ENVIRONMENT


def test_process_without_ranks_is_rank_0():
    assert is_main_process() and on_main_process(lambda: 5) == 5
    with pytest.raises(UserError, match="wrong") as found:
        on_main_process(lambda: (_ for _ in ()).throw(UserError("wrong")))
    assert not found.value.already_reported


def test_cores_are_shared_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(13)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert count_cores() == 13
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_cores() == 3


RANKS = """if True:
    import torch.distributed as dist
    from accelerate import PartialState
    from mae.utils.distributed import is_main_process, on_main_process
    from mae.utils.errors import UserError

    PartialState(cpu=True)
    calls = []
    result = on_main_process(lambda: calls.append(dist.get_rank()) or {"found": 7})
    def fail():
        raise UserError("wrong")
    try:
        on_main_process(fail)
    except UserError as error:
        # In one write: both ranks print into the same pipe.
        line = f"rank {dist.get_rank()} {is_main_process()} {calls} {result} {error} {error.already_reported}"
        print(line + chr(10), end="", flush=True)
    dist.destroy_process_group()
"""


def test_all_ranks_have_the_result_and_the_error_of_rank_0(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "rank 0 True [0] {'found': 7} wrong False",
        "rank 1 False [] {'found': 7} wrong True",
    ]
