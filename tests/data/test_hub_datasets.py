"""Data sets on the Hub of the tests, and its faults: nothing lost, nothing read twice, every error in a line."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

from mae.data.batch import samples_digest
from mae.data.dataset import SampleDataset
from mae.data.folders import open_folder
from mae.data.loader import make_loader
from mae.data.opening import open_dataset
from mae.data.order import SampleOrder
from mae.data.parquet import read_footers
from mae.data.stream import SampleStream
from mae.data.transforms import PreTrainingTransform
from mae.utils import retries
from mae.utils.errors import DataError, UserError
from tests.support.data import ROOT, write_parquet, write_tar
from tests.support.fake_hub import Hub
from tests.support.loopback import upload
from tests.support.runs import TINY, metrics, run, start
from tests.support.samples import CONFIG, BrokenSource, assert_same, batches, encode


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Faults of the tests pass in a fraction of a second, and need not be waited for as long as real ones."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)


@pytest.fixture
def impatient(monkeypatch):
    """The clients' own attempts follow one another at once, so that ours begin."""
    without_sleep = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_sleep)


def test_a_data_set_on_the_hub_is_the_same_as_on_this_machine(parquet_on_the_hub, parquet_folder):
    name, sha = parquet_on_the_hub
    source, held_out = open_dataset(name)
    local, _ = open_dataset(str(parquet_folder))
    assert source.revision == sha and local.revision is None
    assert source.group_sizes == local.group_sizes and held_out.group_sizes == [6, 6]
    assert_same(batches(source), batches(local))
    assert_same(batches(source, workers=1, start=40), batches(local)[5:])
    parts = [batches(source, batch_size=4, index=index, processes=2) for index in range(2)]
    for ours, *both in zip(batches(source), *parts):
        assert samples_digest(ours.digests) == samples_digest(torch.cat([part.digests for part in both]))


def test_revisions_and_fingerprints(tmp_path, emoji_bytes):
    write_parquet(tmp_path / "train.parquet", emoji_bytes[:40], 8)
    first = upload("changing", tmp_path)
    before = open_dataset("me/changing")[0]
    HfApi().upload_file(
        path_or_fileobj=b"# Hello", path_in_repo="README.md", repo_id="me/changing", repo_type="dataset"
    )
    described = open_dataset("me/changing")[0]
    assert described.revision != before.revision and described.fingerprint == before.fingerprint
    # The same number of rows, one image another.
    write_parquet(tmp_path / "train.parquet", [*emoji_bytes[:39], emoji_bytes[50]], 8)
    second = upload("changing", tmp_path)
    changed = open_dataset("me/changing")[0]
    assert changed.revision == second and changed.fingerprint != before.fingerprint
    pinned = open_dataset("me/changing", revision=first)[0]
    assert pinned.revision == first and pinned.fingerprint == before.fingerprint
    assert list(pinned.read(4, 7)) == [emoji_bytes[39]] and list(changed.read(4, 7)) == [emoji_bytes[50]]
    with pytest.raises(UserError, match="--dataset_revision v1 is for data sets on the Hub"):
        open_dataset(str(tmp_path), revision="v1")


def test_pre_training_from_the_hub(tmp_path, emoji_bytes, hub: Hub):
    """The revision is shown and recorded; a changed data set is noticed, and the old one can be named."""
    path = write_parquet(tmp_path / "data" / "train.parquet", emoji_bytes[:40], 8)
    sha = upload("growing", path.parent)
    arguments = ["--dataset_name", "me/growing", *TINY, "--max_steps", 2, "--output_dir", tmp_path / "run"]
    hub.fault("GET", "/cdn/", delay=0.2, times=10**9)
    done = start(*arguments)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[0]["data_wait"] > 0.2  # the wait for the first windows is logged
    hub.faults.clear()
    assert f"Data: --dataset_name me/growing --dataset_revision {sha}\n" in done.stdout
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["dataset_revision"] == sha
    write_parquet(path, emoji_bytes[:48], 8)
    now = upload("growing", path.parent)
    done = start(*arguments)
    assert done.returncode == 2 and "data.images was 40, now 48" in done.stderr
    names = [f"--dataset_name me/growing --dataset_revision {revision}" for revision in (sha, now)]
    assert f"the data was {names[0]}, now {names[1]})" in done.stderr
    done = start(*arguments, "--dataset_revision", sha)
    assert done.returncode == 0 and "already finished" in done.stdout


