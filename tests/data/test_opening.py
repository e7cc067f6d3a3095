"""Opening folders and data sets."""

import time

import datasets
import pyarrow.parquet as pq
import pytest

from mae.data.opening import open_dataset
from mae.utils.errors import UserError
from tests.support.data import EMOJI, write_parquet


def test_embedded_data_is_whole_and_small():
    train, test = open_dataset(str(EMOJI))
    assert sum(train.group_sizes) == 1716 and sum(test.group_sizes) == 190
    assert len(train.group_sizes) > 8
    assert sum(file.stat().st_size for file in EMOJI.iterdir()) <= 8e6
    schema = pq.read_schema(EMOJI / "train-00000-of-00001.parquet")
    assert schema.names == ["image", "label"] and b"Smileys & Emotion" in schema.metadata[b"huggingface"]


def test_parquet_by_file_and_pattern(parquet_folder):
    whole, _ = open_dataset(str(parquet_folder))
    pattern, held_out = open_dataset(str(parquet_folder / "train-*.parquet"))
    assert pattern.fingerprint == whole.fingerprint and held_out is None
    one, _ = open_dataset(str(parquet_folder / "train-00000-of-00002.parquet"))
    assert sum(one.group_sizes) == 50 and one.fingerprint != whole.fingerprint


def test_column_of_images_is_found_or_named(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "photo.parquet", emoji_bytes[:8], 4, column="photo")
    assert open_dataset(str(path))[0].column == "photo"

    table = pq.read_table(path)
    bare = tmp_path / "bare.parquet"
    names = ["raw", "count"]
    raw = [row["bytes"] for row in table["photo"].to_pylist()]
    pq.write_table(type(table).from_pydict(dict(zip(names, [raw, list(range(8))]))), bare)
    with pytest.raises(UserError, match="no column of type Image.*Columns: raw, count"):
        open_dataset(str(bare))
    with pytest.raises(UserError, match="--image_column_name count .*Value"):
        open_dataset(str(bare), image_column_name="count")
    with pytest.raises(UserError, match="--image_column_name photo does not exist"):
        open_dataset(str(bare), image_column_name="photo")
    assert list(open_dataset(str(bare), image_column_name="raw")[0].read(0, 0)) == raw

    both = tmp_path / "both.parquet"
    features = '{"info": {"features": {"left": {"_type": "Image"}, "right": {"_type": "Image"}}}}'
    pair = type(table).from_arrays([table["photo"], table["photo"]], names=["left", "right"])
    pq.write_table(pair.replace_schema_metadata({"huggingface": features}), both)
    with pytest.raises(UserError, match="several image columns .left, right."):
        open_dataset(str(both))
    assert open_dataset(str(both), image_column_name="right")[0].column == "right"


def test_damaged_or_missing_file_is_named(tmp_path, emoji_bytes):
    path = write_parquet(tmp_path / "data.parquet", emoji_bytes[:8], 4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="data.parquet"):
        open_dataset(str(path))
    with pytest.raises(UserError, match="--dataset_name .* does not exist"):
        open_dataset(str(tmp_path / "nothing-*.parquet"))
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(str(tmp_path / "nothing"))
    empty = write_parquet(tmp_path / "empty.parquet", [], 4)
    with pytest.raises(UserError, match="holds no rows"):
        open_dataset(str(empty))


def test_folder_of_images_as_dataset_names_the_right_flag(image_folder):
    with pytest.raises(UserError, match="folder of image files.*--train_dir"):
        open_dataset(str(image_folder))


def saved(images: list[bytes], splits: bool) -> datasets.Dataset | datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({"image": images, "label": list(range(len(images)))}, features)
    return datasets.DatasetDict(train=whole, test=whole.select(range(3))) if splits else whole


@pytest.mark.parametrize("splits", [False, True])
def test_folder_of_save_to_disk_opens_row_by_row(tmp_path, emoji_bytes, splits):
    saved([{"bytes": data, "path": None} for data in emoji_bytes[:8]], splits).save_to_disk(tmp_path / "saved")
    source, validation = open_dataset(str(tmp_path / "saved"))
    assert [next(source.read(group, 0)) for group in range(8)] == emoji_bytes[:8]
    assert source.read_column("label").to_pylist() == list(range(8))
    assert (validation is None) != splits and (validation is None or len(validation) == 3)


def test_file_of_another_kind_is_named_and_never_asked_of_the_hub(tmp_path, hub):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"photos.zip is a file \(.zip\).*--train_dir"):
        open_dataset(str(tmp_path / "photos.zip"), retry_minutes=10)
    assert not hub.requests


def test_relative_path_that_exists_is_never_asked_of_the_hub(tmp_path, hub, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos.zip").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/photos.zip is a file"):
        open_dataset("data/photos.zip", retry_minutes=10)
    assert not hub.requests


def test_misspelt_name_fails_at_once_when_offline(monkeypatch, hub, tmp_path):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"--dataset_name data/photoz is neither .*did you mean data/photos\?"):
        open_dataset("data/photoz", retry_minutes=10)
    assert time.monotonic() - started < 20 and not hub.requests


@pytest.fixture
def silent_hub(hub, monkeypatch, tmp_path):
    """A Hub that answers no question, and a working directory with the folder data/photos."""
    hub.fault("GET", r".*", status=503, times=99)
    monkeypatch.setattr("mae.utils.retries.FIRST_DELAY", 0.01)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    return hub


@pytest.mark.parametrize("name, near", [("data/photoz", "data/photos"), ("dat", "data"), ("data/emoji", None)])
def test_name_that_may_be_a_mistyped_path_is_asked_of_the_hub_only_once(name, near, silent_hub):
    words = rf"{name} is neither a file nor a folder here"
    words += rf" \(did you mean {near}\?\)" if near else ""
    with pytest.raises(UserError, match=f"--dataset_name {words}, and cannot be opened from the Hub: .*503") as error:
        open_dataset(name, retry_minutes=10)
    assert "\n" not in str(error.value) and len(silent_hub.requests) == 1


def test_mistyped_path_that_the_hub_does_not_know_names_the_near_one(silent_hub):
    silent_hub.faults.clear()
    with pytest.raises(UserError, match=r"data/photoz is neither .*did you mean data/photos.* 404 "):
        open_dataset("data/photoz", retry_minutes=10)


@pytest.mark.parametrize("name", ["data/photos/emoji", "./photoz", "data/photo z", "data\\photoz", "data/photoz/"])
def test_name_that_the_hub_cannot_have_is_refused_without_asking(name, silent_hub):
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(name, retry_minutes=10)
    assert not silent_hub.requests


def test_name_on_a_silent_hub_is_retried_after_a_line_that_says_so(silent_hub, caplog):
    with caplog.at_level("INFO", logger="mae"), pytest.raises(UserError, match="me/photos cannot be opened: .*503"):
        open_dataset("me/photos", retry_minutes=0.01)
    first, *others = caplog.messages
    assert "me/photos is neither a file nor a folder here: asking the Hub" in first and silent_hub.url in first
    assert "retried for 0.01 minutes" in first and any("retrying in" in line for line in others)
