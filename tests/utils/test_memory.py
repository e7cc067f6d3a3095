"""Amounts of memory: what texts name, and what control groups leave."""

import pytest

from mae.utils import memory
from mae.utils.memory import available_memory, format_bytes, is_memory, parse_memory


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0", 0),
        ("123456", 123_456),
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("1.5GiB", 1_610_612_736),
        ("512M", 512_000_000),
        ("2TB", 2 * 10**12),
        ("30%", 300),
        ("100%", 1000),
    ],
)
def test_text_names_an_amount(text, expected):
    assert is_memory(text) and parse_memory(text, free=1000) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "4 XB", "101%", "half", "1e9", "4GB 2"])
def test_other_texts_name_none(text):
    assert not is_memory(text)


def test_bytes_as_text():
    assert [format_bytes(count) for count in (999, 1_500_000, 12_340_000_000)] == ["1.0 kB", "1.5 MB", "12.3 GB"]


@pytest.mark.parametrize(
    "line, files, statistics, expected",
    [
        ("0::/a/b", ("memory.max", "memory.current"), "anon 1\ninactive_file 300\n", 1000 - 600 + 300),
        ("4:memory:/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file 50\n", 450),
        ("4:cpu,memory:/elsewhere", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "", 400),
        ("4:cpu:/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "", 10_000),
    ],
)
@pytest.mark.parametrize("where", ["a/b", "a", ""])
def test_limit_of_a_container_counts(line, files, statistics, expected, where, tmp_path, monkeypatch):
    """In the group itself, in one that holds it, or in the root, as a container sees its own group."""
    if line.endswith("elsewhere") and where:
        pytest.skip("a container has its group as the root")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cgroup").write_text(f"7:devices:/x\n{line}\n")
    for name, text in zip((*files, "memory.stat"), ("1000\n", "600\n", statistics)):
        (tmp_path / where / name).write_text(text)
    groups = [(str(tmp_path), *names) for _, *names in memory._CONTROL_GROUPS]
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", groups)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_machine_memory", lambda: 10_000)
    assert available_memory() == expected


def test_group_without_a_limit_leaves_what_the_machine_has(tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text("0::/\n")
    for name, text in (("memory.max", "max\n"), ("memory.current", "600\n"), ("memory.stat", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", [(str(tmp_path), *memory._CONTROL_GROUPS[0][1:])] * 2)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_machine_memory", lambda: 10_000)
    assert available_memory() == 10_000
