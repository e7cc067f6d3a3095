"""Decoded images that workers share: the same samples, bounded memory, and what is left of killed processes."""

import gc
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mae.data import decoding
from mae.data.dataset import SampleDataset
from mae.data.decoding import EncodedImage
from mae.data.folders import open_folder
from mae.data.loader import batches as iterate
from mae.data.loader import make_loader
from mae.data.opening import open_dataset
from mae.data.order import SampleOrder
from mae.data.pixel_cache import CachedRows, PixelCache, Size
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils.errors import DataError
from tests.support.samples import CONFIG, BrokenSource, assert_same, batches, encode, picture, png_of_16_bits, sample


def cached_loader(source, cache, workers=0, start=0, stop=96, transform=None):
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(CachedRows(source, cache), order, 8, start=start, stop=stop)
    return make_loader(stream, SampleDataset(transform or PreTrainingTransform(CONFIG), cache), workers)


def memory_of(cache):
    """Bytes of memory that the system has given to its file."""
    return os.fstat(cache._file).st_blocks * 512


@pytest.fixture(scope="module", params=["parquet", "folder"])
def source(request, parquet_folder, image_folder):
    if request.param == "parquet":
        return open_dataset(str(parquet_folder))[0]
    return open_folder(str(image_folder), "--train_dir")


@pytest.mark.parametrize("max_bytes", [0, 10_000, 200_000, 10**8])
@pytest.mark.parametrize("workers", [0, 2])
def test_cache_of_any_size_changes_no_sample(source, max_bytes, workers):
    cache = PixelCache(len(source), max_bytes)
    stop = 40 + 3 * len(source)
    expected = batches(source, stop=stop)
    assert_same(list(cached_loader(source, cache, workers, stop=stop)), expected)
    # Another loader, as after a resume, finds what the first one has left.
    assert_same(list(cached_loader(source, cache, workers, start=40, stop=stop)), expected[5:])
    fits = max_bytes == 10**8
    assert (cache.num_images == len(source)) == fits and (cache.num_images > 0) == (max_bytes > 10_000)


def test_memory_stays_below_the_limit_and_is_used_as_it_is_filled():
    cache = PixelCache(1000, 10**6)
    assert memory_of(cache) < 10_000
    for row in range(1000):
        cache.put(row, 1, np.full((20, 30, 3), row % 256, dtype=np.uint8), Size(20, 30, False))
    assert 0.95 * 10**6 < memory_of(cache) < 10**6 + 2 * 4096
    held = [row for row in range(1000) if cache.holds(row)]
    assert held == list(range(len(held))) and cache.num_images == len(held)
    assert all((cache.get(row)[0] == row % 256).all() for row in held) and cache.get(len(held)) is None


def test_small_image_is_taken_where_a_large_one_has_no_room():
    cache = PixelCache(3, 100_000)
    for row, side in enumerate((150, 200, 100)):
        cache.put(row, 1, np.zeros((side, side, 3), dtype=np.uint8), Size(side, side, False))
    assert [cache.holds(row) for row in range(3)] == [True, False, True]


def test_cache_stops_to_grow_if_the_machine_has_no_memory_left():
    cache = PixelCache(3, 10**8, reserve=10**15)
    cache.put(0, 1, np.zeros((10, 10, 3), dtype=np.uint8), Size(10, 10, False))
    assert cache.num_images == 0 and cache.get(0) is None


@pytest.mark.parametrize(
    "data, channels",
    [
        (encode(picture(), "JPEG"), 3),
        (encode(picture(size=(7, 90)), "PNG"), 3),
        (encode(picture("L"), "JPEG"), 1),
        (encode(picture("RGBA"), "PNG"), 3),
        (png_of_16_bits(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99), 1),
        (b"npy", 2),
    ],
)
def test_pixels_come_back_in_the_same_order_of_memory(data, channels, tmp_path):
    if data == b"npy":
        np.save(tmp_path / "a.npy", np.random.default_rng(0).random((11, 13, 2), dtype=np.float32))
        data = (tmp_path / "a.npy").read_bytes()
    cache, expected = PixelCache(8, 10**7), EncodedImage(data, channels).pixels()
    image = EncodedImage(data, channels)
    cache.put(5, 1, image.pixels(), Size(image.height, image.width, image.is_large))
    found, size = cache.get(5)
    assert np.array_equal(found, expected) and found.dtype == expected.dtype
    assert size == (image.height, image.width, False)
    assert found.strides == expected.strides or channels == 1


def test_large_photographs_are_kept_at_the_sizes_that_crops_need(monkeypatch):
    """Large ones are decoded at a fraction; every view must be what a decoder of its own gives."""
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 40_000)
    data = encode(picture(size=(400, 300)), "JPEG", quality=95)
    source, cache = BrokenSource([data] * 4), PixelCache(4, 10**7)
    assert_same(list(cached_loader(source, cache, stop=64)), batches(source, stop=64))
    reductions = [1, 2, 4, 8]
    kept = [reduction for reduction in reductions if cache.get(0, reduction) is not None]
    assert len(kept) > 1 and cache.num_images == 4 and not cache.holds(0)  # another fraction may still be needed


def test_file_of_a_large_photograph_is_still_needed_when_its_whole_pixels_are_kept():
    cache = PixelCache(2, 10**6)
    for row, is_large in enumerate((True, False)):
        cache.put(row, 1, np.zeros((4, 4, 3), dtype=np.uint8), Size(4, 4, is_large))
    assert [cache.holds(row) for row in range(2)] == [False, True]


