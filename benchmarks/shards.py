"""
The index of a tar shard on the Hub: seconds, requests and bytes of the pass over its headers, in three ways: one
request per header, the whole file in large blocks, and the choice of this package by the distance between headers.

    python -m benchmarks.shards [--members 10000 --image_bytes 20000]

The Hub is that of the tests, on loopback; every request waits for `--delay` seconds, as one over a long line does.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.0, 0.05, 0.2], help="Seconds, of each request.")
    parser.add_argument("--members", type=int, default=10_000, help="Images of the tar.")
    parser.add_argument("--image_bytes", type=int, default=20_000, help="Size of an image.")
    parser.add_argument("--max_seconds", type=float, default=60, help="One request per header takes at most.")
    arguments = parser.parse_args(argv)

    # Starts the Hub and points the clients to it, before they are imported.
    from tests.support.loopback import FOLDER, HUB, upload  # isort: split
    import datasets
    import numpy as np
    from huggingface_hub.utils import disable_progress_bars

    from mae.data import tar_index
    from mae.utils.progress import ProgressBar
    from tests.support.data import write_tar

    disable_progress_bars()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        images = ((f"{row:06}.jpg", generator.bytes(arguments.image_bytes)) for row in range(arguments.members))
        size = write_tar(Path(folder) / "train-0000.tar", images).stat().st_size
        file = f"hf://datasets/me/shards@{upload('shards', Path(folder))}/train-0000.tar"
    ways = {
        "headers": {"SKIP": -1},  # no header is near
        "blocks": {"SKIP": 2**60, "SMALL_BLOCK": tar_index.LARGE_BLOCK},
        "chosen": {},
    }
    print(f"{arguments.members:,} images of {arguments.image_bytes:,} bytes, {size / 1e6:.0f} MB")
    per_request = 0.1  # until it is measured
    for delay in arguments.delay:
        HUB.faults.clear()
        for method in ("GET", "HEAD"):
            HUB.fault(method, "/resolve/|/cdn/", times=10**9, delay=delay)
        for number, (way, values) in enumerate(ways.items()):
            if way == "headers" and arguments.members * (per_request + 2 * delay) > arguments.max_seconds:
                print(f"{1000 * delay:4.0f} ms, {way:8}: left out, {2 * arguments.members:,} requests")
                continue
            HUB.requests.clear()
            empty = patch.object(datasets.config, "HF_DATASETS_CACHE", Path(FOLDER.name) / f"{delay}-{number}")
            with empty, patch.multiple(tar_index, ProgressBar=partial(ProgressBar, disable=True), **values):
                started = time.perf_counter()
                (index,) = tar_index.read_indexes([file])
                seconds = time.perf_counter() - started
            assert len(index.names) == arguments.members
            sent = sum(request.sent for request in HUB.requests)
            if way == "headers":
                per_request = seconds / arguments.members
            print(
                f"{1000 * delay:4.0f} ms, {way:8}: {seconds:7.2f} s, {len(HUB.requests):6} requests, "
                f"{sent / 1e6:8.2f} MB ({sent / size:.3f} of the file)"
            )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
