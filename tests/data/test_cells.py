"""Arrays in the columns of datasets are images."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from mae.data.bands import Bands
from mae.data.cells import array_file
from mae.data.decoding import decode_image
from mae.data.opening import find_image_column, open_dataset
from mae.utils.errors import UserError


GENERATOR = np.random.default_rng(0)
ARRAYS = GENERATOR.integers(0, 256, (6, 10, 12, 5)).astype(np.uint8)


def write(folder, feature, arrays, way):
    rows = datasets.Dataset.from_dict({"id": range(len(arrays)), "bands": list(arrays)})
    rows = rows.cast_column("bands", feature)
    if way == "parquet":
        folder.mkdir()
        rows.to_parquet(folder / "train.parquet")
    else:
        rows.save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize("way", ["parquet", "arrow"])
@pytest.mark.parametrize("order", ["hwc", "chw", "lists"])
def test_array_columns_are_images(order, way, tmp_path):
    arrays = ARRAYS if order == "hwc" else ARRAYS.transpose(0, 3, 1, 2)
    feature = datasets.Array3D(arrays.shape[1:], "uint8")
    if order == "lists":
        feature = datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))
        arrays = arrays.tolist()
    name = write(tmp_path / "data", feature, arrays, way)
    source, _ = open_dataset(name, image_column_name="bands" if order == "lists" else None)
    images = [data for group in range(len(source.group_sizes)) for data in source.read(group, 0)]
    assert len(images) == len(ARRAYS)
    for data, array in zip(images, ARRAYS, strict=True):
        assert np.array_equal(decode_image(data, 5).permute(1, 2, 0), array)
        assert np.array_equal(decode_image(data, Bands(2, (5, 1)))[0], array[..., 4])


def test_cells_of_other_shapes():
    image = [[1, 2], [3, 4]]
    kinds = pa.list_(pa.list_(pa.int16()))
    for cell in (pa.scalar(image, kinds), pa.scalar(image, pa.large_list(pa.list_(pa.int16(), 2)))):
        pixels = decode_image(array_file(cell), Bands(1, None, ((0.0, 4.0),)))
        assert pixels[0].tolist() == [
            [63.75, 127.5],
            [191.25, 255],
        ]
    assert array_file(pa.scalar(None, kinds)) == b""
    for broken in ([[1, 2], [3]], [[1, 2], None], []):
        with pytest.raises(ValueError, match="no image"):
            decode_image(array_file(pa.scalar(broken, kinds)), 1)


def test_column_of_arrays_is_found_if_there_are_no_images():
    features = {"bands": datasets.Array3D((4, 4, 2), "uint8"), "mask": datasets.Array2D((4, 4), "uint8")}
    assert find_image_column(features, None) == "bands" and find_image_column(features, "mask") == "mask"
    assert find_image_column(features | {"image": datasets.Image()}, None) == "image"
    with pytest.raises(UserError, match="holds List"):
        find_image_column({"tags": datasets.List(datasets.Value("string"))}, "tags")
