"""Sources, decoding and the stream."""

import io
import os
import random
import re
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig
from mae.data.batch import samples_digest
from mae.data.decoding import EncodedImage, decode_image, plain_jpeg_size
from mae.data.loader import make_loader
from mae.data.normalization import denormalize, measure_statistics, normalize
from mae.data.opening import open_dataset, open_folder
from mae.data.order import SampleOrder
from mae.data.reader import WindowReader
from mae.data.stream import Sample, SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.evaluation.reconstruction import load_images
from mae.utils import retries
from mae.utils.errors import DataError, UserError
from tests.support.data import EMOJI, write_parquet


CONFIG = MAEConfig(image_size=32, patch_size=8, hidden_size=24, num_attention_heads=3)


def encode(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


# Sources


def test_embedded_data():
    train, test = open_dataset(str(EMOJI))
    assert sum(train.group_sizes) == 1716 and sum(test.group_sizes) == 190
    assert len(train.group_sizes) > 8
    assert sum(file.stat().st_size for file in EMOJI.iterdir()) <= 8e6
    schema = pq.read_schema(EMOJI / "train-00000-of-00001.parquet")
    assert schema.names == ["image", "label"] and b"Smileys & Emotion" in schema.metadata[b"huggingface"]


def test_parquet_rows_are_the_files_rows(parquet_folder):
    source, held_out = open_dataset(str(parquet_folder))
    assert source.group_sizes == [16, 16, 16, 2, 16, 16, 8] and held_out.group_sizes == [6, 6]
    tables = {path.name: pq.read_table(path)["image"].to_pylist() for path in parquet_folder.iterdir()}
    for group, size in enumerate(source.group_sizes):
        for first_row in (0, size - 1):
            rows = list(source.read(group, first_row))
            assert len(rows) == size - first_row
            for offset, data in enumerate(rows):
                file, row = source.origin(group, first_row + offset)
                assert tables[file][row]["bytes"] == data


def test_parquet_by_file_and_pattern(parquet_folder):
    whole, _ = open_dataset(str(parquet_folder))
    pattern, held_out = open_dataset(str(parquet_folder / "train-*.parquet"))
    assert pattern.fingerprint == whole.fingerprint and held_out is None
    one, _ = open_dataset(str(parquet_folder / "train-00000-of-00002.parquet"))
    assert sum(one.group_sizes) == 50 and one.fingerprint != whole.fingerprint


def test_fingerprint_follows_the_content_not_the_place(tmp_path, emoji_bytes):
    first = write_parquet(tmp_path / "a" / "data.parquet", emoji_bytes[:20], 8)
    same = write_parquet(tmp_path / "b" / "data.parquet", emoji_bytes[:20], 8)
    regrouped = write_parquet(tmp_path / "c" / "data.parquet", emoji_bytes[:20], 10)
    changed = write_parquet(tmp_path / "d" / "data.parquet", emoji_bytes[1:21], 8)
    prints = [open_dataset(str(path))[0].fingerprint for path in (first, same, regrouped, changed)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_image_columns(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "photo.parquet", emoji_bytes[:8], 4, column="photo")
    assert open_dataset(str(path))[0].column == "photo"

    table = pq.read_table(path)
    bare = tmp_path / "bare.parquet"
    names = ["raw", "count"]
    raw = [row["bytes"] for row in table["photo"].to_pylist()]
    pq.write_table(type(table).from_pydict(dict(zip(names, [raw, list(range(8))]))), bare)
    with pytest.raises(UserError, match="no column of type Image.*Columns: raw, count"):
        open_dataset(str(bare))
    with pytest.raises(UserError, match="--image_column_name count: that column holds Value"):
        open_dataset(str(bare), image_column_name="count")
    with pytest.raises(UserError, match="--image_column_name photo: there is no such column"):
        open_dataset(str(bare), image_column_name="photo")
    assert list(open_dataset(str(bare), image_column_name="raw")[0].read(0, 0)) == raw

    both = tmp_path / "both.parquet"
    features = '{"info": {"features": {"left": {"_type": "Image"}, "right": {"_type": "Image"}}}}'
    pair = type(table).from_arrays([table["photo"], table["photo"]], names=["left", "right"])
    pq.write_table(pair.replace_schema_metadata({"huggingface": features}), both)
    with pytest.raises(UserError, match="several image columns .left, right."):
        open_dataset(str(both))
    assert open_dataset(str(both), image_column_name="right")[0].column == "right"


def test_bad_parquet(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "data.parquet", emoji_bytes[:8], 4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="data.parquet"):
        open_dataset(str(path))
    with pytest.raises(UserError, match="no such file"):
        open_dataset(str(tmp_path / "nothing-*.parquet"))
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(str(tmp_path / "nothing"))
    empty = write_parquet(tmp_path / "empty.parquet", [], 4)
    with pytest.raises(UserError, match="holds no rows"):
        open_dataset(str(empty))


def test_folder_of_images_as_dataset_is_told_the_flag(image_folder):
    with pytest.raises(UserError, match="use --train_dir"):
        open_dataset(str(image_folder))


def test_folder(image_folder, tmp_path):
    source = open_folder(str(image_folder), "--train_dir")
    names = {source.origin(group, 0)[0] for group in range(len(source.group_sizes))}
    assert len(names) == 60 and "group1/deep/001.png" in names and "group0/deep/003.JPG" in names
    (path,) = source.read(0, 0)
    assert decode_image(path).shape == (3, 64, 64)

    (tmp_path / "inside").mkdir()
    os.symlink(image_folder / "group0" / "000.png", tmp_path / "inside" / "link.png")
    os.symlink(image_folder, tmp_path / "inside" / "link")
    with pytest.raises(UserError, match="holds no image files"):
        open_folder(str(tmp_path), "--train_dir")
    with pytest.raises(UserError, match="--train_dir .*no such folder"):
        open_folder(str(tmp_path / "nothing"), "--train_dir")


# Decoding


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype("uint8")).convert(mode)


@pytest.mark.parametrize(
    ("mode", "format", "tolerance"),
    [("RGB", "PNG", 0), ("RGB", "JPEG", 12), ("RGB", "WEBP", 12), ("RGB", "BMP", 0), ("CMYK", "JPEG", 14)],
)
def test_decode_formats(mode, format, tolerance):
    image = decode_image(encode(picture(mode), format, **({"quality": 98} if format != "PNG" else {})))
    expected = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    assert image.shape == (3, 24, 40) and image.dtype == torch.uint8
    assert (image.int() - expected.int()).abs().float().mean() <= tolerance


def test_decode_grey_palette_alpha_orientation_animation():
    grey = picture("L")
    for format in ("PNG", "JPEG"):
        image = decode_image(encode(grey, format, quality=100) if format == "JPEG" else encode(grey, format))
        assert (image[0] == image[1]).all() and (
            image[0].int() - torch.from_numpy(np.array(grey)).int()
        ).abs().max() < 4
        assert decode_image(encode(picture(), format), num_channels=1).shape == (1, 24, 40)

    palette = picture().quantize(16)
    expected = torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode_image(encode(palette, "PNG")), expected)

    see_through = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    see_through.putpixel((0, 0), (255, 0, 0, 255))
    image = decode_image(encode(see_through, "PNG"))
    assert image[:, 0, 0].tolist() == [255, 0, 0] and image[:, 4, 4].tolist() == [255, 255, 255]

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    for format in ("PNG", "JPEG"):
        assert decode_image(encode(picture(), format, exif=exif)).shape == (3, 40, 24)

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    first = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert first[:, 0, 0].tolist() == [0, 0, 255]


