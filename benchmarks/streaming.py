"""
Reading a data set on the Hub: rows per second over an epoch, by one reading thread and by as many as the trainer uses.

    python -m benchmarks.streaming [--json]

The Hub is that of the tests, on loopback; every request waits for `--delay` seconds, as one over a long line does.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.0, 0.05, 0.2], help="Seconds, of each request.")
    parser.add_argument("--files", type=int, default=4, help="Parquet files, of 10 row groups of 100 rows each.")
    parser.add_argument("--image_bytes", type=int, default=50_000, help="Size of an image.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    arguments = parser.parse_args(argv)

    # Starts the Hub and points the clients to it, before they are imported.
    from tests.support.loopback import HUB, upload  # isort: split
    import numpy as np
    from huggingface_hub.utils import disable_progress_bars

    from mae.data.opening import open_dataset
    from mae.data.order import SampleOrder
    from mae.data.stream import SampleStream
    from tests.support.data import write_parquet

    disable_progress_bars()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.files):
            images = [generator.bytes(arguments.image_bytes) for _ in range(1000)]
            write_parquet(Path(folder) / f"train-{number:05}.parquet", images, row_group_size=100)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        upload("streaming", Path(folder))
    rows = []
    for delay in arguments.delay:
        HUB.faults.clear()
        for method in ("GET", "HEAD"):
            HUB.fault(method, "/resolve/|/cdn/", times=10**9, delay=delay)
        row: dict[str, float] = {"delay": delay}
        for name, num_readers in (("one", 1), ("ours", None)):
            source, _ = open_dataset("me/streaming")
            source.num_readers = num_readers or source.num_readers
            order = SampleOrder(source.group_sizes, seed=0)
            HUB.requests.clear()
            started = time.perf_counter()
            num_rows = sum(len(batch) for batch in SampleStream(source, order, 50, stop=order.epoch_length))
            row[name] = num_rows / (time.perf_counter() - started)
            row[f"{name}_bytes"] = sum(request.sent for request in HUB.requests) / size
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{1000 * row['delay']:4.0f} ms a request: one thread {row['one']:6.0f} rows/s, ours {row['ours']:6.0f} "
            f"rows/s, {row['ours'] / row['one']:.1f} x; {row['ours_bytes']:.3f} of the files' bytes sent"
        )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