def test_the_parquet_copy_of_a_data_set(files_on_the_hub, parquet_folder):
    """The way out that the errors name: the branch to which the Hub converts data sets."""
    name, _ = files_on_the_hub
    branch = "refs/convert/parquet"
    HfApi().create_branch(name, branch=branch, repo_type="dataset")
    paths = [entry.path for entry in HfApi().list_repo_tree(name, recursive=True, repo_type="dataset")]
    files = [path for path in paths if "." in path]
    HfApi().delete_files(name, files, revision=branch, repo_type="dataset")
    commit = HfApi().upload_folder(folder_path=parquet_folder, repo_id=name, revision=branch, repo_type="dataset")
    source, held_out = open_dataset(name, revision=branch)
    assert source.revision == commit.oid and sum(source.group_sizes) == 90 and sum(held_out.group_sizes) == 12
    assert_same(batches(source), batches(open_dataset(str(parquet_folder))[0]))


def test_image_files_on_the_hub(files_on_the_hub, image_folder, tmp_path):
    name, sha = files_on_the_hub
    source, held_out = open_dataset(name)
    assert source.revision == sha and held_out is None
    local = open_folder(str(image_folder), "--train_dir")
    assert sorted(source.names) == sorted(local.names)
    for group, file in enumerate(source.names):
        assert list(source.read(group, 0)) == [(image_folder / file).read_bytes()]
    assert open_dataset(name)[0].fingerprint == source.fingerprint
    # Splits by folders, an image of the same length that changes, and what cannot be read file by file.
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        for number in numbers:
            path = tmp_path / split / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path, compress_level=0)
    upload("splits", tmp_path)
    train, held_out = open_dataset("me/splits")
    assert train.names == [f"train/{number}.png" for number in range(8)] and len(held_out.names) == 4
    Image.new("RGB", (8, 8), (99, 0, 0)).save(tmp_path / "train" / "3.png", compress_level=0)
    upload("splits", tmp_path)
    changed, same = open_dataset("me/splits")
    assert changed.fingerprint != train.fingerprint and same.fingerprint == held_out.fingerprint
    assert list(train.read(3, 0)) != list(changed.read(3, 0))


