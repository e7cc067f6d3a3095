"""One pass over the headers of tars: its requests, and tars that are damaged."""

import tarfile

import numpy as np
import pytest

from mae.data.tar_index import RangeFile, read_indexes
from mae.utils.errors import UserError
from tests.support.data import write_tar


def test_small_images_are_indexed_in_blocks_and_large_ones_by_header(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    small = write_tar(tmp_path / "small.tar", [(f"{row}.jpg", generator.bytes(2000)) for row in range(400)])
    large = write_tar(tmp_path / "large.tar", [(f"{row}.jpg", bytes(3 * 2**20)) for row in range(6)])
    fetched = []
    read_range = RangeFile._read_range

    def count(self, start, stop):
        fetched.append(stop - start)
        return read_range(self, start, stop)

    monkeypatch.setattr(RangeFile, "_read_range", count)
    read_indexes([str(small)])
    assert len(fetched) <= 6 and sum(fetched) <= small.stat().st_size
    fetched.clear()
    read_indexes([str(large)])
    assert len(fetched) <= 9 and sum(fetched) <= 64 * 1024


@pytest.mark.parametrize("lost", [1, 512, 1024 + 300, 10_000])
def test_truncated_tar_is_named(tmp_path, emoji_bytes, lost):
    path = write_tar(tmp_path / "cut.tar", [(f"{row}.png", image) for row, image in enumerate(emoji_bytes[:20])])
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset_data + len(emoji_bytes[19])
    path.write_bytes(path.read_bytes()[: end - lost])
    with pytest.raises(UserError, match="cut.tar is truncated"):
        read_indexes([str(path)])


def test_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "page.tar").write_text("<html>" * 500)
    with pytest.raises(UserError, match="page.tar is not an uncompressed tar"):
        read_indexes([str(tmp_path / "page.tar")])


def test_damaged_header_and_cut_header_are_named(tmp_path, emoji_bytes):
    path = write_tar(tmp_path / "bad.tar", [(f"{row}.png", image) for row, image in enumerate(emoji_bytes[:20])])
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[10].offset
    whole = path.read_bytes()
    for content in (whole[: offset + 300], whole[:offset] + b"x" * 512 + whole[offset + 512 :]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"bad.tar is truncated or damaged.*byte {offset:,} of"):
            read_indexes([str(path)])
