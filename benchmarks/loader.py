"""
Decoding and augmentation of photographs against the official code's transform, on one core.

    python -m benchmarks.loader --images DIR [--rounds 5] [--limit 200] [--json]

Official: Pillow, RandomResizedCrop(0.2, 1) bicubic, flip, ToTensor, Normalize, as in its main_pretrain.py. Ours: what
the trainer's workers do, `mae.data.transforms.PreTrainingTransform`, seeding, mask and digest included;
normalisation is the device's. The rows alternate in one process; images per second are medians over the rounds, the
ratio is the median of the rounds' own. `--json` prints one line of JSON instead of the table.

Three more rows compare the trainer's loader with itself: an epoch from the cache of decoded images (--cache_memory),
four views of each image (--views_per_image) without a cache, both against an epoch without either, and the same
photographs at 32 pixels from the cache.
"""

import argparse
import io
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.timing import alternate, machine, median_ratio
from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.decoding import decode_image
from mae.data.folders import open_folder
from mae.data.loader import make_loader
from mae.data.order import SampleOrder
from mae.data.pixel_cache import CachedRows, PixelCache
from mae.data.sources import Source
from mae.data.stream import Sample, SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils.errors import UserError


CONFIG = MAEConfig()
SMALL, SMALL_EPOCHS = MAEConfig(image_size=32, patch_size=4), 10
VIEWS = 4
OFFICIAL = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(CONFIG.image_mean, CONFIG.image_std),
    ]
)


class OfficialDataset(Dataset):
    """torchvision's ImageFolder, on files that are named one by one."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.paths[index], "rb") as file:
            return OFFICIAL(Image.open(file).convert("RGB"))


def pixel_difference(files: list[bytes]) -> float:
    """Mean difference of 8-bit pixels between ours and Pillow's crop of the same box, as the official code resizes."""
    dataset, total = SampleDataset(PreTrainingTransform(CONFIG)), 0.0
    for number, data in enumerate(files):
        sample = Sample(0, number, ("", number), number, data)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        _, crop, _ = dataset.transform.draw(sample)
        top, left, height, width, flip = crop[:5]
        area = (left, top, left + width, top + height)
        theirs = transforms.functional.pil_to_tensor(picture.crop(area).resize((224, 224), Image.Resampling.BICUBIC))
        theirs = theirs.flip(2) if flip else theirs
        total += (dataset[sample]["pixel_values"].int() - theirs.int()).abs().float().mean().item()
    return total / len(files)


class EncodedImages(Source):
    """Encoded images in memory."""

    fingerprint = "encoded"

    def __init__(self, images: list[bytes]):
        self.images = images
        self.group_sizes = [len(images)]

    def read(self, group: int, first_row: int) -> Iterator[bytes]:
        yield from self.images[first_row:]

    def origin(self, group: int, row: int) -> tuple[str, int]:
        return "image", row


def shrink(data: bytes) -> bytes:
    """An image as a PNG of 32 pixels, as of CIFAR-10."""
    small = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)).save(small, "PNG")
    return small.getvalue()


def consume(loader: DataLoader) -> None:
    for _ in loader:
        pass


def consume_epochs(
    source: Source,
    config: MAEConfig,
    epochs: int,
    batch_size: int,
    cache: PixelCache | None = None,
    views: int = 1,
) -> None:
    """Load some epochs as the trainer does."""
    order = SampleOrder(source.group_sizes, seed=0, lanes=1)
    stop = epochs * order.epoch_length
    stream = SampleStream(
        source if cache is None else CachedRows(source, cache), order, batch_size, stop=stop, views=views
    )
    consume(make_loader(stream, SampleDataset(PreTrainingTransform(config), cache)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--limit", type=int, default=200, help="how many of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    source = open_folder(arguments.images, "--images")
    paths = [next(iter(source.read(group, 0))) for group in range(len(source.group_sizes))][: arguments.limit]
    source.names, source.group_sizes = source.names[: len(paths)], source.group_sizes[: len(paths)]
    files = [Path(path).read_bytes() for path in paths]
    dataset = SampleDataset(PreTrainingTransform(CONFIG))
    samples = [Sample(0, number, ("", number), number, data) for number, data in enumerate(files)]
    small = EncodedImages([shrink(data) for data in files])
    cache, small_cache = PixelCache(len(files), 2**36), PixelCache(len(files), 2**36)

    rows: dict[str, Callable[[], None]] = {
        "official": lambda: [OFFICIAL(Image.open(io.BytesIO(data)).convert("RGB")) for data in files],
        "ours": lambda: [dataset[sample] for sample in samples],
        "official_decode": lambda: [Image.open(io.BytesIO(data)).convert("RGB") for data in files],
        "ours_decode": lambda: [decode_image(data) for data in files],
        "official_loader": lambda: consume(DataLoader(OfficialDataset(paths), batch_size=20)),
        "ours_loader": lambda: consume_epochs(source, CONFIG, 1, batch_size=20),
        # The first round, which does not count, fills the caches.
        "cached_loader": lambda: consume_epochs(source, CONFIG, 1, batch_size=20, cache=cache),
        "views_loader": lambda: consume_epochs(source, CONFIG, VIEWS, batch_size=20, views=VIEWS),
        "small_loader": lambda: consume_epochs(small, SMALL, SMALL_EPOCHS, batch_size=50, cache=small_cache),
    }
    seconds = alternate(rows, arguments.rounds)
    for name, epochs in (("views_loader", VIEWS), ("small_loader", SMALL_EPOCHS)):
        seconds[name] = [time / epochs for time in seconds[name]]
    results: dict[str, float] = {
        name: round(len(files) / statistics.median(times), 1) for name, times in seconds.items()
    }
    for kind in ("", "_decode", "_loader"):
        results[f"ratio{kind}"] = round(median_ratio(seconds[f"official{kind}"], seconds[f"ours{kind}"]), 3)
    for kind in ("cached", "views"):
        results[f"ratio_{kind}"] = round(median_ratio(seconds["ours_loader"], seconds[f"{kind}_loader"]), 3)
    results["images"] = len(files)
    results["mean_pixel_difference"] = round(pixel_difference(files), 3)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{machine()}\n{len(files)} images, {arguments.rounds} rounds; images/s")
    for kind, title in (
        ("", "decode and augment"),
        ("_decode", "decode alone"),
        ("_loader", "DataLoader, from files"),
    ):
        theirs, ours, ratio = (results[f"{name}{kind}"] for name in ("official", "ours", "ratio"))
        print(f"{title:24} official {theirs:7.1f}   ours {ours:7.1f}   ratio {ratio:.2f}")
    print(f"{'from the cache':24} {results['cached_loader']:7.1f}, {results['ratio_cached']:.2f} x without it")
    print(f"{f'{VIEWS} views, no cache':24} {results['views_loader']:7.1f}, {results['ratio_views']:.2f} x one view")
    print(f"{'32 pixels, cached':24} {results['small_loader']:7.1f}")
    print(f"mean difference of a pixel: {results['mean_pixel_difference']:.2f} of 255")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