def test_other_formats_are_downloaded(parquet_on_the_hub, files_on_the_hub, tmp_path, emoji_bytes):
    """Refused as a stream, with the ways out; read whole with random access otherwise."""
    tar = write_tar(
        tmp_path / "train-0000.tar", [(f"{row:03}.png", data) for row, data in enumerate(emoji_bytes[:60])]
    )
    (tmp_path / "train-0000.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    tar.unlink()
    upload("tar", tmp_path)
    with pytest.raises(UserError, match="--no_streaming.*refs/convert/parquet"):
        open_dataset("me/tar")
    source, _ = open_dataset("me/tar", streaming=False)
    assert source.group_sizes == [1] * 60 and len(source.revision) == 40 and source.origin(3, 0) == ("train", 3)
    assert [next(iter(source.read(row, 0))) for row in range(60)] == emoji_bytes[:60]
    assert open_dataset("me/tar", streaming=False)[0].fingerprint == source.fingerprint
    files, _ = open_dataset(files_on_the_hub[0], streaming=False)
    parquet, held_out = open_dataset(parquet_on_the_hub[0], streaming=False)
    assert len(parquet.group_sizes) == 90 and len(held_out.group_sizes) == 12
    assert len({source.fingerprint for source in (source, files, parquet, held_out)}) == 4


def test_offline_reads_what_was_downloaded_and_refuses_a_stream(parquet_on_the_hub, tmp_path):
    """What was downloaded is there; a stream is refused at once."""
    code = """
import sys
from mae.utils.errors import UserError
from mae.data.opening import open_dataset
for streaming in (False, True):
    try:
        print([len(source.group_sizes) for source in open_dataset("me/emoji", streaming=streaming, retry_minutes=10)])
    except UserError as error:
        print(error)
"""
    name, _ = parquet_on_the_hub
    open_dataset(name, streaming=False)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == "[90, 12]", done.stderr
    assert "HF_HUB_OFFLINE is set; a downloaded copy is here, which --no_streaming reads." in done.stdout


def test_configuration_of_a_dataset_is_chosen_by_its_flag(tmp_path, emoji_bytes):
    card = "---\nconfigs:\n"
    for name, count in (("small", 20), ("large", 40)):
        write_parquet(tmp_path / name / "train.parquet", emoji_bytes[:count], 8)
        card += f"- config_name: {name}\n  data_files: {name}/*.parquet\n"
    (tmp_path / "README.md").write_text(card + "---\n")
    upload("configurations", tmp_path)
    assert len(open_dataset("me/configurations", "large")[0].group_sizes) == 5
    for name, what in ((None, "small, large"), ("tiny", "small, large.*not tiny")):
        with pytest.raises(UserError, match=f"several configurations.*--dataset_config_name.*{what}"):
            open_dataset("me/configurations", name)


def test_downloaded_data_trains(parquet_on_the_hub, tmp_path):
    name, sha = parquet_on_the_hub
    arguments = ["--dataset_name", name, "--no_streaming", *TINY, "--max_steps", 2, "--output_dir", tmp_path / "run"]
    done = run(*arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"Data: --dataset_name {name} --dataset_revision {sha} --no_streaming\n" in done.stdout


# What is read


def test_each_process_reads_its_own_row_groups(tmp_path, hub: Hub, monkeypatch):
    """Bytes of one process of two over an epoch: about half of the file, never all of it."""
    generator = np.random.default_rng(0)
    images = [encode(Image.fromarray(generator.integers(0, 256, (256, 256, 3), np.uint8)), "PNG") for _ in range(256)]
    # A page for each image, which is what is asked for at once where it is larger than a block.
    path = write_parquet(
        tmp_path / "train.parquet", images, 16, data_page_size=1, write_batch_size=1, use_dictionary=False
    )
    size = path.stat().st_size
    assert size > 40e6
    upload("large", tmp_path)
    source, _ = open_dataset("me/large")
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=64)
    hub.requests.clear()
    monkeypatch.setattr("mae.data.parquet.BLOCK_SIZE", 2**18)
    stream = SampleStream(source, order, 8, process_index=0, num_processes=2, stop=order.epoch_length)
    assert sum(len(batch) for batch in stream) == 128
    assert 2**17 < max(request.sent for request in hub.requests) <= 2**18
    sent = sum(request.sent for request in hub.requests if "/cdn/" in request.path)
    # Half of it; and where a lane begins within a row group what lies before, at most one for each of two lanes.
    assert 0.5 * size < sent < 0.5 * size + 2 * size / len(source.group_sizes) + 10_000, sent / size


@pytest.mark.parametrize("kind", ["parquet", "files"])
def test_a_slow_line_is_used_by_many_requests_at_once(kind, parquet_on_the_hub, files_on_the_hub, hub: Hub):
    source, _ = open_dataset((parquet_on_the_hub if kind == "parquet" else files_on_the_hub)[0])
    batches(source, stop=8)  # what is asked for once
    hub.fault("GET", r"/resolve/|/cdn/", delay=0.1, times=10**9)
    hub.most_active = 0
    batches(source, stop=24)
    assert 4 <= hub.most_active <= 16


@pytest.mark.parametrize("num_readers", [1, 16])
def test_memory_stays_flat(tmp_path, num_readers):
    """Over five epochs of 50 MB, of which at most 4 MB are read ahead, beside the row groups of 3 MB being read."""
    generator = np.random.default_rng(0)
    images = [generator.bytes(200_000) for _ in range(256)]
    source, _ = open_dataset(str(write_parquet(tmp_path / "train.parquet", images, row_group_size=16)))
    source.num_readers = num_readers
    order = SampleOrder(source.group_sizes, seed=0, lanes=4, shuffle_buffer_size=64)
    stream = SampleStream(source, order, 8, stop=5 * order.epoch_length, max_bytes_ahead=4 * 2**20)
    process, used, in_arrow, before = psutil.Process(), [], [], pa.total_allocated_bytes()
    for number, batch in enumerate(stream):
        assert all(len(sample.image) == 200_000 for sample in batch)
        del batch
        in_arrow.append(pa.total_allocated_bytes() - before)
        if number % 32 == 31:
            used.append(process.memory_info().rss / 2**20)
    # A row group that a reader reads, or that a lane goes on with, takes three times its size, now and then four.
    assert max(in_arrow) < 13e6 * (num_readers + order.lanes) and in_arrow[-1] < 10e6
    assert len(used) == 5
    if num_readers == 1:  # of many each has an arena of the allocator, which takes some epochs to fill
        assert max(used[1:]) - used[0] < 20, used


def test_an_index_is_kept(parquet_on_the_hub, hub: Hub, monkeypatch):
    """The footers of a commit are read once; of 10,000 files too."""
    name, _ = parquet_on_the_hub
    open_dataset(name)
    hub.requests.clear()
    source, _ = open_dataset(name)
    assert len(source.group_sizes) == 7
    assert not [request for request in hub.requests if request.range and "train-00001" in request.path]

    read = []
    monkeypatch.setattr(
        "mae.data.parquet._read_footer", lambda file, minutes: read.append(file) or ("00", [[100, 10**6]])
    )
    files = [f"hf://datasets/me/huge@{'0' * 40}/data/{number:05}.parquet" for number in range(10_000)]
    first, digest = read_footers(files)
    assert len(first) == 10_000 == len(read) and sum(row_group.num_rows for row_group in first) == 10**6
    assert first[1].name == "00001.parquet"
    assert read_footers(files) == (first, digest) and len(read) == 10_000
    (kept,) = [path for path in Path(os.environ["HF_HOME"]).rglob("footers/*.json") if path.stat().st_size > 10**5]
    for damaged in ("{", "[]", '{"a": 1}'):
        kept.write_text(damaged)
        assert read_footers(files) == (first, digest) and len(read) == 20_000
        del read[10_000:]
    assert SampleOrder([row_group.num_rows for row_group in first], seed=0).window(0, 3, 5).segments


# Faults


def test_the_hub_is_busy_when_the_data_is_opened(parquet_on_the_hub, hub: Hub, capsys):
    name, _ = parquet_on_the_hub
    hub.fault("GET", r"/api/datasets/me/emoji", status=503, times=2)
    source, _ = open_dataset(name, retry_minutes=1)
    assert sum(source.group_sizes) == 90
    assert capsys.readouterr().err.count("retrying in") == 2
    hub.fault("GET", r"/api/datasets/me/emoji", status=503, times=99)
    with pytest.raises(UserError, match="--dataset_name me/emoji cannot be opened: .*503") as error:
        open_dataset(name, retry_minutes=0.001)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_permanent_error_is_reported_at_once(status, parquet_on_the_hub, hub: Hub, capsys):
    name, _ = parquet_on_the_hub
    hub.fault("GET", r"/api/datasets/me/emoji", status=status, times=99)
    with pytest.raises(UserError, match="hf auth login|ask for access|cannot be accessed"):
        open_dataset(name, retry_minutes=10)
    hub.faults.clear()
    with pytest.raises(UserError, match="me/never cannot be opened: 404 .*check the name"):
        open_dataset("me/never", retry_minutes=10)
    source, _ = open_dataset(name)
    hub.fault("GET", r"/cdn/", status=status, times=99)
    with pytest.raises(DataError, match="train-0000.* cannot be read at row .*(hf auth login|ask for access)"):
        batches(source)
    assert "retrying" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["parquet", "files"])
