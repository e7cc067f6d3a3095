"""Tiles of scenes as rows, against slices of the arrays that were written."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from mae.data.decoding import DecodingError, EncodedImage
from mae.data.folders import IMAGE_EXTENSIONS, open_folder
from mae.data.pixel_cache import CachedRows, PixelCache
from mae.data.subsets import hold_out
from mae.data.tiles import Tile, TileImage, Tiling, cut, cut_source, empty_share
from mae.utils.errors import UserError
from tests.support.samples import assert_same, batches, noise


RNG = np.random.default_rng(0)
EXTENSIONS = IMAGE_EXTENSIONS | {".npy"}


def tiled(folder, size=32, overlap=0, share=None, cache=None, channels=3):
    return cut_source(
        open_folder(str(folder), "--train_dir", 3, EXTENSIONS), Tiling(size, overlap, share), channels, cache
    )


@pytest.fixture
def folder(tmp_path):
    """A tiled TIFF, an array, a PNG and an image that is smaller than a tile."""
    path = tmp_path / "images"
    path.mkdir()
    tifffile.imwrite(path / "a.tif", noise(100, 130, 3), photometric="rgb", tile=(32, 48), compression="zlib")
    np.save(path / "b.npy", noise(64, 96, 3))
    Image.fromarray(noise(70, 64, 3)).save(path / "c.png")
    Image.fromarray(noise(20, 24, 3)).save(path / "d.png")
    return path


@pytest.mark.parametrize(("height", "width", "size", "overlap"), [(96, 64, 32, 0), (97, 70, 32, 0), (97, 70, 32, 9)])
def test_tiles_of_a_scene_cover_each_pixel(height, width, size, overlap):
    count = np.zeros((height, width), int)
    tiles = cut(height, width, Tiling(size, overlap))
    for top, left, rows, columns in tiles:
        assert (rows, columns) == (size, size)
        assert 0 <= top <= height - size and 0 <= left <= width - size
        count[top : top + rows, left : left + columns] += 1
    assert count.min() == 1
    assert len(set(tiles)) == len(tiles)
    if overlap == 0 and height % size == width % size == 0:
        assert count.max() == 1


def test_side_shorter_than_a_tile_is_not_cut():
    assert cut(20, 24, Tiling(32)) == [Tile(0, 0, 20, 24)]
    assert cut(20, 70, Tiling(32)) == [Tile(0, 0, 20, 32), Tile(0, 32, 20, 32), Tile(0, 38, 20, 32)]


def test_rows_of_a_folder_are_its_tiles(folder):
    source = tiled(folder)
    assert source.group_sizes == [4 * 5, 2 * 3, 3 * 2, 1]
    assert source.row_numbers().tolist() == [0] * 20 + [1] * 6 + [2] * 6 + [3]
    assert source.origin(0, 19) == ("a.tif (x=98, y=68)", 19)
    assert source.origin(3, 0) == ("d.png", 0)
    assert next(iter(source.read(3, 0))) == str(folder / "d.png")
    png = np.asarray(Image.open(folder / "c.png"))
    image = pickle.loads(pickle.dumps(list(source.read(2, 4))[1]))  # as a worker gets it
    np.testing.assert_array_equal(image.open(3).pixels(), png[38:70, 32:64])


@pytest.mark.parametrize("share", [0.5, 0.75, 0.99])
def test_empty_share_of_random_pixels_equals_a_count(share):
    pixels = RNG.integers(0, 3, (16, 16, 2)).astype(np.float32)
    pixels[RNG.random((16, 16)) < share] = RNG.choice([np.nan, 1.0])
    values, counts = np.unique(pixels.reshape(-1, 2), axis=0, return_counts=True, equal_nan=True)
    missing = int(np.isnan(pixels).all(-1).sum())  # np.unique keeps rows of NaN apart
    most = max(int(counts.max()), missing)
    assert most > 128 or share == 0.5
    assert empty_share(pixels) == most / 256 if most > 128 else empty_share(pixels) <= 0.5


def test_empty_tiles_are_left_out_counted_and_found_once(tmp_path, caplog, monkeypatch):
    scene = noise(64, 96, 3)
    scene[:32, :32] = 0  # tile 0 is empty
    scene[32:, 64:][:24] = (5, 6, 7)  # three quarters of tile 5
    folder, cache = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    np.save(folder / "a.npy", scene)
    with caplog.at_level("INFO"):
        source = tiled(folder, share=0.7, cache=cache)
    assert "2 of 6 are empty" in caplog.text
    assert [source.origin(0, row)[1] for row in range(4)] == [1, 2, 3, 4] and source.num_left_out == 2
    np.testing.assert_array_equal(next(iter(source.read(0, 3))).open(3).pixels(), scene[32:, 32:64])
    assert tiled(folder, share=0.9, cache=cache).group_sizes == [5]
    monkeypatch.setattr("mae.data.tiles._find_kept", None)  # an error, if it were called
    again = tiled(folder, share=0.7, cache=cache)
    assert again.group_sizes == [4] and again.fingerprint == source.fingerprint


def test_folder_of_empty_tiles_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="--max_empty_share 0.9"):
        tiled(tmp_path, share=0.9)


def test_fingerprint_holds_the_tiling(folder):
    whole = open_folder(str(folder), "--train_dir", 3, EXTENSIONS).fingerprint
    prints = [tiled(folder, *tiling).fingerprint for tiling in [(32,), (48,), (32, 8), (32, 0, 0.9), (32, 0, 0.8)]]
    assert len({whole, *prints}) == 6
    assert tiled(folder).fingerprint == prints[0]


@pytest.mark.parametrize("tiling", [(32, 0), (24, 7)])
def test_order_of_tiles_does_not_depend_on_workers_ranks_restarts_and_cache(folder, tiling):
    source = tiled(folder, *tiling)
    whole = batches(source)
    assert_same(batches(source, workers=3), whole)
    assert_same(batches(source, start=40), whole[5:])
    both = [batches(source, index=index, processes=2, batch_size=4) for index in range(2)]
    keys = [batch.keys for rank in both for batch in rank]
    assert sorted(b"".join(keys)[at : at + 24] for at in range(0, 96 * 24, 24)) == sorted(
        b"".join(batch.keys for batch in whole)[at : at + 24] for at in range(0, 96 * 24, 24)
    )
    cached = CachedRows(source, PixelCache(len(source), 2**24))
    assert_same(batches(cached), whole)


def test_epoch_takes_each_tile_once(folder):
    source = tiled(folder)
    rows = [row for batch in batches(source, stop=len(source) // 4 * 4, batch_size=4) for row in batch.rows]
    assert sorted(rows) == sorted(set(rows)) and len(rows) == 32


def test_parts_of_tiles_are_rows_of_tiles(folder):
    source = tiled(folder)
    train, validation = hold_out(source, 0.25, seed=1)
    origins = [part.row_origins(np.arange(len(part))) for part in (train, validation)]
    assert sorted(origins[0] + origins[1]) == sorted(source.row_origins(np.arange(len(source))))


def test_broken_images_are_rows_and_broken_tiles_are_named(folder):
    (folder / "e.png").write_bytes(b"no image")
    data = (folder / "a.tif").read_bytes()
    source = tiled(folder)
    assert source.group_sizes[-1] == 1
    (folder / "a.tif").write_bytes(data[: len(data) // 2])
    reasons = dict(skip for batch in batches(source, stop=128, batch_size=32) for skip in batch.skipped)
    assert ("e.png", 0) in reasons
    assert ("a.tif (x=98, y=68)", 19) in reasons and "ends within" in reasons["a.tif (x=98, y=68)", 19]


@pytest.mark.parametrize("name, channels", [("x.png", 3), ("x.npy", 3), ("x.npy", 5), ("x.tif", 3), ("x.tif", 5)])
def test_image_above_the_limit_is_refused_with_advice(tmp_path, monkeypatch, name, channels):
    array = noise(64, 64, channels)
    if name == "x.npy":
        np.save(tmp_path / name, array)
    elif name == "x.tif":
        photometric = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, array, tile=(16, 16), photometric=photometric, planarconfig="contig")
    else:
        Image.fromarray(array).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DecodingError, match="--tile_size 512"):
        EncodedImage(str(tmp_path / name), channels)
    if name == "x.png":
        with pytest.raises(UserError, match="64 x 64.*gdal_translate"):
            tiled(tmp_path)
    else:
        assert len(tiled(tmp_path, channels=channels)) == 4


def test_tile_waits_in_few_bytes():
    assert len(TileImage("scene.tif", Tile(0, 0, 512, 512))) < 100
