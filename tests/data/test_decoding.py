"""Decoding of image files and arrays."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.decoding import EncodedImage, decode_image, plain_jpeg_size
from mae.data.loader import batches, make_loader
from mae.data.order import SampleOrder
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils.errors import UserError
from tests.support.samples import (
    CONFIG,
    BrokenSource,
    encode,
    picture,
    png_of_16_bits,
    sample,
)


@pytest.mark.parametrize(
    ("mode", "format", "tolerance"),
    [("RGB", "PNG", 0), ("RGB", "JPEG", 12), ("RGB", "WEBP", 12), ("RGB", "BMP", 0), ("CMYK", "JPEG", 14)],
)
def test_each_format_and_mode_becomes_rgb(mode, format, tolerance):
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
        assert decode_image(encode(picture(), format), bands=1).shape == (1, 24, 40)

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


def test_decode_16_bits():
    """Scaled to 8 bits, not cut off at 255; colour loses its lower bytes."""
    values = np.linspace(0, 65535, 40 * 24).astype(np.uint16).reshape(24, 40)
    expected = torch.from_numpy(np.round(values / 257).astype(np.uint8))
    for data in (
        png_of_16_bits(values),
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
    ):
        assert torch.equal(decode_image(data, bands=1)[0], expected)
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


def with_chunks(png, *chunks):
    """A PNG with more chunks after its header."""
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return png[:33] + b"".join(made) + png[33:]


@pytest.mark.parametrize("transparent", [0, 1300])
def test_transparent_value_of_16_bits_is_white_and_the_others_are_scaled(transparent):
    values = (np.mgrid[:40, :48][1] * 1300).astype(np.uint16)
    data = encode(Image.fromarray(values), "PNG", transparency=transparent)
    expected = np.where(values == transparent, 255, np.round(values / 257)).astype(np.uint8)
    for channels in (1, 3):
        assert np.array_equal(decode_image(data, channels)[0], expected)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", bytes([0, 8, 0, 2, 1, 0x12, 0, 3])),
        (b"eXIf", b""),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"a" * 3_000_000)),
    ],
)
def test_broken_orientation_and_long_texts_do_not_cost_the_pixels(chunk):
    data = with_chunks(encode(picture(), "PNG"), chunk)
    assert torch.equal(decode_image(data), decode_image(encode(picture(), "PNG")))


def test_broken_orientation_of_a_large_jpeg_does_not_cost_the_pixels():
    large = Image.new("RGB", (4000, 3000), "red")
    data = encode(large, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data).shape == (3, 3000, 4000)
    assert EncodedImage(data).decode_crop(0, 0, 3000, 4000, [8, 8])[0].min() > 240


@pytest.mark.parametrize(
    "data, message", [(b"", "no image, only 0 bytes"), (None, "no image"), (b"hello", "no image of a known format")]
)
def test_what_is_no_image_is_named_without_addresses(data, message):
    example = SampleDataset(PreTrainingTransform(CONFIG))[sample(data)]
    assert message in example["skipped"] and "0x" not in example["skipped"]


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
    wide = SampleDataset(PreTrainingTransform(CONFIG))[sample(whole)]
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
def test_array_files_of_any_type_become_8_bits(channels):
    """npy files of 8 and 16 bits and of floats, with the channels first or last."""
    generator = np.random.default_rng(0)
    eight = generator.integers(0, 256, (24, 40, channels), dtype=np.uint8)
    wide = eight.astype(np.uint16) * 257
    floats = (eight / 255).astype(np.float32)
    for array in (eight, np.moveaxis(eight, 2, 0), wide, wide.astype(">u2"), floats, floats.astype(">f4")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        image = decode_image(buffer.getvalue(), channels)
        assert image.shape == (channels, 24, 40)
        torch.testing.assert_close(image.float(), torch.from_numpy(eight).permute(2, 0, 1).float())
        assert image.dtype == (torch.uint8 if array.dtype == np.uint8 else torch.float32)
    config = MAEConfig(image_size=32, patch_size=8, hidden_size=24, num_attention_heads=3, num_channels=channels)
    example = SampleDataset(PreTrainingTransform(config))[sample(buffer.getvalue())]
    assert example["pixel_values"].shape == (channels, 32, 32)
    assert example["pixel_values"].min() >= 0 and example["pixel_values"].max() <= 255


def test_arrays_that_are_no_images():
    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    for array, message in [
        (np.zeros((6, 6, 5), np.uint8), r"it has 5 channels \(6 x 6 pixels\), but the model takes 4"),
        (np.zeros((2, 4, 4, 4), np.uint8), "is no image"),
        (np.zeros((0, 4, 4), np.uint8), "is no image"),
        (np.zeros((8, 8, 4), np.int64), "pixels of type int64 have no range"),
        (np.full((8, 8, 4), 2.0), r"must be in \[0, 1\]"),
        (np.array([{}]), "Object arrays cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_image(npy(array), bands=4)
    with pytest.raises(ValueError, match="it has 3 channels .* but the model takes 4"):
        decode_image(encode(picture(), "PNG"), bands=4)
    with pytest.raises(ValueError):
        decode_image(npy(np.zeros((8, 8, 4), np.uint8))[:-10], bands=4)


def test_tiff_of_many_channels():
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 65536, (24, 40, 5), dtype=np.uint16)
    expected = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 257
    layouts = ({}, {"bigtiff": True}, {"byteorder": ">"}, {"byteorder": ">", "bigtiff": True}, {"compression": "lzw"})
    for options in layouts:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, photometric="minisblack", planarconfig="contig", **options)
        torch.testing.assert_close(decode_image(buffer.getvalue(), bands=5), expected)


def test_jpeg_without_torchvisions_decoder(monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6
    data = [encode(picture(), "JPEG", exif=turned), encode(picture("L"), "JPEG"), encode(picture("CMYK"), "JPEG")]
    expected = [decode_image(jpeg) for jpeg in data]
    monkeypatch.setattr("mae.data.decoding.decode_jpeg", None)
    for jpeg, image in zip(data[:2], expected):
        assert torch.equal(decode_image(jpeg), image)
    assert (decode_image(data[2]).int() - expected[2].int()).abs().max() <= 1  # rounding of the inks


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("package", ["tifffile", "imagecodecs"])
def test_missing_package_is_one_line_and_no_unreadable_image(package, workers, monkeypatch):
    """In a DataLoader worker too, whose errors PyTorch reports with a traceback."""

    class NeedsCodec:
        @staticmethod
        def TiffFile(file):
            raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setitem(sys.modules, "tifffile", None if package == "tifffile" else NeedsCodec)
    config = MAEConfig(image_size=32, patch_size=8, hidden_size=24, num_attention_heads=3, num_channels=5)
    source = BrokenSource([b"II*\0" + bytes(100)] * 8)
    stream = SampleStream(source, SampleOrder(source.group_sizes, 0, 1, 8), 4, stop=8)
    loader = make_loader(stream, SampleDataset(PreTrainingTransform(config)), workers)
    with pytest.raises(UserError, match=f"pip install {package}") as found:
        list(batches(loader))
    assert "\n" not in str(found.value)
