"""The data that flags name: which images are for training, which for validation."""

import logging
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from huggingface_hub import constants

from mae.arguments.classification import ClassificationFlags
from mae.arguments.model import FeatureArguments
from mae.arguments.recipes import PreTrainingRecipe
from mae.cli.data import data_name, open_labelled_splits, open_splits, set_cache, short_data_name
from mae.data.subsets import CachedSource
from mae.utils.errors import UserError
from tests.support.data import EMOJI, ROOT
from tests.support.runs import TINY, begin, exact, kill, train
from tests.support.samples import noise


NOTE = "Note: --train_val_split has no effect, because the data has validation images."


def write_split(path, images, labels):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    rows = [{"bytes": data, "path": None} for data in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": rows, "label": labels}, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory, emoji_bytes):
    """Folders with a train split of 40 images, 30 of them cats, and other splits by the folder's name."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "train_test", "train_validation_test"):
        for split in name.split("_"):
            count = {"train": 40, "validation": 6, "test": 10}[split]
            labels = [int(row % 4 == 0) for row in range(count)]
            write_split(folder / name / f"{split}.parquet", emoji_bytes[:count], labels)
    return folder


@pytest.fixture
def folders(tmp_path, emoji_bytes):
    for name, count in (("train", 8), ("val", 3)):
        for row in range(count):
            path = tmp_path / name / ("dog" if row % 2 else "cat") / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(emoji_bytes[row])
    return {"train_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")}


def sizes(data, **flags):
    """Numbers of training and validation images, without labels and with them."""
    recipe = PreTrainingRecipe(**data, **flags)
    train, validation = open_splits(recipe, 3, 0)
    unlabelled = len(train), None if validation is None else len(validation)
    try:
        both = open_labelled_splits(ClassificationFlags(**data, **flags), 3, 0)
    except UserError as error:
        assert "There are no validation images." in str(error) and "--train_val_split 0.1" in str(error)
        return unlabelled, None
    assert all(len(source) == len(labels.values) for source, labels in both)
    return unlabelled, tuple(len(source) for source, _ in both)


@pytest.mark.parametrize(
    ("splits", "share", "unlabelled", "labelled", "has_note"),
    [
        ("train", None, (40, None), None, False),
        ("train", 0.25, (30, 10), (30, 10), False),
        ("train_test", None, (40, 10), (40, 10), False),
        ("train_test", 0.25, (30, 10), (30, 10), False),
        ("train_validation_test", None, (40, 6), (40, 6), False),
        ("train_validation_test", 0.25, (40, 6), (40, 6), True),
    ],
)
def test_validation_images_with_and_without_train_val_split(
    data, caplog, splits, share, unlabelled, labelled, has_note
):
    with caplog.at_level(logging.INFO, "mae"):
        found = sizes({"dataset_name": str(data / splits)}, train_val_split=share)
    assert found == (unlabelled, labelled)
    assert caplog.messages == [NOTE] * 2 * has_note


def test_train_val_split_holds_out_training_images_although_there_is_a_test_split(data):
    recipe = ClassificationFlags(dataset_name=str(data / "train_test"), train_val_split=0.25)
    (train, _), (validation, _) = open_labelled_splits(recipe, 3, 0)
    files = {source.origin(group, 0)[0] for source in (train, validation) for group in range(len(source.group_sizes))
             if source.group_sizes[group]}  # fmt: skip
    assert files == {"train.parquet"}


@pytest.mark.parametrize("share, expected, notes", [(None, (8, 3), 0), (0.5, (8, 3), 2)])
def test_validation_dir_is_used_whatever_the_share(folders, caplog, share, expected, notes):
    with caplog.at_level(logging.INFO, "mae"):
        assert sizes(folders, train_val_split=share) == (expected, expected)
    assert caplog.messages == [NOTE] * notes


def test_held_out_images_are_stratified_by_class(data):
    recipe = ClassificationFlags(dataset_name=str(data / "train"), train_val_split=0.2)
    splits = open_labelled_splits(recipe, 3, 0)
    assert [Counter(labels.values.tolist()) for _, labels in splits] == [{0: 24, 1: 8}, {0: 6, 1: 2}]


def test_samples_are_stratified_and_kept_in_memory(data):
    arguments = FeatureArguments(
        model_name_or_path="model", dataset_name=str(data / "train_test"), max_train_samples=8, max_eval_samples=5
    )
    splits = open_labelled_splits(arguments, 3, 0, arguments.max_eval_samples)
    assert [len(source) for source, _ in splits] == [8, 5]
    assert all(isinstance(source, CachedSource) for source, _ in splits)
    assert Counter(splits[0][1].values.tolist()) == {0: 6, 1: 2}


def test_samples_of_pre_training_are_drawn_by_the_seed(data):
    def origins(**flags):
        source, _ = open_splits(PreTrainingRecipe(dataset_name=str(data / "train"), **flags), 3, 0)
        return [
            source.origin(group, row) for group, size in enumerate(source.group_sizes) for row in range(size)
        ], source.fingerprint

    rows, fingerprint = origins(max_train_samples=10)
    assert len(rows) == len(set(rows)) == 10 and (rows, fingerprint) == origins(max_train_samples=10)
    assert rows != origins(max_train_samples=10, seed=1)[0]
    assert fingerprint != origins(max_train_samples=11)[1] != origins()[1]
    assert len(origins(max_train_samples=100)[0]) == 40


@pytest.mark.parametrize("bad", ["train", "test"])
def test_labels_that_cannot_be_used_are_reported_with_their_data(tmp_path, emoji_bytes, bad):
    for split in ("train", "test"):
        labels = [0, 1, 0, -1 if split == bad else 1]
        write_split(tmp_path / "data" / f"{split}.parquet", emoji_bytes[:4], labels)
    with pytest.raises(UserError) as error:
        open_labelled_splits(ClassificationFlags(dataset_name=str(tmp_path / "data")), 3, 0)
    where = "the validation images of " if bad == "test" else ""
    assert str(error.value).startswith(f"{where}--dataset_name {tmp_path / 'data'}")
    assert ",:" not in str(error.value) and f"{bad}.parquet row 3" in str(error.value)


def test_command_without_data_uses_the_embedded_emoji(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "examples" / "run_mae.py")])
    recipe = PreTrainingRecipe()
    train, validation = open_splits(recipe, 3, 0)
    expected = [pq.read_metadata(next(EMOJI.glob(f"{split}-*"))).num_rows for split in ("train", "test")]
    assert [len(train), len(validation)] == expected
    assert short_data_name(recipe) == "the Noto emoji" and data_name(recipe, None) == f"--dataset_name {EMOJI}"


def test_names_of_data_for_cards_hide_folders_and_for_messages_are_flags(folders):
    recipe = PreTrainingRecipe(**folders)
    assert short_data_name(recipe) == "the images of train"
    assert data_name(recipe, None) == f"--train_dir {folders['train_dir']}"
    recipe = PreTrainingRecipe(dataset_name="me/data", image_column_name="jpg", streaming=False)
    assert short_data_name(recipe) == "the images of me/data"
    expected = "--dataset_name me/data --dataset_revision abc --image_column_name jpg --no_streaming"
    assert data_name(recipe, "abc") == expected


def test_cache_dir_is_where_downloads_go(tmp_path, monkeypatch, parquet_on_the_hub):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
    name, _ = parquet_on_the_hub
    recipe = PreTrainingRecipe(dataset_name=name, cache_dir=str(tmp_path / "cache"), streaming=False)
    train, _ = open_splits(recipe, 3, 0)
    assert len(train) == 90 and np.sum([path.is_file() for path in (tmp_path / "cache").rglob("*")]) > 3
    set_cache(None)
    assert Path(constants.HF_HUB_CACHE) == tmp_path / "cache"


@pytest.fixture
def scenes(tmp_path):
    """Two scenes that are 10 tiles of 32 pixels together, of which one is empty."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name, shape in (("a.tif", (96, 64, 3)), ("b.tif", (64, 64, 3))):
        scene = noise(*shape)
        scene[:32, :32] *= name == "a.tif"
        tifffile.imwrite(folder / name, scene, tile=(16, 16), photometric="rgb", compression="zlib")
    return folder


def test_scenes_of_a_folder_are_tiles(scenes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flags = {"train_dir": str(scenes), "validation_dir": str(scenes), "tile_size": 32}
    with caplog.at_level(logging.INFO, "mae"):
        train, validation = open_splits(PreTrainingRecipe(**flags, max_empty_share=0.9), 3, 0)
    assert train.group_sizes == validation.group_sizes == [6, 3] and "1 of 10 are empty" in caplog.text
    prints = {train.fingerprint}
    for more in ({}, {"tile_overlap": 8}, {"tile_size": 48}):
        prints.add(open_splits(PreTrainingRecipe(**{**flags, **more}), 3, 0)[0].fingerprint)
    assert len(prints) == 4


@pytest.mark.slow  # tests/data/test_tiles.py compares the batches
def test_run_on_tiles_is_the_same_after_a_kill_and_on_other_workers_and_ranks(scenes, tmp_path):
    arguments = [*TINY, "--train_dir", scenes, "--tile_size", 32, "--tile_overlap", 16, "--max_steps", 12]
    whole = train(tmp_path / "whole", *arguments)
    more = ["--dataloader_num_workers", 3, "--save_steps", 2]
    kill(begin(tmp_path / "killed", *arguments, *more, step=5))
    assert exact(train(tmp_path / "killed", *arguments, *more)) == exact(whole)
    both = train(tmp_path / "both", *arguments, "--per_device_train_batch_size", 4, "--cache_memory", 0, processes=2)
    assert [line["samples_digest"] for line in both] == [line["samples_digest"] for line in whole]
