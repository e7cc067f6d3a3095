"""Directories of weights."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from mae.conversion.loading import load_checkpoint
from mae.utils.errors import UserError
from tests.support.models import assert_same_state, make_model_of_kind


def state():
    return make_model_of_kind("encoder").state_dict()


def test_directories(tmp_path):
    model = make_model_of_kind("encoder")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    assert_same_state(load_checkpoint(tmp_path)[0], model)
    torch.save(make_model_of_kind("encoder").half().state_dict(), tmp_path / "pytorch_model.bin")
    assert load_checkpoint(tmp_path)[0].dtype == torch.float32
    named, _ = load_checkpoint(tmp_path / "pytorch_model.bin")  # that one, with the directory's configuration
    assert named.dtype == torch.float16 and named.config.num_attention_heads == 2
    (tmp_path / "pytorch_model.bin").unlink()

    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (tmp_path / "again.safetensors").write_bytes(parts[0].read_bytes())
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more": "again.safetensors"}}))
    with pytest.raises(UserError, match="repeats tensors of another part"):
        load_checkpoint(tmp_path)
    index.write_text(json.dumps(content))
    parts[0].rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"{parts[0].name} does not exist"):
        load_checkpoint(tmp_path)
    for name in ("../outside.safetensors", "/etc/passwd", "..", 3):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], "norm.bias": name}}))
        with pytest.raises(UserError, match="which is not a file beside it"):
            load_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more": parts[1].name}}))
    (tmp_path / "away").rename(parts[0])
    with pytest.raises(UserError, match="names tensors that no part holds: more"):
        load_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        load_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match="has no weights: none of model.safetensors"):
        load_checkpoint(tmp_path)
    for text in ("{", "[]", "\x00", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="config.json (cannot be read|must hold a JSON object)"):
            load_checkpoint(tmp_path)


def test_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load_checkpoint(tmp_path)
    save_file(state(), tmp_path / "weights.safetensors")
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
