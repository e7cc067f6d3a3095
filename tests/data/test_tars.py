"""Tar shards as sources: rows by `tarfile`, requests and faults of the Hub of the tests."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from mae.data.batch import samples_digest
from mae.data.labels import read_labels
from mae.data.opening import open_dataset
from mae.utils import retries
from mae.utils.errors import DataError, UserError
from tests.support.data import write_tar
from tests.support.loopback import HUB, upload
from tests.support.samples import assert_same, batches


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
    monkeypatch.setattr("mae.data.tars.GROUP_ROWS", 16)


def samples(images: list[bytes], first: int = 0) -> list[tuple[str, bytes]]:
    """Members of labelled samples."""
    members = []
    for row, image in enumerate(images, first):
        members += [
            (f"{row:05}.cls", b"%d" % (row % 3)),
            (f"{row:05}.json", b'{"width": 72}'),
            (f"{row:05}.png", image),
        ]
    return members


@pytest.fixture(scope="module")
def tar_folder(tmp_path_factory, emoji_bytes) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tar(folder / "train-0000.tar", samples(emoji_bytes[:50]))
    write_tar(folder / "train-0001.tar", samples(emoji_bytes[50:90], 50), tarfile.PAX_FORMAT)
    write_tar(folder / "validation-0000.tar", samples(emoji_bytes[90:102], 90))
    return folder


@pytest.fixture(scope="module")
def tars_on_the_hub(tar_folder) -> tuple[str, str]:
    return "me/tars", upload("tars", tar_folder)


def all_rows(source) -> list[bytes]:
    return [row for group in range(len(source.group_sizes)) for row in source.read(group, 0)]


def test_rows_are_those_of_tarfile(tmp_path, emoji_bytes):
    """Names of any length, folders, links, hidden files and samples without an image."""
    odd = [
        ("d/" * 80 + "long.png", emoji_bytes[0]),
        ("é" * 60 + ".png", emoji_bytes[1]),
        ("._hidden.png", b"thumbnail"),
        ("a/0.json", b"{}"),
        ("a/1.PNG", emoji_bytes[2]),
        ("a/2.empty.png", b""),
    ]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / f"{format}.tar", odd, format)
        with tarfile.open(path, "a", format=format) as archive:
            folder, link = tarfile.TarInfo("folder.png"), tarfile.TarInfo("link.png")
            folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "a/1.PNG"
            archive.addfile(folder)
            archive.addfile(link)
            last = tarfile.TarInfo("last.png")
            last.size = len(emoji_bytes[3])
            archive.addfile(last, io.BytesIO(emoji_bytes[3]))
        source, validation = open_dataset(str(path))
        with tarfile.open(path) as archive:
            expected = [member for member in archive if member.isreg() and member.name.lower().endswith(".png")]
            expected = [member for member in expected if member.name != "._hidden.png"]
            assert all_rows(source) == [archive.extractfile(member).read() for member in expected]
        names = [source.origin(0, row) for row in range(len(source))]
        assert names == [(f"{path.name}/{member.name}", row) for row, member in enumerate(expected)]
        assert source.note == "Note: 1 samples of the tars hold no image file and are left out." and validation is None


def test_any_row_of_a_group_can_be_read_first(tar_folder, emoji_bytes):
    source, validation = open_dataset(str(tar_folder))
    assert source.group_sizes == [16, 16, 16, 2, 16, 16, 8] and validation.group_sizes == [12]
    start = 0
    for group, size in enumerate(source.group_sizes):
        for row in range(size):
            assert list(source.read(group, row)) == emoji_bytes[start + row : start + size]
        start += size


def test_labels_are_numbers_of_cls_or_words_of_json(tar_folder, tmp_path, emoji_bytes):
    labels = read_labels(open_dataset(str(tar_folder))[0], "--dataset_name tars")
    assert labels.values.tolist() == [row % 3 for row in range(90)]
    words = ["cat", "dog", "cat"]
    members = [
        member
        for row, word in enumerate(words)
        for member in ((f"{row}.png", emoji_bytes[row]), (f"{row}.json", b'{"label": "%s"}' % word.encode()))
    ]
    labels = read_labels(open_dataset(str(write_tar(tmp_path / "words.tar", members)))[0], "")
    assert [labels.names[value] for value in labels.values] == words


def test_several_images_of_a_sample_need_an_extension(tmp_path, emoji_bytes):
    members = [(f"{row}.{side}.png", emoji_bytes[2 * row + at]) for row in range(3) for at, side in enumerate("lr")]
    path = str(write_tar(tmp_path / "pairs.tar", members))
    with pytest.raises(UserError, match=r"pairs.tar.*several images.*\(l.png, r.png\).*--image_column_name"):
        open_dataset(path)
    left, right = (open_dataset(path, image_column_name=name)[0] for name in ("l.png", ".R.png"))
    assert all_rows(left) == emoji_bytes[0:6:2] and all_rows(right) == emoji_bytes[1:6:2]
    assert left.fingerprint != right.fingerprint
    with pytest.raises(UserError, match="no tif files. Their extensions: l.png, r.png"):
        open_dataset(path, image_column_name="tif")


def test_shards_on_the_hub_are_the_same_as_here(tars_on_the_hub, tar_folder):
    """Same sequence for 0 and 3 workers, 1 and 2 processes, and any restart."""
    name, sha = tars_on_the_hub
    source, validation = open_dataset(name)
    local, _ = open_dataset(str(tar_folder))
    assert source.revision == sha and local.revision is None and len(validation) == 12
    assert source.fingerprint == local.fingerprint and source.group_sizes == local.group_sizes
    whole = batches(local)
    assert_same(batches(source), whole)
    assert_same(batches(source, workers=3, start=40), whole[5:])
    parts = [batches(source, batch_size=4, index=index, processes=2) for index in range(2)]
    for one, *both in zip(whole, *parts, strict=True):
        assert samples_digest(one.digests) == samples_digest(torch.cat([part.digests for part in both]))


def test_index_is_cached_by_commit_and_resumes(tar_folder, tmp_path, monkeypatch):
    upload("cached", tar_folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    HUB.fault("GET", r"cdn.*", status=503, times=1)  # retried, by the client or by this package
    first, _ = open_dataset("me/cached", retry_minutes=1)
    kept = sorted((tmp_path / "tar_indexes").glob("*.npz"))
    assert len(kept) == 3
    HUB.requests.clear()
    again, _ = open_dataset("me/cached")
    assert not [request for request in HUB.requests if request.range] and again.fingerprint == first.fingerprint
    # One that is missing, and a damaged one.
    kept[0].unlink()
    kept[1].write_bytes(b"damaged")
    assert open_dataset("me/cached")[0].fingerprint == first.fingerprint
    assert len(sorted((tmp_path / "tar_indexes").glob("*.npz"))) == 3


def test_tar_that_ends_between_two_members_is_noted(tmp_path, emoji_bytes):
    path = write_tar(tmp_path / "open.tar", samples(emoji_bytes[:20]))
    with tarfile.open(path) as archive:
        end = archive.getmembers()[30].offset
    path.write_bytes(path.read_bytes()[:end])
    source, _ = open_dataset(str(path))
    assert len(source) == 10 and "no blocks of zeros end open.tar" in source.note


def test_tar_that_changes_while_it_is_read_is_named(tmp_path, emoji_bytes):
    path = write_tar(tmp_path / "changing.tar", samples(emoji_bytes[:40]))
    source, _ = open_dataset(str(path))
    write_tar(path, samples(emoji_bytes[1:41]))
    with pytest.raises(DataError, match="changing.tar/00.*truncated, or has changed since"):
        batches(source)


def test_tar_whose_headers_change_is_named(tmp_path, emoji_bytes):
    """The same sizes in the same places, under other names."""
    path = write_tar(tmp_path / "renamed.tar", samples(emoji_bytes[:40]))
    source, _ = open_dataset(str(path))
    write_tar(path, samples(emoji_bytes[:40], 50))
    with pytest.raises(DataError, match="renamed.tar.*has changed since"):
        list(source.read(0, 0))
