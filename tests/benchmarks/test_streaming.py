"""Reading from the Hub with one thread and with many, on a small data set."""

import json

from benchmarks.streaming import main


def test_both_readers_read_all_rows(hub, capsys):
    main(["--delay", "0", "--files", "1", "--image_bytes", "2000", "--json"])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["delay"] == 0 and row["one"] > 0 and row["ours"] > 0
    assert all(row[f"{name}_bytes"] >= 1 for name in ("one", "ours"))
