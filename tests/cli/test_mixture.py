"""Several data sets in one run, as a user names them."""

import json

import pytest
import yaml

from mae.arguments.recipes import PreTrainingRecipe
from mae.cli.mixture import open_mixture
from mae.data.opening import open_dataset
from tests.support.data import write_parquet
from tests.support.loopback import upload
from tests.support.runs import TINY, begin, exact, kill, metrics, start, train


@pytest.fixture(scope="module")
def two(tmp_path_factory, emoji_bytes):
    """A Parquet file on this machine, and a data set on the Hub with its commit."""
    folder = tmp_path_factory.mktemp("two")
    local = write_parquet(folder / "local.parquet", emoji_bytes[:48], 16)
    write_parquet(folder / "hub" / "train.parquet", emoji_bytes[48:96], 16)
    return local, upload("second", folder / "hub")


def test_mixture_is_named_with_weights_and_commits(two, tmp_path):
    local, sha = two
    flags = ["--dataset_name", local, "me/second", "--dataset_weights", "3", "1", *TINY]
    lines = train(tmp_path / "run", *flags, "--max_steps", "16")
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert [part["weight"] for part in identity["parts"]] == [0.75, 0.25] and identity["images"] == 96
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["dataset_name"] == [str(local), f"me/second@{sha}"] and recipe["dataset_weights"] == [3, 1]
    assert "dataset_revision" not in recipe
    card = (tmp_path / "run" / "README.md").read_text()
    assert "the images of local.parquet (75.0%) and me/second (25.0%)" in card and "- me/second\n" in card
    assert f"| 25.0 % of the samples | [me/second](https://huggingface.co/datasets/me/second) at `{sha}`" in card
    # The recipe repeats the run, in two processes too. Their sums of gradients are rounded in another order.
    again = ["--recipe", tmp_path / "run" / "recipe.yaml", "--per_device_train_batch_size", "4"]
    digests = [line["samples_digest"] for line in train(tmp_path / "again", *again, processes=2)]
    assert digests == [line["samples_digest"] for line in lines]


def test_mixture_resumes_and_refuses_other_weights(two, tmp_path):
    local, _ = two
    flags = ["--dataset_name", local, "me/second", *TINY, "--max_steps", "40"]
    whole = train(tmp_path / "whole", *flags)
    kill(begin(tmp_path / "run", *flags, step=15))
    refused = start("--output_dir", tmp_path / "run", *flags, "--dataset_weights", "0.9", "0.1")
    assert refused.returncode and "weight" in refused.stderr
    assert start("--output_dir", tmp_path / "run", *flags).returncode == 0
    assert exact(metrics(tmp_path / "run")) == exact(whole)


def test_folders_of_one_name_and_validation_splits(parquet_folder, tmp_path, emoji_bytes):
    paths = [str(tmp_path / name / "train.parquet") for name in "ab"]
    write_parquet(tmp_path / "a" / "train.parquet", emoji_bytes[:10], 5)
    write_parquet(tmp_path / "b" / "train.parquet", emoji_bytes[10:20], 5)
    recipe = PreTrainingRecipe(dataset_name=[*paths, str(parquet_folder)])
    mixture, validation = open_mixture(recipe, lambda part: open_dataset(part.dataset_name))
    assert mixture.names == ["1.train.parquet", "2.train.parquet", parquet_folder.name]
    assert mixture.paths == recipe.dataset_name and len(validation) == 12