def test_unreadable_images_are_skipped_in_each_epoch_and_not_kept(emoji_bytes):
    source = BrokenSource([*emoji_bytes[:14], b"no image", emoji_bytes[14][:200]])
    cache = PixelCache(16, 10**7)
    found = list(cached_loader(source, cache, stop=48))
    assert_same(found, batches(source, stop=48))
    assert cache.num_images == 14 and not cache.holds(14) and not cache.holds(15)
    assert sorted(row for batch in found for (_, row), _ in batch.skipped) == [14, 14, 14, 15, 15, 15]


def test_rows_in_the_cache_are_neither_read_nor_decoded(emoji_bytes, monkeypatch):
    source, cache = BrokenSource(list(emoji_bytes[:16])), PixelCache(16, 10**7)
    expected = batches(source, stop=48)
    list(cached_loader(source, cache, stop=16))
    source.images = None
    monkeypatch.setattr(EncodedImage, "__init__", None)
    assert_same(list(cached_loader(source, cache, start=16, stop=48)), expected[2:])


def test_rows_between_cached_ones_are_the_right_ones(emoji_bytes):
    source, cache = BrokenSource(list(emoji_bytes[:8])), PixelCache(8, 10**7)
    for row in (0, 3, 4):
        cache.put(row, 1, EncodedImage(emoji_bytes[row]).pixels(), Size(64, 64, False))
    expected = [b"" if row in (0, 3, 4) else emoji_bytes[row] for row in range(8)]
    for first in range(8):
        assert list(CachedRows(source, cache).read(0, first)) == expected[first:]


class DyingTransform(PreTrainingTransform):
    def __call__(self, sample):
        if sample.position == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample)


def test_killed_worker_leaves_a_cache_that_others_use(source):
    cache = PixelCache(len(source), 10**8)
    with pytest.raises(DataError, match="worker died"):
        list(iterate(cached_loader(source, cache, 2, transform=DyingTransform(CONFIG))))
    assert cache.num_images > 0
    assert_same(list(cached_loader(source, cache, 2)), batches(source))


def hold_lock(cache, ready):
    with cache._locked():
        ready.set()
        signal.pause()


def test_killed_process_releases_the_lock():
    cache, ready = PixelCache(2, 10**6), multiprocessing.Event()
    process = multiprocessing.Process(target=hold_lock, args=(cache, ready))
    process.start()
    ready.wait()
    process.kill()
    process.join()
    cache.put(0, 1, np.ones((4, 4, 3), dtype=np.uint8), Size(4, 4, False))
    assert cache.holds(0)


def fill(cache, first):
    for row in range(200):
        pixels = np.full((32, 32, 3), (first + row) % 256, dtype=np.uint8)
        cache.put((first + row) % 200, 1, pixels, Size(32, 32, False))


def test_processes_that_write_at_once_write_each_image_once():
    cache = PixelCache(200, 10**7)
    processes = [multiprocessing.Process(target=fill, args=(cache, first)) for first in (0, 0, 200, 600)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert cache.num_images == 200 and cache.num_bytes == 200 * (3 * 32 * 32 + 32)
    for row in range(200):
        assert len(np.unique(cache.get(row)[0])) == 1


@pytest.mark.parametrize(("source", "method"), [("folder", "forkserver"), ("parquet", "spawn")], indirect=["source"])
def test_workers_that_are_not_forked_share_it(source, method):
    cache = PixelCache(len(source), 10**8)
    loader = cached_loader(source, cache)
    started = DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=1,
        multiprocessing_context=method,
    )
    assert_same(list(started), batches(source))
    assert cache.num_images >= len(source) // 4 * 4  # of an epoch


def attach_and_put(address):
    os.closerange(3, 1024)  # not by what it has inherited
    PixelCache.attach(address, 4, 10**6).put(2, 1, np.full((5, 6, 3), 7, dtype=np.uint8), Size(5, 6, False))


def test_another_process_attaches_by_the_address():
    cache = PixelCache(4, 10**6)
    process = multiprocessing.get_context("fork").Process(target=attach_and_put, args=[cache.address])
    process.start()
    process.join()
    assert (
        process.exitcode == 0
        and cache.holds(2)
        and np.array_equal(cache.get(2)[0], np.full((5, 6, 3), 7, dtype=np.uint8))
    )
    process, file, token = cache.address
    with pytest.raises(OSError, match="no such cache"):
        PixelCache.attach((process, file, token + 1), 4, 10**6)


def test_memory_has_no_name_that_a_killed_run_could_leave():
    cache = PixelCache(9, 10**6)
    path = os.readlink(f"/proc/self/fd/{cache.address[1]}")
    assert path.endswith(" (deleted)")


def test_dropped_cache_gives_its_memory_back():
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        PixelCache(4, 10**6)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_image_is_decoded_once_for_all_its_samples_of_a_batch(emoji_bytes, monkeypatch):
    decoded = []
    original = EncodedImage.pixels
    monkeypatch.setattr(EncodedImage, "pixels", lambda image, *a: (decoded.append(1), original(image, *a))[1])
    dataset = SampleDataset(PreTrainingTransform(CONFIG))
    samples = [
        sample(emoji_bytes[row], position, seed=position)._replace(index=row)
        for position, row in enumerate([0, 1, 0, 1, 0])
    ]
    together = dataset.__getitems__(samples)
    assert len(decoded) == 2
    for one, other in zip(together, samples):
        assert (
            torch.equal(one["pixel_values"], dataset[other]["pixel_values"])
            and one["digest"] == dataset[other]["digest"]
        )


def test_picture_in_a_folder_may_be_removed_once_it_is_kept(tmp_path):
    for number in range(8):
        Image.new("RGB", (20 + number, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    source, cache = open_folder(str(tmp_path), "--train_dir"), PixelCache(8, 10**7)
    expected = batches(source, stop=24)
    list(cached_loader(source, cache, stop=8))
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert_same(list(cached_loader(source, cache, start=8, stop=24)), expected[1:])
