"""Directories of weights."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from mae.conversion.loading import load_checkpoint
from mae.utils.errors import UserError
from tests.support.checkpoints import assert_same_state, make_model_of_kind


@pytest.fixture
def divided(tmp_path):
    """A directory whose weights are divided into several files; its model, and the content of its index."""
    model = make_model_of_kind("encoder")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path, model, json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]


def write_index(folder, parts):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def test_divided_weights_load(divided):
    folder, model, _ = divided
    assert_same_state(load_checkpoint(folder)[0], model)


def test_safetensors_win_over_a_pickle_unless_it_is_named(divided):
    folder = divided[0]
    torch.save(make_model_of_kind("encoder").half().state_dict(), folder / "pytorch_model.bin")
    assert load_checkpoint(folder)[0].dtype == torch.float32
    named, _ = load_checkpoint(folder / "pytorch_model.bin")  # with the configuration of the directory
    assert named.dtype == torch.float16 and named.config.num_attention_heads == 2


def test_tensor_in_two_parts_is_refused(divided):
    folder, _, parts = divided
    (folder / "again.safetensors").write_bytes((folder / parts["norm.bias"]).read_bytes())
    write_index(folder, {**parts, "more": "again.safetensors"})
    with pytest.raises(UserError, match="repeats tensors of another part"):
        load_checkpoint(folder)


def test_missing_part_is_refused(divided):
    folder, _, parts = divided
    (folder / parts["norm.bias"]).unlink()
    with pytest.raises(UserError, match=f"{parts['norm.bias']} does not exist"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", 3])
def test_index_that_names_a_file_elsewhere_is_refused(name, divided):
    folder, _, parts = divided
    write_index(folder, {**parts, "norm.bias": name})
    with pytest.raises(UserError, match="not a file beside it"):
        load_checkpoint(folder)


def test_tensor_that_no_part_holds_is_refused(divided):
    folder, _, parts = divided
    write_index(folder, {**parts, "more": parts["norm.bias"]})
    with pytest.raises(UserError, match="no part holds: more"):
        load_checkpoint(folder)


def test_index_without_parts_is_refused(divided):
    (divided[0] / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        load_checkpoint(divided[0])


def test_directory_without_weights_is_refused(tmp_path):
    make_model_of_kind("encoder").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no weights: none of model.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000], ids=["cut", "list", "zero", "deep"])
def test_broken_configuration_is_refused(text, tmp_path):
    make_model_of_kind("encoder").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json (cannot be read|must hold a JSON object)"):
        load_checkpoint(tmp_path)


def test_revision_of_a_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="v1.* is for models on the Hub"):
        load_checkpoint(tmp_path, revision="v1")


def test_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load_checkpoint(tmp_path)
    save_file(make_model_of_kind("encoder").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"to read a file by itself, name it: .*weights.safetensors"):
        load_checkpoint(tmp_path)


def test_directory_of_another_model_is_refused(tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the model_type in its config.json is 'bert'"):
        load_checkpoint(tmp_path)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_model_of_kind("encoder").save_pretrained(tmp_path / "model")
    assert load_checkpoint(os.path.join("~", "model"))[1].layout == "mae"
