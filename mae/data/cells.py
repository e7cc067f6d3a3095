"""Images in the cells of a column: encoded files, paths, or arrays of numbers."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Array2D, Array3D, LargeList, List


ARRAY_FEATURES = (Array2D, Array3D, List, LargeList)


def is_array_feature(feature: Any) -> bool:
    """Whether a feature of `datasets` may hold arrays: Array2D, Array3D or nested lists."""
    if isinstance(feature, (List, LargeList)):
        return isinstance(feature.feature, ARRAY_FEATURES)
    return isinstance(feature, (Array2D, Array3D))


def array_file(cell: pa.Scalar) -> bytes:
    """An array in a cell, of shape (H, W), (H, W, C) or (C, H, W), as an `.npy` file; nothing for an empty cell."""
    if isinstance(cell, pa.ExtensionScalar):
        cell = cell.value
    if cell is None or not cell.is_valid:
        return b""
    values, shape = cell.values, [len(cell.values)]
    while _is_list(values.type) or isinstance(values, pa.ExtensionArray):
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
            continue
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:  # rows of several lengths: no image, which decoding reports
            shape, values = [0], pa.array([], pa.uint8())
            break
        shape.append(lengths[0])
        values = values.flatten()
    file = io.BytesIO()
    np.save(file, values.to_numpy(zero_copy_only=False).reshape(shape), allow_pickle=False)
    return file.getvalue()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
