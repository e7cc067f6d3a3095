"""Windows of scenes against slices of the arrays that were written."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from mae.data import scenes
from mae.data.bands import Bands
from mae.data.decoding import EncodedImage
from mae.data.scenes import open_scene
from tests.support.samples import noise


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
        window = scene.values(top, left, height, width)
        np.testing.assert_array_equal(window, array[top : top + height, left : left + width])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_only_the_planes_that_are_asked_for_are_read(tmp_path, compression):
    """Those that are not are no data: a reader of them would fail."""
    array, path = noise(64, 48, 5), tmp_path / "x.tif"
    tifffile.imwrite(
        path, np.moveaxis(array, 2, 0), tile=(32, 48), planarconfig="separate", photometric="minisblack",
        compression=compression,
    )  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        pieces = list(zip(page.dataoffsets, page.databytecounts))
    assert len(pieces) == 10
    with open(path, "r+b") as file:
        for plane in (0, 2, 4):
            for offset, count in pieces[2 * plane : 2 * plane + 2]:
                file.seek(offset)
                file.write(b"\xff" * count)
    window = open_scene(str(path), Bands(2, (4, 2))).values(20, 5, 30, 40)
    np.testing.assert_array_equal(window, array[20:50, 5:45, [3, 1]])


def test_pages_of_a_tiff_are_channels(tmp_path):
    array = noise(60, 50, 4)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for channel in range(4):
            tiff.write(array[..., channel], tile=(16, 16), photometric="minisblack", metadata=None, compression="zlib")
    np.testing.assert_array_equal(open_scene(str(tmp_path / "x.tif"), 4).values(9, 11, 30, 20), array[9:39, 11:31])


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
    window = open_scene(str(tmp_path / "x.tif"), 1).values(0, 8, 16, 16)
    assert window[:, :8].min() == window[:, :8].max() == 9 and window[:, 8:].min() == window[:, 8:].max() == 7


def test_whole_images_that_are_kept_are_bounded(tmp_path, monkeypatch):
    for name in ("c.png", "e.png"):
        Image.fromarray(noise(64, 64, 3)).save(tmp_path / name)
    monkeypatch.setattr(scenes, "MAX_DECODED_BYTES", 64 * 64 * 3)
    for name in ("c.png", "e.png", "c.png"):
        open_scene(str(tmp_path / name), 3).pixels(0, 0, 8, 8)
        assert list(scenes.WholeScene.kept) == [str(tmp_path / name)]


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_window_of_a_transparent_tiff_has_the_pixels_of_the_decoder(tmp_path, kind):
    path, array = str(tmp_path / "x.tif"), noise(50, 60, 4)
    tifffile.imwrite(path, array, tile=(16, 16), photometric="rgb", extrasamples=[kind], compression="zlib")
    whole = EncodedImage(path, 3).pixels()
    assert isinstance(open_scene(path, 3), scenes.TiffScene) == (kind == "unassalpha")
    np.testing.assert_array_equal(open_scene(path, 3).pixels(8, 7, 30, 20), whole[8:38, 7:27])
