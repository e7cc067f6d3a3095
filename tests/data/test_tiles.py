"""Tiles of scenes against slices of the arrays that were written."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from mae.data import scenes
from mae.data.decoding import DecodingError, EncodedImage
from mae.data.folders import IMAGE_EXTENSIONS, open_folder
from mae.data.pixel_cache import CachedRows, PixelCache
from mae.data.scenes import open_scene
from mae.data.subsets import hold_out
from mae.data.tiles import Tile, TileImage, Tiling, cut, cut_source, empty_share
from mae.utils.errors import UserError
from tests.support.samples import assert_same, batches


RNG = np.random.default_rng(0)
EXTENSIONS = IMAGE_EXTENSIONS | {".npy"}


def noise(height, width, channels, dtype="uint8"):
    if dtype == "float32":
        return RNG.random((height, width, channels), dtype=np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


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


LAYOUTS = {
    "tiles": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "planes": {"tile": (32, 48), "compression": "zlib", "planarconfig": "separate"},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True, "tile": (16, 16)},
    "memory map": {"planarconfig": "separate"},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (5, "uint8"), (5, "uint16"), (5, "float32")])
def test_window_of_a_tiff_equals_the_slice(tmp_path, options, channels, dtype):
    array = noise(75, 101, channels, dtype)
    planar = options.get("planarconfig") == "separate"
    stored = np.moveaxis(array, 2, 0) if planar else array
    options = {"planarconfig": "contig", **options, "photometric": "rgb" if channels == 3 else "minisblack"}
    if dtype == "float32":
        options.pop("predictor", None)  # needs imagecodecs
    tifffile.imwrite(tmp_path / "x.tif", stored, **options)
    scene = open_scene(str(tmp_path / "x.tif"), channels)
    assert isinstance(scene, scenes.TiffScene) and (scene.height, scene.width) == (75, 101)
    for top, left, height, width in [(0, 0, 75, 101), (31, 47, 33, 3), (74, 100, 1, 1), (5, 0, 40, 60)]:
        window = scene.raw(top, left, height, width)
        np.testing.assert_array_equal(window, array[top : top + height, left : left + width])


def test_pages_of_a_tiff_are_channels(tmp_path):
    array = noise(60, 50, 4)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for channel in range(4):
            tiff.write(array[..., channel], tile=(16, 16), photometric="minisblack", metadata=None, compression="zlib")
    np.testing.assert_array_equal(open_scene(str(tmp_path / "x.tif"), 4).raw(9, 11, 30, 20), array[9:39, 11:31])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate"])
def test_tiff_of_any_compression_has_the_pixels_of_the_decoder(tmp_path, compression):
    path, array = str(tmp_path / "x.tif"), noise(200, 180, 3)
    Image.fromarray(array).save(path, compression=compression)  # LZW needs imagecodecs for windows
    np.testing.assert_array_equal(open_scene(path, 3).pixels(9, 7, 90, 50), array[9:99, 7:57])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("uint8", {}),
        ("uint16", {}),
        ("uint8", {"photometric": "miniswhite"}),
        ("uint8", {"extratags": [(274, "H", 1, 6, True)]}),
    ],
    ids=["8 bits", "16 bits", "white is 0", "turned"],
)
def test_window_of_a_grey_tiff_has_the_pixels_of_the_decoder(tmp_path, channels, dtype, options):
    path = str(tmp_path / "x.tif")
    tifffile.imwrite(path, noise(50, 60, 1, dtype)[..., 0], tile=(16, 16), **{"photometric": "minisblack", **options})
    whole = EncodedImage(path, channels).pixels()
    np.testing.assert_array_equal(open_scene(path, channels).pixels(8, 7, 30, 20), whole[8:38, 7:27])


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (1, 40, 50)])
def test_window_of_an_array_has_the_pixels_of_the_decoder(tmp_path, shape):
    path = str(tmp_path / "x.npy")
    np.save(path, noise(40, 50, 1, "uint16").reshape(shape))
    whole = EncodedImage(path, 1).pixels()
    np.testing.assert_array_equal(open_scene(path, 1).pixels(3, 4, 30, 20), whole[3:33, 4:24])


def test_hole_of_a_sparse_tiff_has_the_value_of_missing_data(tmp_path):
    blocks = [np.full((16, 16), 9, np.uint8), None]
    nodata = [(42113, "s", 0, "7", True)]
    tifffile.imwrite(
        tmp_path / "x.tif", iter(blocks), shape=(16, 32), dtype="uint8", tile=(16, 16), extratags=nodata,
        compression="zlib", photometric="minisblack", metadata=None,
    )  # fmt: skip
    window = open_scene(str(tmp_path / "x.tif"), 1).raw(0, 8, 16, 16)
    assert window[:, :8].min() == window[:, :8].max() == 9 and window[:, 8:].min() == window[:, 8:].max() == 7


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


def test_whole_images_that_are_kept_are_bounded(folder, monkeypatch):
    Image.fromarray(noise(64, 64, 3)).save(folder / "e.png")
    monkeypatch.setattr(scenes, "MAX_DECODED_BYTES", 64 * 64 * 3)
    for name in ("c.png", "e.png", "c.png"):
        open_scene(str(folder / name), 3).pixels(0, 0, 8, 8)
        assert list(scenes.WholeScene.kept) == [str(folder / name)]


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


@pytest.mark.parametrize("name", ["x.png", "x.npy"])
def test_image_above_the_limit_is_refused_with_advice(tmp_path, monkeypatch, name):
    array = noise(64, 64, 3)
    np.save(tmp_path / name, array) if name == "x.npy" else Image.fromarray(array).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DecodingError, match="--tile_size 512"):
        EncodedImage(str(tmp_path / name))
    if name == "x.npy":
        assert len(tiled(tmp_path)) == 4
    else:
        with pytest.raises(UserError, match="64 x 64.*gdal_translate"):
            tiled(tmp_path)


def test_tile_waits_in_few_bytes():
    assert len(TileImage("scene.tif", Tile(0, 0, 512, 512))) < 100
