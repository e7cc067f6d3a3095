"""Small images, samples and sources for the tests of the data."""

import io
import struct
import threading
import zlib

import numpy as np
import torch
from PIL import Image

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.loader import make_loader
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import Sample, SampleStream
from mae.data.transforms import PreTrainingTransform


CONFIG = MAEConfig(image_size=32, patch_size=8, hidden_size=24, num_attention_heads=3)

_RNG = np.random.default_rng(0)


def encode(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype("uint8")).convert(mode)


def noise(height, width, channels, dtype="uint8"):
    """An array of random pixels, floats in [0, 1)."""
    if dtype == "float32":
        return _RNG.random((height, width, channels), dtype=np.float32)
    return _RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


def png_of_16_bits(values: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of (H, W) or (H, W, 3) uint16, which Pillow cannot write in colour; its header may claim another size."""
    height, width = size or values.shape[:2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def sample(data: bytes, position: int = 5, seed: int = 11) -> Sample:
    return Sample(0, position, ("file", position), seed, data)


def batches(source, workers=0, start=0, stop=96, batch_size=8, index=0, processes=1):
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(source, order, batch_size, index, processes, start, stop)
    return list(make_loader(stream, SampleDataset(PreTrainingTransform(CONFIG)), workers))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        assert torch.equal(one.digests, other.digests)
        assert torch.equal(one.pixel_values, other.pixel_values) and np.array_equal(one.noise, other.noise)


class BrokenSource(Source):
    """A source with faults that real ones have now and then."""

    fingerprint = "broken"
    num_readers = 1

    def __init__(self, images, claimed=None):
        self.images = images
        self.group_sizes = [claimed or len(images)]

    def read(self, group, first_row):
        yield from self.images[first_row:]

    def origin(self, group, row):
        return "file", row


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
