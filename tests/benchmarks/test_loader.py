"""Decoding and augmentation against the official transform, on few images."""

import json

import torch

from benchmarks.loader import main


def test_loader_compares_the_same_images(image_folder, capsys):
    threads = torch.get_num_threads()
    try:
        main(["--images", str(image_folder), "--limit", "5", "--rounds", "1", "--json"])
    finally:
        torch.set_num_threads(threads)
    results = json.loads(capsys.readouterr().out)
    assert results["images"] == 5 and results["mean_pixel_difference"] < 3
    assert all(results[f"ratio{kind}"] > 0 for kind in ("", "_decode", "_loader", "_cached", "_views"))
