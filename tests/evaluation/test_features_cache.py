"""Features that are computed once."""

from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator

from mae.data.folders import open_folder
from mae.evaluation.features_cache import FrozenFeatures, features_key
from mae.utils.hashing import hash_weights
from modeling_mae import MAEForImageClassification
from tests.support.models import assert_close, tiny_model
from tests.support.samples import BrokenSource


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "features"


@pytest.fixture
def compute(image_folder, cache):
    """Features by a new object, and how often the encoder ran."""

    def compute(source=None, should_stop=lambda: False, change=0.0):
        model = tiny_model(MAEForImageClassification, num_labels=3)
        with torch.no_grad():
            model.mae.cls_token.add_(change)
        calls = []
        model.mae.register_forward_hook(lambda *_: calls.append(1))
        source = source or open_folder(str(image_folder), "--train_dir")
        features = FrozenFeatures(model, source, Accelerator(cpu=True), "training", batch_size=20, num_workers=0)
        return features(should_stop), calls

    return compute


def test_second_run_reads_what_the_first_computed(compute, cache):
    (first, calls), (second, none) = compute(), compute()
    assert len(calls) == 3 and not none and len(list(cache.iterdir())) == 1
    assert torch.equal(first.outputs["features"], second.outputs["features"])
    assert first.rows.tolist() == second.rows.tolist() == list(range(60))


def test_other_weights_have_other_features(compute, cache):
    (first, _), (second, calls) = compute(), compute(change=0.1)
    assert len(calls) == 3 and len(list(cache.iterdir())) == 2
    assert not torch.equal(first.outputs["features"], second.outputs["features"])


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink])
def test_damaged_file_is_computed_again(compute, cache, damage):
    first, _ = compute()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    damage(path)
    second, calls = compute()
    assert len(calls) == 3 and path.read_bytes() == whole
    assert_close(first.outputs["features"], second.outputs["features"], 0)


def test_cache_that_cannot_be_written_does_not_stop(compute, cache, caplog):
    caplog.set_level("INFO", logger="mae")
    cache.write_text("a file where the folder should be")
    outputs, _ = compute()
    assert len(outputs.rows) == 60 and "Note: the features are not cached" in caplog.text


def test_request_to_stop_leaves_no_file(compute, cache):
    outputs, _ = compute(should_stop=lambda: True)
    assert outputs is None and not cache.exists()


def test_images_that_cannot_be_read_are_named_each_time(compute, cache, emoji_bytes):
    for _ in range(2):
        outputs, calls = compute(BrokenSource([emoji_bytes[0], b"no image"]))
        assert len(outputs.skipped) == 1 and calls
    assert not cache.exists()


def test_key_follows_from_all_that_changes_features(image_folder, emoji_bytes):
    model = tiny_model(MAEForImageClassification, num_labels=3)
    source = open_folder(str(image_folder), "--train_dir")
    encoder = hash_weights(model.mae)
    keys = [
        features_key(model.config, encoder, source, "no", False),
        features_key(tiny_model(MAEForImageClassification, pooling="mean").config, encoder, source, "no", False),
        features_key(tiny_model(MAEForImageClassification, image_mean=0.1).config, encoder, source, "no", False),
        features_key(model.config, "other", source, "no", False),
        features_key(model.config, encoder, BrokenSource(emoji_bytes[:1]), "no", False),
        features_key(model.config, encoder, source, "bf16", False),
        features_key(model.config, encoder, source, "no", True),
    ]
    assert len(set(keys)) == len(keys) and keys[0] == features_key(model.config, encoder, source, "no", False)