def png_of_16_bits(values: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of (H, W) or (H, W, 3) uint16, which Pillow cannot write in colour; its header may claim another size."""
    height, width = size or values.shape[:2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_decode_16_bits():
    """Scaled to 8 bits, not cut off at 255; colour loses its lower bytes."""
    values = np.linspace(0, 65535, 40 * 24).astype(np.uint16).reshape(24, 40)
    expected = torch.from_numpy(np.round(values / 257).astype(np.uint8))
    for data in (
        png_of_16_bits(values),
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
    ):
        assert torch.equal(decode_image(data, num_channels=1)[0], expected)
        assert torch.equal(decode_image(data)[2], expected)
    colour = decode_image(png_of_16_bits(np.stack([values, values[::-1], values // 2], axis=2)))
    assert (colour[0].int() - expected.int()).abs().max() <= 1 and colour[2].max() in (127, 128)
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"TIFF with pixels of mode {mode}, whose range is not known"):
            decode_image(encode(Image.new(mode, (8, 8)), "TIFF"))


def test_decode_odd_images():
    smallest = decode_image(encode(Image.new("RGB", (1, 1), "red"), "PNG"))
    assert smallest[:, 0, 0].tolist() == [255, 0, 0]
    for options in ({"progressive": True}, {"subsampling": 0}, {"subsampling": 2}):
        data = encode(picture(), "JPEG", quality=98, **options)
        expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
        assert (decode_image(data).int() - expected.int()).abs().max() <= 1
    bits = decode_image(encode(picture("1"), "PNG"))
    assert set(bits.unique().tolist()) == {0, 255}
    transparent_grey = Image.new("LA", (4, 4), (0, 0))
    assert (decode_image(encode(transparent_grey, "PNG")) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode_image(encode(palette, "PNG", transparency=1))[:, 0, 0].tolist() == [255, 255, 255]
    assert decode_image(encode(palette, "GIF"))[:, 0, 0].tolist() == [0, 255, 0]


def test_images_that_cannot_be_decoded(emoji_bytes):
    whole = encode(picture(size=(200, 100)), "JPEG")
    bomb = png_of_16_bits(np.zeros((1, 1), np.uint16), size=(20_000, 20_000))
    for data, message in [
        (b"", "cannot identify"),
        (whole[: len(whole) // 2], "truncated|[Cc]orrupt|premature|[Ee]nd of"),
        (emoji_bytes[0][: len(emoji_bytes[0]) // 2], "truncated|broken"),
        (bomb, "exceeds limit"),
        (b"<html></html>", "cannot identify"),
    ]:
        example = PreTrainingTransform(CONFIG)[sample(data)]
        assert "pixel_values" not in example
        assert re.search(message, example["skipped"]), example["skipped"]


def test_size_of_a_plain_jpeg():
    """By its markers as by Pillow; what is not plain is Pillow's."""
    for options in ({}, {"progressive": True}, {"subsampling": 0, "optimize": True}, {"dpi": (300, 300)}):
        assert plain_jpeg_size(encode(picture(), "JPEG", **options)) == (24, 40)
    for mode in ("L", "CMYK"):
        assert plain_jpeg_size(encode(picture(mode), "JPEG")) == (24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(picture(), "JPEG")
    large = encode(Image.new("L", (4000, 3000)), "JPEG")
    for data in (encode(picture(), "JPEG", exif=exif), large, encode(picture(), "PNG"), b"", whole[:10]):
        assert plain_jpeg_size(data) is None
    wide = PreTrainingTransform(CONFIG)[sample(whole)]
    assert wide["pixel_values"].shape == (3, 32, 32)
    assert EncodedImage(whole).height == 24 and EncodedImage(whole).width == 40


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_at_a_fraction(orientation, monkeypatch):
    """What comes out is what a full decoding gives, but for smoothing; a crop too small for it is decoded in full."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth, "JPEG", quality=95, exif=exif)
    image = EncodedImage(data)
    assert (image.height, image.width) == ((3000, 4000) if orientation == 1 else (4000, 3000))
    boxes = {(0, 0, 3000, 3000): 4, (100, 200, 1000, 1000): 2, (100, 200, 800, 800): 1}
    size, drafts = [224, 224], []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *arguments: drafts.append(1) or draft(*arguments))
    for (top, left, height, width), reduction in boxes.items():
        full = TF.resized_crop(
            decode_image(data), top, left, height, width, size, interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        ours = EncodedImage(data).decode_crop(top, left, height, width, size)
        assert ours.shape == full.shape
        difference = (ours.int() - full.int()).abs().float().mean()
        assert difference < (1.0 if reduction > 1 else 0.01), (reduction, difference)
        assert bool(drafts) == (reduction > 1)
        drafts.clear()


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_arrays(channels):
    """npy files of 8 and 16 bits and of floats, with the channels first or last."""
    generator = np.random.default_rng(0)
    eight = generator.integers(0, 256, (24, 40, channels), dtype=np.uint8)
    for array in (eight, np.moveaxis(eight, 2, 0), eight.astype(np.uint16) * 257, (eight / 255).astype(np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        image = decode_image(buffer.getvalue(), channels)
        assert image.shape == (channels, 24, 40)
        torch.testing.assert_close(image.float(), torch.from_numpy(eight).permute(2, 0, 1).float())
        assert image.dtype == (torch.uint8 if array.dtype == np.uint8 else torch.float32)
    config = MAEConfig(image_size=32, patch_size=8, hidden_size=24, num_attention_heads=3, num_channels=channels)
    example = PreTrainingTransform(config)[sample(buffer.getvalue())]
    assert example["pixel_values"].shape == (channels, 32, 32)
    assert example["pixel_values"].min() >= 0 and example["pixel_values"].max() <= 255


def test_arrays_that_are_no_images():
    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    for array, message in [
        (np.zeros((6, 6, 5), np.uint8), r"an array of shape \(6, 6, 5\) is no image of 4 channels"),
        (np.zeros((2, 4, 4, 4), np.uint8), "is no image of 4 channels"),
        (np.zeros((0, 4, 4), np.uint8), "is no image"),
        (np.zeros((8, 8, 4), np.int64), "pixels of type int64; wanted are uint8, uint16, or floats"),
        (np.full((8, 8, 4), 2.0), r"must be in \[0, 1\]"),
        (np.full((8, 8, 4), np.nan), r"must be in \[0, 1\]"),
        (np.array([{}]), "Object arrays cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_image(npy(array), num_channels=4)
    with pytest.raises(ValueError, match="PNG files have 1 or 3 channels, not 4"):
        decode_image(encode(picture(), "PNG"), num_channels=4)
    with pytest.raises(ValueError):
        decode_image(npy(np.zeros((8, 8, 4), np.uint8))[:-10], num_channels=4)


def test_tiff_of_many_channels():
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 65536, (24, 40, 5), dtype=np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array)
    image = decode_image(buffer.getvalue(), num_channels=5)
    torch.testing.assert_close(image, torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 257)


def test_batches_of_several_types():
    """8 bits and more in one batch."""
    config = MAEConfig(image_size=8, patch_size=4, hidden_size=24, num_attention_heads=3, num_channels=2)
    examples = []
    for array in (np.full((8, 8, 2), 128, np.uint8), np.full((8, 8, 2), 0.5, np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        examples.append(PreTrainingTransform(config)[sample(buffer.getvalue())])
    batch = PreTrainingTransform(config).collate(examples)
    torch.testing.assert_close(batch.pixel_values.float()[:, 0, 0, 0], torch.tensor([128.0, 127.5]))


def test_jpeg_without_torchvisions_decoder(monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6
    data = [encode(picture(), "JPEG", exif=turned), encode(picture("L"), "JPEG"), encode(picture("CMYK"), "JPEG")]
    expected = [decode_image(jpeg) for jpeg in data]
    monkeypatch.setattr("mae.data.decoding.decode_jpeg", None)
    for jpeg, image in zip(data[:2], expected):
        assert torch.equal(decode_image(jpeg), image)
    assert (decode_image(data[2]).int() - expected[2].int()).abs().max() <= 1  # rounding of the inks


def sample(data: bytes, position: int = 5, seed: int = 11) -> Sample:
    return Sample(0, position, ("file", position), seed, data)


def test_augmentation_is_torchvisions(emoji_bytes):
    # The second implementation: torchvision's own transforms under the same generator state.
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    flips = 0
    for seed in range(20):
        example = PreTrainingTransform(CONFIG)[sample(emoji_bytes[0], seed=seed)]
        torch.manual_seed(seed)
        expected = transform(decode_image(emoji_bytes[0]))
        assert torch.equal(example["pixel_values"], expected)
        assert torch.equal(example["noise"], torch.rand(CONFIG.num_patches))
        flips += not torch.equal(expected, transform(decode_image(emoji_bytes[0])))
    assert flips > 0


def test_decode_is_pure(emoji_bytes):
    torch.manual_seed(0)
    first = PreTrainingTransform(CONFIG)[sample(emoji_bytes[0])]
    untouched = torch.rand(())
    torch.manual_seed(0)
    assert untouched == torch.rand(())
    again = PreTrainingTransform(CONFIG)[sample(emoji_bytes[0])]
    assert torch.equal(first["pixel_values"], again["pixel_values"]) and first["digest"] == again["digest"]


def test_digest_covers_what_it_says(emoji_bytes):
    def digest(config=CONFIG, **changes):
        return PreTrainingTransform(config)[sample(emoji_bytes[0])._replace(**changes)]["digest"]

    other_ratio = MAEConfig(**{**CONFIG.to_dict(), "mask_ratio": 0.5})
    digests = [
        digest(),
        digest(epoch=1),
        digest(position=6),
        digest(origin=("other", 5)),
        digest(origin=("file", 6)),
        digest(seed=12),
        digest(config=other_ratio),
    ]
    assert len(set(digests)) == len(digests)


def test_normalize_and_back():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = v2.functional.normalize(images / 255, mean=CONFIG.image_mean, std=CONFIG.image_std)
    torch.testing.assert_close(normalize(images, CONFIG), expected)
    torch.testing.assert_close(denormalize(normalize(images, CONFIG), CONFIG), images / 255)
    plain = MAEConfig(num_channels=4)
    four = torch.randint(0, 256, (2, 4, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalize(four, plain), four / 255)


def test_measured_statistics(tmp_path):
    """Against numpy over the same images, which are so large that a crop does not matter; one is unreadable."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (24, 3), dtype=np.uint8)
    for number, colour in enumerate(colours):
        Image.new("RGB", (64, 64), tuple(map(int, colour))).save(tmp_path / f"{number:02}.png")
    (tmp_path / "99.png").write_bytes(b"no image")
    source = open_folder(str(tmp_path), "--train_dir")
    order = SampleOrder(source.group_sizes, seed=0, lanes=5)
    mean, std, count = measure_statistics(source, order, CONFIG, count=1000)
    assert count == 24
    np.testing.assert_allclose(mean, colours.mean(0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, colours.std(0) / 255, atol=1e-6)
    assert measure_statistics(source, order, CONFIG, count=1000) == (mean, std, count)
    assert measure_statistics(source, order, CONFIG, count=10)[2] <= 10
    grey = [encode(Image.new("RGB", (8, 8), "grey"), "PNG")] * 8
    with pytest.raises(UserError, match="same value everywhere"):
        measure_statistics(BrokenSource(grey), SampleOrder([8], seed=0), CONFIG, count=8)
    with pytest.raises(UserError, match="has nothing to measure"):
        measure_statistics(BrokenSource([b""] * 8), SampleOrder([8], seed=0), CONFIG, count=8)


def test_load_images(parquet_folder):
    _, held_out = open_dataset(str(parquet_folder))
    images = load_images(held_out, CONFIG, count=8)
    assert images.shape == (8, 3, 32, 32) and torch.equal(images, load_images(held_out, CONFIG, count=8))
    assert len(load_images(held_out, CONFIG, count=100)) == 12
    wide = MAEConfig(image_size=(16, 48), patch_size=8)
    assert load_images(held_out, wide, count=2).shape == (2, 3, 16, 48)


# The stream


def batches(source, workers=0, start=0, stop=96, batch_size=8, index=0, processes=1):
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(source, order, batch_size, index, processes, start, stop)
    return list(make_loader(stream, PreTrainingTransform(CONFIG), workers))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        assert torch.equal(one.digests, other.digests)
        assert torch.equal(one.pixel_values, other.pixel_values) and np.array_equal(one.noise, other.noise)


@pytest.fixture(scope="module", params=["parquet", "folder", "parquet on the Hub", "files on the Hub", "downloaded"])
def source(request, parquet_folder, image_folder, parquet_on_the_hub, files_on_the_hub):
    return {
        "parquet": lambda: open_dataset(str(parquet_folder))[0],
        "folder": lambda: open_folder(str(image_folder), "--train_dir"),
        "parquet on the Hub": lambda: open_dataset(parquet_on_the_hub[0])[0],
        "files on the Hub": lambda: open_dataset(files_on_the_hub[0])[0],
        "downloaded": lambda: open_dataset(files_on_the_hub[0], streaming=False)[0],
    }[request.param]()


def test_workers_do_not_matter(source):
    expected = batches(source)
    for workers in (1, 3):
        torch.manual_seed(workers)
        random.seed(workers)
        assert_same(batches(source, workers), expected)


def test_any_start(source):
    # 90 or 60 rows: positions in the first epoch and in the second; windows of 8, so in mid-window too.
    expected = batches(source)
    for start, workers in ((24, 0), (40, 1), (80, 0)):
        assert_same(batches(source, workers, start), expected[start // 8 :])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_divide_the_global_batch(source, processes):
    expected = [samples_digest(batch.digests) for batch in batches(source)]
    parts = [
        batches(source, batch_size=8 // processes, index=index, processes=processes) for index in range(processes)
    ]
    together = [samples_digest(torch.cat([batch.digests for batch in step])) for step in zip(*parts)]
    assert together == expected


def test_accumulation_divides_the_global_batch(source):
    expected = [samples_digest(batch.digests) for batch in batches(source)]
    halves = batches(source, batch_size=4)
    pairs = [samples_digest(torch.cat([a.digests, b.digests])) for a, b in zip(halves[0::2], halves[1::2])]
    assert pairs == expected


def test_samples_are_the_rows(source):
    """Against the source read on its own: each sample is the row that its origin names, each row once an epoch."""
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    rows = {}
    for group in range(len(source.group_sizes)):
        for row, data in enumerate(source.read(group, 0)):
            rows[source.origin(group, row)] = data
    stream = SampleStream(source, order, batch_size=4, stop=order.epoch_length)
    samples = [sample for batch in stream for sample in batch]
    assert [sample.position for sample in samples] == list(range(order.epoch_length))
    assert all(rows[sample.origin] == sample.image for sample in samples)
    assert len({sample.origin for sample in samples}) == order.epoch_length


def test_row_groups_without_bytes(tmp_path, emoji_bytes):
    """A row that names a file in the place of its bytes, and one that names nothing."""
    (tmp_path / "beside.png").write_bytes(emoji_bytes[0])
    rows = [{"bytes": data, "path": None} for data in emoji_bytes[:40]]
    rows[35] = {"bytes": None, "path": str(tmp_path / "beside.png")}
    rows[36] = None
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "train.parquet")
    source, _ = open_dataset(str(tmp_path / "train.parquet"), image_column_name="image")
    expected = [*emoji_bytes[:35], str(tmp_path / "beside.png"), b"", *emoji_bytes[37:40]]
    assert list(source.read(0, 0)) == expected and list(source.read(0, 33)) == expected[33:]
    # In one of 40 batches of 2 is what cannot be read.
    assert sum(len(batch.skipped) for batch in batches(source, stop=40, batch_size=2)) == 1


def test_a_very_large_row_group_is_told_of(parquet_folder, monkeypatch):
    assert open_dataset(str(parquet_folder))[0].note is None
    monkeypatch.setattr("mae.data.parquet.LARGE_ROW_GROUP", 10_000)
    source, _ = open_dataset(str(parquet_folder))
    assert re.match(r"Note: train-0000\d-of-00002.parquet has a row group of 0.0 GB \(16 rows\), which", source.note)


class BrokenSource:
    """A source with what real ones have now and then."""

    fingerprint = "broken"
    num_readers = 1

    def __init__(self, images, claimed=None):
        self.images = images
        self.group_sizes = [claimed or len(images)]

    def read(self, group, first_row):
        yield from self.images[first_row:]

    def origin(self, group, row):
        return "file", row


def test_an_unreadable_image_consumes_its_position(emoji_bytes):
    good = BrokenSource(emoji_bytes[:32])
    bad = BrokenSource([b"no image" if row == 7 else data for row, data in enumerate(emoji_bytes[:32])])
    ours, theirs = batches(bad, stop=32), batches(good, stop=32)
    assert [batch.size for batch in ours] == [8] * 4
    (hit,) = [number for number, batch in enumerate(ours) if batch.skipped]
    assert ours[hit].skipped == [(("file", 7), ours[hit].skipped[0][1])] and "Unidentified" in ours[hit].skipped[0][1]
    assert ours[hit].weight == 7 / 8 and len(ours[hit].pixel_values) == 7
    assert_same(ours[:hit] + ours[hit + 1 :], theirs[:hit] + theirs[hit + 1 :])
    kept = [not torch.equal(a, b) for a, b in zip(ours[hit].digests, theirs[hit].digests)].index(True)
    others = [row for row in range(8) if row != kept]
    assert torch.equal(ours[hit].pixel_values, theirs[hit].pixel_values[others])


def test_nothing_readable_gives_a_blank_of_weight_0():
    for batch in batches(BrokenSource([b""] * 32), stop=32):
        assert batch.weight == 0 and batch.size == 8 and batch.pixel_values.shape == (1, 3, 32, 32)


def test_a_source_that_ends_early_is_an_error(emoji_bytes):
    with pytest.raises(DataError, match="file has no row 2."):
        batches(BrokenSource(emoji_bytes[:20], claimed=32), stop=32)


def test_lanes_and_processes():
    with pytest.raises(
        UserError, match="--lanes 4 must be a multiple of the number of processes, 3, .* say --lanes 6,"
    ):
        batches(BrokenSource([b""] * 32), processes=3)


class TickedSource(BrokenSource):
    """A slow source: it gives a row for each tick."""

    def __init__(self, images, num_readers=1):
        super().__init__(images)
        self.group_sizes = [16] * (len(images) // 16)
        self.num_readers = num_readers
        self.ticks = threading.Semaphore(0)
        self.read_rows = 0

    def read(self, group, first_row):
        for row in range(first_row, 16):
            self.ticks.acquire()
            self.read_rows += 1
            yield self.images[16 * group + row]


def until(condition):
    """Waits for what threads are about to do."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("num_readers", [1, 4])
def test_reading_ahead_is_bounded(num_readers):
    order = SampleOrder([16] * 64, seed=0, lanes=4, shuffle_buffer_size=256)
    for max_windows, max_bytes, ahead in ((2, 10**9, 48 + 32), (32, 100_000, 100), (32, 10, 1)):
        source = TickedSource([bytes(1000)] * 1024, num_readers)
        source.ticks.release(10**6)
        reader = WindowReader(source, order.windows(0, range(4)), max_windows, max_bytes)
        window, _ = reader.get()
        assert len(window) == 64  # of 64,000 bytes, whatever the limits
        assert until(lambda source=source, ahead=ahead: source.read_rows >= 64 + ahead)
        time.sleep(0.05)  # time enough to read too much
        assert source.read_rows <= 64 + ahead + num_readers
        reader.close()
        assert not any(thread.is_alive() for thread in reader.threads)


@pytest.mark.parametrize("num_readers", [1, 4])
def test_a_window_that_ends_finds_the_next_one_read(num_readers, monkeypatch):
    """Two epochs of a source that is an eighth faster than training, and room for what an epoch begins with."""
    source = TickedSource([bytes(1000)] * 1024, num_readers)
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=256)
    waits = []

    def get(reader):
        with reader.changed:
            waits.append(not (reader.readings and not reader.readings[0].missing))
        if waits[-1]:
            source.ticks.release(256)  # or it would wait for ever
        return real_get(reader)

    real_get = WindowReader.get
    monkeypatch.setattr(WindowReader, "get", get)
    stream = SampleStream(source, order, 8, stop=2 * order.epoch_length, max_bytes_ahead=192_000)
    for _ in stream:
        source.ticks.release(9)
        read_rows = None
        while source.read_rows != read_rows:  # until the ticks are used up, or there is no room
            read_rows = source.read_rows
            time.sleep(0.005)
    assert source.read_rows == 2048
    assert len(waits) > 32 and not any(waits[4:])


def test_many_readers_give_what_one_gives(monkeypatch):
    """Random groups, limits and faults, with threads that change places as often as they can."""

    class Faulty(BrokenSource):
        def __init__(self, sizes, num_readers):
            super().__init__([])
            self.group_sizes, self.num_readers, self.random = sizes, num_readers, random.Random(0)

        def read(self, group, first_row):
            for row in range(first_row, self.group_sizes[group]):
                if self.num_readers > 1 and self.random.random() < 0.01:
                    raise ConnectionError("reset")
                yield f"{group} {row}".encode()

    monkeypatch.setattr(retries, "FIRST_DELAY", 0.0001)
    draw, interval = random.Random(1), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for case in range(30):
            sizes = [draw.choice([0, 1, 3, 20, 100]) for _ in range(draw.randint(8, 40))] + [8]
            order = SampleOrder(sizes, seed=case, lanes=4, shuffle_buffer_size=draw.choice([4, 40, 400]))
            start = draw.randrange(0, 2 * order.epoch_length, 2)
            arguments = {"process_index": 1, "num_processes": 2, "start": start, "stop": start + 400}
            one, many = (
                [
                    sample
                    for batch in SampleStream(
                        Faulty(sizes, num_readers), order, 5, max_bytes_ahead=max_bytes, retry_minutes=1, **arguments
                    )
                    for sample in batch
                ]
                for num_readers, max_bytes in ((1, 10**6), (draw.randint(2, 8), draw.choice([1, 100, 10**6])))
            )
            assert one == many and len(one) == 200
            for sample in one:
                group, row = order.locate(sample.position)
                assert sample.image == f"{group} {row}".encode()
    finally:
        sys.setswitchinterval(interval)


def test_a_group_is_read_on_over_windows_and_epochs():
    """With room for one image: nothing is read twice but what lies before a lane's first row in a group."""

    source = TickedSource([bytes(1000)] * 1024, num_readers=4)
    source.ticks.release(10**6)
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=20)
    stream = SampleStream(source, order, 8, stop=3 * order.epoch_length, max_bytes_ahead=1)
    assert sum(len(batch) for batch in stream) == 3 * 1024
    assert source.read_rows == 3 * 1024  # lanes of 256 rows end with a group of 16


def test_windows_that_cannot_be_laid_out():
    def windows():
        yield SampleOrder([8], seed=0, lanes=1).window(0, 0, 0)
        raise MemoryError("too many groups")

    reader = WindowReader(BrokenSource([b"image"] * 8), windows())
    with pytest.raises(MemoryError, match="too many groups"):
        reader.get(), reader.get()
    reader.close()


def test_a_dropped_stream_leaves_no_thread(parquet_folder):
    source, _ = open_dataset(str(parquet_folder))
    order = SampleOrder(source.group_sizes, seed=0, lanes=4)
    iterator = iter(SampleStream(source, order, batch_size=4))
    next(iterator)
    assert any(thread.name.startswith("window-reader") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith("window-reader") for thread in threading.enumerate())
