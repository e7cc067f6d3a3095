"""Order of alternating rows, ratios, peak memory, the machine's description, tables."""

from pathlib import Path

import pytest
import torch

from benchmarks import timing


def test_rows_alternate_and_the_warm_up_does_not_count():
    calls = []
    rows = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = timing.alternate(rows, rounds=2, warm_up=1)
    assert "".join(calls) == "cba" + "abc" + "cba"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians():
    assert timing.median_ratio([2.0, 30.0, 9.0], [1.0, 10.0, 1.0]) == 3.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a resettable peak")
def test_peak_memory_counts_what_was_freed_again_and_nothing_from_before():
    torch.ones(64, 2**20)  # 256 MiB, freed at once
    later = timing.PeakMemory(torch.device("cpu"))
    assert later.read() < 32 * 2**20
    memory = timing.PeakMemory(torch.device("cpu"))
    torch.ones(64, 2**20)
    assert 250 * 2**20 < memory.read() < 290 * 2**20


def test_machine_names_processor_arithmetic_and_versions(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Testium 9\nflags\t\t: fpu avx2 avx512_bf16 sse\n")
    monkeypatch.setattr(timing, "_PROCESSOR", cpuinfo)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = timing.machine()
    assert text.startswith("Testium 9, ") and "(avx2 avx512_bf16)" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text


def test_table_is_markdown():
    text = timing.table(["name", "time"], [["a", "1 s"], ["b", "2 s"]])
    assert text.splitlines() == ["| name | time |", "| --- | ---: |", "| a | 1 s |", "| b | 2 s |"]
    assert timing.mebibytes(3 * 2**20) == "3 MiB" and timing.mebibytes(None) == "unknown"
