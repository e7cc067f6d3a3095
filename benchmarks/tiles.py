"""
Tiles of a tiled TIFF, read by window, against decoding the whole image for each, and against the fastest way to decode
it once for all its tiles.

    python -m benchmarks.tiles [--side 4096] [--tile_size 512] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from mae.data.scenes import TiffScene, open_scene
from mae.data.tiles import Tiling, cut


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def smooth_noise(side: int) -> np.ndarray:
    """A scene that compresses about as well as a photograph."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 240, (-(-side // 16), -(-side // 16), 3), dtype=np.uint8)
    scene = coarse.repeat(16, 0).repeat(16, 1)[:side, :side]
    return scene + generator.integers(0, 16, scene.shape, dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tile_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "scene.tif"))
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib", "predictor": True}
        tifffile.imwrite(path, smooth_noise(arguments.side), **options)
        tiles = cut(arguments.side, arguments.side, Tiling(arguments.tile_size))
        scene = open_scene(path, 3)
        assert isinstance(scene, TiffScene)
        some = np.random.default_rng(1).choice(len(tiles), arguments.rounds, replace=False)
        windows, wholes = [], []
        for number in some:  # both sides alternate
            tile = tiles[number]
            windows.append(seconds(lambda tile=tile: scene.pixels(*tile)))
            wholes.append(seconds(lambda: tifffile.imread(path, maxworkers=1)))
        every = seconds(lambda: [scene.pixels(*tile) for tile in tiles])
    window, whole = statistics.median(windows), statistics.median(wholes)
    print(f"{arguments.side} x {arguments.side} pixels, {len(tiles)} tiles of {arguments.tile_size}")
    print(f"one tile by window  {1000 * window:8.1f} ms")
    print(f"the whole image     {1000 * whole:8.1f} ms, {whole / window:.1f} x")
    print(f"all tiles by window {1000 * every:8.1f} ms, {every / whole:.2f} x the whole image once")


if __name__ == "__main__":
    main()