def test_drops_in_mid_read(kind, parquet_on_the_hub, files_on_the_hub, hub: Hub, impatient, capsys):
    """More of them in a row than the clients' five attempts, and a second time."""
    source, _ = open_dataset((parquet_on_the_hub if kind == "parquet" else files_on_the_hub)[0])
    expected = batches(source)
    source.num_readers = 1
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = SampleStream(source, order, 8, stop=96, retry_minutes=1)
    hub.fault("GET", r"/cdn/.*", drop_after=500, times=14)
    assert_same(list(make_loader(stream, SampleDataset(PreTrainingTransform(CONFIG)))), expected)
    assert 1 <= capsys.readouterr().err.count("; retrying in") <= 14 and not hub.faults[0].times


class FlakySource(BrokenSource):
    """Breaks off before some rows, once each."""

    def __init__(self, images, faults):
        super().__init__(images)
        self.faults = faults
        self.opened = []

    def read(self, group, first_row):
        self.opened.append(first_row)
        for row in range(first_row, len(self.images)):
            if row in self.faults:
                raise self.faults.pop(row)
            yield self.images[row]


def test_broken_connection_continues_at_the_same_row(emoji_bytes, capsys):
    images = emoji_bytes[:32]
    faults = {0: ConnectionError("reset"), 5: TimeoutError("timed out"), 6: ConnectionError("reset")}
    source = FlakySource(images, faults)
    order = SampleOrder(source.group_sizes, seed=1, lanes=1, shuffle_buffer_size=8)
    stream = SampleStream(source, order, 8, stop=32, retry_minutes=1)
    samples = [sample for batch in stream for sample in batch]
    expected = [sample for batch in SampleStream(BrokenSource(images), order, 8, stop=32) for sample in batch]
    assert samples == expected and source.opened[:4] == [0, 0, 5, 6]
    assert capsys.readouterr().err.count("Reading file: ") == 3


