"""The data that flags name, in a training and a validation part."""

import json
import shutil

import datasets
import pytest
from huggingface_hub import constants

from mae.arguments.data import DataArguments
from mae.arguments.recipes import ClassificationFlags, PreTrainingRecipe
from mae.cli.data import data_name, open_labelled_splits, open_splits, set_cache, short_data_name
from mae.utils.errors import UserError
from tests.support.data import EMOJI, write_parquet


def sizes(parts):
    return [None if part is None else len(part) for part in parts]


@pytest.fixture
def folder(tmp_path, emoji_bytes):
    """90 training images, without a split for validation."""
    return write_parquet(tmp_path / "data" / "train.parquet", emoji_bytes[:90], 16).parent


@pytest.mark.parametrize(
    "others, share, expected",
    [
        ([], None, [90, None]),
        ([], 0.2, [72, 18]),
        (["test"], None, [90, 6]),
        (["test"], 0.2, [72, 18]),  # a test split is not touched if images are held out
        (["validation"], 0.2, [90, 6]),
        (["test", "validation"], None, [90, 6]),
    ],
)
def test_validation_images_of_parquet_files(folder, emoji_bytes, others, share, expected, caplog):
    caplog.set_level("INFO", logger="mae")
    for number, name in enumerate(others):
        write_parquet(folder / f"{name}.parquet", emoji_bytes[90 + number : 96 + number], 6)
    found = sizes(open_splits(DataArguments(dataset_name=str(folder), train_val_split=share), 3, 0))
    assert found == pytest.approx(expected, abs=3) if expected[1] == 18 else found == expected
    assert ("--train_val_split has no effect" in caplog.text) == (share is not None and "validation" in others)


def test_validation_images_of_folders(tmp_path, image_folder):
    other = tmp_path / "other"
    shutil.copytree(image_folder / "group0", other)
    train = {"train_dir": str(image_folder)}
    assert sizes(open_splits(DataArguments(**train), 3, 0)) == [60, None]
    assert sizes(open_splits(DataArguments(**train, validation_dir=str(other)), 3, 0)) == [60, 20]
    both = open_splits(DataArguments(**train, validation_dir=str(other), train_val_split=0.5), 3, 0)
    assert sizes(both) == [60, 20]
    first, second = open_splits(DataArguments(**train, train_val_split=0.5), 3, 0)
    assert len(first) + len(second) == 60 and 20 <= len(second) <= 40


def test_sample_of_the_training_images_follows_from_the_seed(image_folder):
    def names(seed):
        recipe = PreTrainingRecipe(train_dir=str(image_folder), max_train_samples=10, seed=seed)
        source, _ = open_splits(recipe, 3, 0)
        return [source.origin(group, 0)[0] for group, size in enumerate(source.group_sizes) if size]

    assert len(names(1)) == 10 and names(1) == names(1) != names(2)


def test_labelled_sample_is_stratified_by_class():
    flags = ClassificationFlags(dataset_name=str(EMOJI), max_train_samples=90, from_scratch=True)
    (source, labels), (held_out, other) = open_labelled_splits(flags, 3, 0, max_eval_samples=20)
    assert len(source) == len(labels.values) == 90 and len(held_out) == len(other.values) == 20
    assert set(labels.values.tolist()) == set(range(9)) and labels.names == other.names


def test_labels_without_validation_images_are_refused_with_advice(tmp_path):
    (train,) = EMOJI.glob("train-*.parquet")
    with pytest.raises(UserError, match="--train_val_split 0.1"):
        open_labelled_splits(ClassificationFlags(dataset_name=str(train), from_scratch=True), 3, 0)


def test_name_of_the_data_repeats_it():
    data = DataArguments(dataset_name="a/b", dataset_config_name="c", image_column_name="d", streaming=False)
    assert data_name(data, "0" * 40) == (
        f"--dataset_name a/b --dataset_config_name c --dataset_revision {'0' * 40} --image_column_name d "
        "--no_streaming"
    )
    assert data_name(DataArguments(train_dir="x/y"), None) == "--train_dir x/y"


def test_card_has_no_folder_of_this_machine(tmp_path, monkeypatch):
    folder = tmp_path / "my images"
    folder.mkdir()
    assert short_data_name(DataArguments(train_dir=str(folder))) == "the images of my images"
    monkeypatch.chdir(folder)
    assert short_data_name(DataArguments(train_dir=".")) == "the images of my images"
    assert short_data_name(DataArguments(dataset_name="owner/set")) == "the images of owner/set"


def test_cache_dir_holds_models_and_data(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "before")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "before")
    set_cache(None)
    assert json.dumps([constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE]) == '["before", "before"]'
    set_cache(str(tmp_path))
    assert constants.HF_HUB_CACHE == str(tmp_path) and datasets.config.HF_DATASETS_CACHE == tmp_path / "datasets"
