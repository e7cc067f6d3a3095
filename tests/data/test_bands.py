"""Channels of files, ranges of values and missing data, against NumPy and tifffile."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from configuration_mae import MAEConfig
from mae.data.bands import Bands, bands_of, to_pixels
from mae.data.batch import samples_digest
from mae.data.crop import CropOptions
from mae.data.dataset import SampleDataset
from mae.data.decoding import DecodingError, EncodedImage, decode_image
from mae.data.folders import open_folder
from mae.data.loader import make_loader
from mae.data.normalization import measure_range, measure_statistics, normalize_images, patch_weights
from mae.data.order import SampleOrder
from mae.data.scenes import open_scene
from mae.data.stream import SampleStream
from mae.data.tiles import Tiling, cut_source
from mae.data.transforms import PreTrainingTransform
from modeling_mae import MAEForPreTraining
from tests.support.samples import BrokenSource, sample


GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.integers(0, 10_000, (24, 32, 6)).astype(np.uint16)
NAMES = ["B2", "B3", "B4", "B8", "B11", "B12"]
GDAL = "<GDALMetadata>" + "".join(
    f'<Item name="DESCRIPTION" sample="{index}" role="description">{name}</Item>' for index, name in enumerate(NAMES)
)
RANGE = ((0.0, 4000.0),) * 3


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array, names=(), **options):
    buffer = io.BytesIO()
    tags = [(42112, "s", 0, GDAL + "</GDALMetadata>", True)] if names else []
    tifffile.imwrite(buffer, array, photometric="minisblack", extratags=tags, **options)
    return buffer.getvalue()


def scaled(array, low, high):
    return np.clip((array.astype(np.float64) - low) / (high - low), 0, 1) * 255


@pytest.mark.parametrize(
    "data",
    [
        npy(VALUES),
        npy(VALUES.transpose(2, 0, 1)),
        npy(VALUES.astype(">u2")),
        npy(VALUES.astype(np.int16)),
        npy(VALUES.astype(np.float32)),
        tiff(VALUES, planarconfig="contig"),
        tiff(VALUES.transpose(2, 0, 1), planarconfig="separate"),
        tiff(VALUES, planarconfig="contig", tile=(16, 16), compression="deflate"),
        tiff(VALUES.transpose(2, 0, 1)),  # a page per channel
    ],
    ids=["hwc", "chw", "big-endian", "int16", "float32", "contig", "separate", "tiles", "pages"],
)
def test_channels_are_chosen_ordered_and_scaled(data, tmp_path):
    bands = Bands(3, (3, 2, 1), RANGE)
    expected = scaled(VALUES[..., [2, 1, 0]], 0, 4000)
    assert np.allclose(decode_image(data, bands).permute(1, 2, 0), expected, atol=1e-3)
    # A window of the same file.
    path = tmp_path / ("scene.npy" if data[:6] == b"\x93NUMPY" else "scene.tif")
    path.write_bytes(data)
    window = open_scene(str(path), bands).pixels(5, 7, 11, 13)
    assert np.allclose(window, expected[5:16, 7:20], atol=1e-3)


def test_channels_by_name_and_by_number_are_the_same(tmp_path):
    data = tiff(VALUES, NAMES, planarconfig="contig")
    named = decode_image(data, Bands(2, ("B8", "B2"), RANGE[:2]))
    assert torch.equal(named, decode_image(data, Bands(2, (4, 1), RANGE[:2])))
    path = tmp_path / "scene.tif"
    path.write_bytes(data)
    assert np.array_equal(open_scene(str(path), Bands(1, ("B12",))).values(0, 0, 24, 32), VALUES[..., 5:])
    ome = io.BytesIO()
    tifffile.imwrite(ome, VALUES.transpose(2, 0, 1), ome=True, metadata={"axes": "CYX", "Channel": {"Name": NAMES}})
    assert torch.equal(decode_image(ome.getvalue(), Bands(2, ("B8", "B2"), RANGE[:2])), named)
    imagej = io.BytesIO()
    tifffile.imwrite(imagej, VALUES.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX", "Labels": NAMES})
    assert torch.equal(decode_image(imagej.getvalue(), Bands(2, ("B8", "B2"), RANGE[:2])), named)


@pytest.mark.parametrize(
    ("data", "bands", "message"),
    [
        (npy(VALUES), Bands(1, (7,)), "no channel 7, only 6 channels"),
        (npy(VALUES), Bands(1, ("B2",)), "no channel B2: its channels have no names"),
        (tiff(VALUES, NAMES, planarconfig="contig"), Bands(1, ("B5",)), "no channel B5: its channels are B2, B3"),
        (npy(VALUES), Bands(5), r"6 channels \(24 x 32 pixels\), but the model takes 5"),
        (npy(VALUES.astype(np.int16)), Bands(6), "int16 have no range. Pass --value_range"),
        (npy(VALUES[..., :1].astype(complex)), Bands(1), "no numbers"),
        (npy(VALUES.astype(np.float32)), Bands(6), "value_range auto"),
    ],
)
def test_files_that_do_not_fit_say_what_they_hold(data, bands, message):
    with pytest.raises(DecodingError, match=message):
        decode_image(data, bands)


def test_pictures_are_arrays_too_if_their_values_are_asked_for():
    grey = (GENERATOR.integers(0, 4096, (20, 24))).astype(np.uint16)  # 12 bits in a PNG of 16, as radiographs are
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    pixels = decode_image(buffer.getvalue(), Bands(1, None, ((0.0, 4095.0),)))
    assert np.allclose(pixels[0], scaled(grey, 0, 4095), atol=1e-3)
    colours, file = GENERATOR.integers(0, 256, (20, 24, 4)).astype(np.uint8), io.BytesIO()
    Image.fromarray(colours).save(file, "PNG")
    assert np.array_equal(decode_image(file.getvalue(), 4).permute(1, 2, 0), colours)
    assert np.array_equal(decode_image(file.getvalue(), Bands(2, ("A", "G")))[0], colours[..., 3])
    with pytest.raises(DecodingError, match="it has 4 channels .* but the model takes 5"):
        decode_image(file.getvalue(), 5)


def test_missing_data_is_nan_in_pixels_and_the_mean_in_the_model():
    values = VALUES[..., :2].astype(np.float32)
    values[3, 4, 0], values[5, 6, 1], values[7, 8] = np.nan, np.inf, -9999
    pixels = to_pixels(values, Bands(2, None, RANGE[:2], -9999))
    missing = np.zeros(values.shape, bool)
    missing[3, 4, 0] = missing[5, 6, 1] = missing[7, 8] = True
    assert np.array_equal(np.isnan(pixels), missing)
    assert np.allclose(pixels[~missing], scaled(values, 0, 4000)[~missing], atol=1e-3)
    # Bytes without a missing value have the type of those with one, because a batch has one type.
    assert to_pixels(np.ones((4, 4, 1), np.uint8), Bands(1, nodata=0)).dtype == np.float32
    config = MAEConfig(num_channels=2, image_mean=[0.3, 0.4], image_std=[0.2, 0.1])
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    normalised = normalize_images(images, config)[0].permute(1, 2, 0).numpy()
    assert (normalised[missing] == 0).all()
    assert np.allclose(normalised[~missing], ((pixels / 255 - [0.3, 0.4]) / [0.2, 0.1])[~missing], atol=1e-5)


def test_patches_of_missing_data_do_not_count_in_the_loss():
    config = MAEConfig(
        image_size=16, patch_size=4, num_channels=2, hidden_size=24, num_attention_heads=3, num_hidden_layers=1,
        intermediate_size=48, decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=3,
        decoder_intermediate_size=48, image_mean=0.5, image_std=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    model, images, noise = MAEForPreTraining(config), 255 * torch.rand(2, 2, 16, 16), torch.rand(2, 16)
    images[0, :, :4, :4] = torch.nan  # the first patch, whole
    images[1, 0, 4:8, 4:8] = torch.nan  # half of the values of patch 5
    images[1, :, 12:, 12:13] = torch.nan  # a quarter of those of the last
    for share, lost in ((0.5, {(0, 0)}), (0.4, {(0, 0), (1, 5)}), (0.0, {(0, 0), (1, 5), (1, 15)})):
        weights = patch_weights(images, config, share)
        assert {tuple(place) for place in (weights == 0).nonzero().tolist()} == lost
    pixels = normalize_images(images, config)
    outputs = model(pixels, noise=noise, patch_weights=weights)
    errors = (outputs.logits - model.patchify(pixels)).square().mean(-1) * outputs.mask
    expected = (errors * weights).sum() / outputs.mask.sum()
    assert torch.allclose(outputs.loss, expected, rtol=1e-5)
    assert torch.equal(model(pixels, noise=noise, patch_weights=weights, return_logits=False).loss, outputs.loss)
    ones = model(pixels, noise=noise, patch_weights=torch.ones(2, 16)).loss
    assert torch.equal(ones, model(pixels, noise=noise).loss)
    assert patch_weights(images.to(torch.uint8), config, 0.5) is None


def test_missing_data_goes_through_crops_to_the_model():
    values = np.full((32, 32, 2), 100, np.float32)
    values[:16] = np.nan
    config = MAEConfig(image_size=16, patch_size=4, num_channels=2, value_range=(0, 200), image_mean=0.5, image_std=1)
    for number in range(8):
        pixels = SampleDataset(PreTrainingTransform(config))[sample(npy(values), number)]["pixel_values"]
        assert torch.allclose(pixels[pixels.isfinite()], torch.tensor(127.5))


def test_ranges_and_statistics_are_measured_without_missing_data():
    arrays = [GENERATOR.normal(1000, 200, (64, 64, 2)).astype(np.float32) * [1, 0.1] for _ in range(8)]
    for array in arrays:
        array[:10] = -9999
        array[20, 20] = np.nan
    source = BrokenSource([npy(array.astype(np.float32)) for array in arrays])
    order = SampleOrder(source.group_sizes, 0, 1, 8)
    fields = {"image_size": 16, "patch_size": 4, "num_channels": 2, "nodata": -9999}
    ranges, count = measure_range(source, order, MAEConfig(**fields, value_range=(0, 1)), 100)
    stack = np.stack(arrays)
    stack[stack == -9999] = np.nan
    assert count == 8 and np.allclose(ranges, np.nanpercentile(stack, (0.5, 99.5), axis=(0, 1, 2)).T, rtol=1e-5)
    measured = measure_statistics(source, order, MAEConfig(**fields, value_range=ranges), 100)
    low, high = np.array(ranges).T
    # Of random crops, so nearly those of the whole images.
    expected = np.clip((stack - low) / (high - low), 0, 1)
    assert np.allclose(measured.mean, np.nanmean(expected, axis=(0, 1, 2)), atol=0.02)
    assert 0.05 < measured.missing < 0.4


def test_configuration_keeps_what_is_read_of_files(tmp_path):
    config = MAEConfig(num_channels=2, input_channels=["B4", 3], value_range=(0, 4000), nodata=-1)
    config.save_pretrained(tmp_path)
    again = MAEConfig.from_pretrained(tmp_path)
    assert bands_of(again) == bands_of(config) == Bands(2, ("B4", 3), ((0, 4000), (0, 4000)), -1)
    for fields, message in [
        ({"input_channels": [1]}, "input_channels"),
        ({"input_channels": [0, 1]}, "numbers from 1"),
        ({"value_range": [[0, 1], [2, 2]]}, "low and a higher"),
        ({"value_range": [[0, 1]] * 3}, "one value for each"),
        ({"nodata": float("nan")}, "finite"),
    ]:
        with pytest.raises(Exception, match=message):
            MAEConfig(num_channels=2, **fields)


def test_default_reads_pictures_as_before():
    assert (
        not Bands(3).are_arrays and not Bands(1).are_arrays and Bands(4).are_arrays and Bands(3, (1, 2, 3)).are_arrays
    )
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    assert EncodedImage(data.getvalue()).pixels().dtype == np.uint8


def test_sequence_of_tiles_with_missing_data_does_not_depend_on_workers_processes_or_restarts(tmp_path):
    for number in range(3):
        scene = GENERATOR.normal(1000, 200, (64, 96, 3)).astype(np.int16)
        scene[:20, :40] = -1
        file = tmp_path / f"{number}.tif"
        tifffile.imwrite(file, scene, photometric="minisblack", planarconfig="contig", tile=(32, 32))
    config = MAEConfig(
        image_size=16, patch_size=4, num_channels=2, input_channels=[3, 1], value_range=(0, 2000), nodata=-1
    )
    bands = bands_of(config)
    source = cut_source(open_folder(str(tmp_path), "--train_dir", bands), Tiling(32, 8), bands)

    def batches(workers=0, start=0, size=4, index=0, processes=1):
        order = SampleOrder(source.group_sizes, seed=1, lanes=2, shuffle_buffer_size=8)
        stream = SampleStream(source, order, size, index, processes, start, stop=32)
        made = list(make_loader(stream, SampleDataset(PreTrainingTransform(config, CropOptions(rot90=True))), workers))
        return [(samples_digest(batch.digests), batch.pixel_values.nan_to_num(-1)) for batch in made]

    expected = batches()
    assert any((pixels == -1).any() for _, pixels in expected)
    for other, same in ((batches(workers=3), expected), (batches(start=12), expected[3:])):
        assert [digest for digest, _ in other] == [digest for digest, _ in same]
        assert all(torch.equal(one[1], two[1]) for one, two in zip(other, same, strict=True))
    halves = [batches(size=2, index=index, processes=2) for index in range(2)]
    for (_, one), (_, two), (_, whole) in zip(*halves, expected, strict=True):
        assert torch.equal(torch.stack([one, two], 1).flatten(0, 1), whole)