def test_faults_that_do_not_pass(emoji_bytes):
    for fault, minutes, message in [
        (ConnectionError("reset"), 0, "file cannot be read at row 3: reset"),
        (PermissionError("not yours"), 10, "file cannot be read at row 3: not yours"),
        (ValueError("Corrupt snappy data"), 10, "file cannot be read at row 3: Corrupt snappy data"),
    ]:
        source = FlakySource(emoji_bytes[:16], {3: fault})
        stream = SampleStream(source, SampleOrder([16], seed=0, lanes=1), 4, stop=16, retry_minutes=minutes)
        with pytest.raises(DataError, match=message):
            list(stream)


def test_a_file_that_is_truncated(tmp_path, emoji_bytes, hub: Hub):
    """The index is kept from a time when the file was whole; what is served now breaks off."""
    path = write_parquet(tmp_path / "train.parquet", emoji_bytes[:64], 16)
    source, _ = open_dataset(str(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="train.parquet (cannot be read at|has no) row"):
        batches(source, stop=64)
    # The same on the Hub: its server has less than its index says.
    path.write_bytes(data)
    upload("truncated", tmp_path)
    source, _ = open_dataset("me/truncated")
    stored = hub.blob(hashlib.sha256(data).hexdigest())
    stored.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="train.parquet (cannot be read at|has no) row"):
        batches(source, stop=64)


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_outage_is_waited_for_and_changes_no_sample(
    seconds, tmp_path, emoji_bytes, hub: Hub, monkeypatch, capsys, request
):
    """In mid-stream; the long one is longer than the clients' own patience, which is about 25 seconds."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.5)
    if seconds < 25:
        request.getfixturevalue("impatient")
    write_parquet(tmp_path / "train.parquet", emoji_bytes, row_group_size=4)
    upload("outage", tmp_path)
    source, _ = open_dataset("me/outage")
    order = SampleOrder(source.group_sizes, seed=1, lanes=4, shuffle_buffer_size=32)
    stream = iter(SampleStream(source, order, 8, stop=order.epoch_length, max_bytes_ahead=1, retry_minutes=5))
    samples = next(stream)
    hub.fault("GET", r"resolve|cdn", status=503, times=10**9)
    end = threading.Timer(seconds, hub.faults.clear)
    end.start()
    samples += [sample for batch in stream for sample in batch]
    end.join()
    local = SampleStream(open_dataset(str(tmp_path))[0], order, 8, stop=order.epoch_length)
    assert [sample.image for sample in samples] == [sample.image for batch in local for sample in batch]
    # A line for each delay, and not one for each of 16 threads.
    assert 1 <= capsys.readouterr().err.count("; retrying in") <= 8
