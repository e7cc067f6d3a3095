"""The index of a small tar in each way."""

from benchmarks.shards import main


def test_all_ways_index_all_members(hub, capsys):
    main(["--delay", "0", "--members", "20", "--image_bytes", "2000"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 images of 2,000 bytes")
    assert [line.split(",")[1].split(":")[0].strip() for line in lines[1:]] == ["headers", "blocks", "chosen"]
