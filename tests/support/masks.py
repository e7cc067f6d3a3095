"""Small images with masks, in folders and Parquet files, for the tests of several packages."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from datasets import Image as ImageFeature
from PIL import Image


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def draw_discs(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image of bright discs and squares on a dark ground, and its mask: 0 ground, 1 disc, 2 square."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for number in range(4):
        top, left, size = generator.integers(0, height), generator.integers(0, width), generator.integers(6, 12)
        distances = [abs(y - top), abs(x - left)]
        inside = np.hypot(*distances) < size if number % 2 else np.maximum(*distances) < size
        image[inside] = [230, 200, 40] if number % 2 else [40, 90, 230]
        mask[inside] = 1 if number % 2 else 2
    return image, mask


def write_folders(root: Path, count: int, first: int = 0, **size: int) -> tuple[Path, Path]:
    """Images and masks in two folders, some of them in folders of their own."""
    images, masks = root / "images", root / "masks"
    for number in range(first, first + count):
        image, mask = draw_discs(number, **size)
        name = f"{'deep/' if number % 2 else ''}{number:03}"
        for folder, array, extension in ((images, image, "JPG" if number % 3 == 2 else "png"), (masks, mask, "png")):
            path = folder / f"{name}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path, format="JPEG" if extension == "JPG" else "PNG")
    return images, masks


def write_masked_parquet(path: Path, numbers: range, row_group_size: int = 8, mask_column: str = "label") -> Path:
    """A Parquet file with columns of images and masks."""
    pairs = [draw_discs(number) for number in numbers]
    features = Features({"image": ImageFeature(), mask_column: ImageFeature()})
    columns = {
        name: [{"bytes": png(pair[index]), "path": None} for pair in pairs]
        for index, name in enumerate(("image", mask_column))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=features.arrow_schema), path, row_group_size=row_group_size)
    return path
