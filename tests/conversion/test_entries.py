"""Weights under other entries of a file, and behind prefixes of their names."""

import pytest
import torch
from safetensors.torch import save_file

from mae.conversion.entries import choose_entry, choose_prefix, find_prefixes
from mae.conversion.layouts import OFFICIAL, VIT_MAE, VIT_MAE_IN_MEMORY, from_native
from mae.conversion.loading import load_checkpoint
from mae.conversion.saving import full_state_dict
from mae.utils.errors import UserError
from tests.support.checkpoints import TINY_HEADS, assert_same_state, make_model_of_kind, save_torch


MODEL = make_model_of_kind("encoder")
STATE = MODEL.state_dict()
HEAD = {"head.weight": torch.zeros(2, 3)}  # of another model


def behind(prefix, tensors=STATE):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def load(path, content, **choices):
    return load_checkpoint(save_torch(path, content), num_attention_heads=2, **choices)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model._orig_mod."]
)
def test_weights_of_a_wrapped_model_load(prefix, tmp_path):
    assert_same_state(load(tmp_path / "wrapped.pth", behind(prefix))[0], MODEL)


def test_weights_of_a_compiled_model_load(tmp_path):
    compiled = torch.compile(MODEL)
    path = save_torch(tmp_path / "compiled.pth", compiled.state_dict())
    assert all(name.startswith("_orig_mod.") for name in torch.load(path))
    model, report = load_checkpoint(path, num_attention_heads=2)
    assert_same_state(model, MODEL)
    assert not report.changed


def test_blocks_that_are_compiled_one_by_one_load(tmp_path):
    state = {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in STATE.items()}
    assert_same_state(load(tmp_path / "blocks.pth", state)[0], MODEL)


def test_wrapped_and_plain_names_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="tensors twice"):
        load(tmp_path / "twice.pth", {**STATE, **behind("_orig_mod.")})


@pytest.mark.parametrize("entry", ["teacher", "student", "encoder", "ema", "model.encoder"])
def test_only_set_of_weights_is_found_under_any_entry(entry, tmp_path):
    content = STATE
    for name in reversed(entry.split(".")):
        content = {name: content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3}
    model, report = load(tmp_path / "nested.pth", content)
    assert_same_state(model, MODEL)
    assert f"weights of the entry '{entry}'" in str(report)


def test_other_entries_with_tensors_are_reported(tmp_path):
    _, report = load(tmp_path / "parts.pth", {"encoder": STATE, "projector": HEAD})
    assert "projector, other weights in the file, left out" in str(report)


def test_one_of_several_sets_of_weights_is_chosen_by_its_entry(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    content = {"student": other, "teacher": STATE, "center": torch.zeros(3)}
    path = save_torch(tmp_path / "dino.pth", content)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    for word in ("student (30 tensors)", "teacher (30 tensors)", "state_key", "--state_key"):
        assert word in str(error.value)
    assert_same_state(load_checkpoint(path, state_key="teacher", num_attention_heads=2)[0], MODEL)


def test_entry_that_is_not_there_lists_those_that_are():
    with pytest.raises(UserError, match=r"'teacher'.* model \(30 tensors\)"):
        choose_entry("it", {"model": STATE, "optimizer": {}}, "teacher")
    with pytest.raises(UserError, match=r"top level. \(30 tensors\)"):
        choose_entry("it", STATE, "teacher")


def test_usual_entry_wins_over_averages(tmp_path):
    """As timm's and the official trainer write them."""
    average = {name: tensor * 0 for name, tensor in STATE.items()}
    model, report = load(tmp_path / "a.pth.tar", {"state_dict": STATE, "state_dict_ema": average})
    assert_same_state(model, MODEL)
    assert "state_dict_ema, other weights in the file, left out" in str(report)
    averaged, _ = load(tmp_path / "b.pth", {"model": STATE, "model_ema": average}, state_key="model_ema")
    assert averaged.norm.bias.eq(0).all()


def test_usual_entry_of_a_pickle_in_a_directory_is_found(tmp_path):
    MODEL.config.save_pretrained(tmp_path)
    save_torch(tmp_path / "pytorch_model.bin", {"model": STATE, "model_ema": STATE})
    model, report = load_checkpoint(tmp_path)
    assert_same_state(model, MODEL)
    assert "model_ema, other weights" in str(report)


def test_entries_that_hold_themselves_end():
    content = {"model": STATE}
    content["itself"] = content
    assert choose_entry("it", content)[0] is STATE


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "net.encoder."])
def test_common_prefix_is_removed_and_reported(prefix, tmp_path):
    model, report = load(tmp_path / "prefix.pth", {"state_dict": behind(prefix)})
    assert_same_state(model, MODEL)
    assert f"prefix '{prefix}' removed" in str(report)


def test_checkpoint_of_lightning_loads(tmp_path):
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": behind("model."),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"lr": 1e-3},
    }
    assert_same_state(load(tmp_path / "last.ckpt", content)[0], MODEL)


def test_prefix_of_a_safetensors_file_is_removed(tmp_path):
    save_file(behind("model."), tmp_path / "model.safetensors")
    assert_same_state(load_checkpoint(tmp_path / "model.safetensors", num_attention_heads=2)[0], MODEL)


@pytest.mark.parametrize("layout", [OFFICIAL, VIT_MAE, VIT_MAE_IN_MEMORY])
def test_official_model_as_the_attribute_mae_is_not_taken_for_a_native_one(layout, tmp_path):
    model = make_model_of_kind("pretraining")
    state = behind("mae.", from_native(full_state_dict(model), layout))
    loaded, _ = load_checkpoint(save_torch(tmp_path / "mae.pth", state), **TINY_HEADS)
    assert_same_state(loaded, model)


@pytest.mark.parametrize("kind", ["encoder", "pretraining", "classification_cls"])
def test_names_of_this_package_have_no_prefix(kind):
    assert find_prefixes(full_state_dict(make_model_of_kind(kind))) == [""]
    assert find_prefixes(make_model_of_kind(kind).state_dict()) == [""]


def test_tensors_beside_a_prefix_are_left_out_only_if_asked_for(tmp_path):
    path = save_torch(tmp_path / "beside.pth", {**behind("backbone."), **HEAD})
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    for word in ("head.weight", "backbone. (30 tensors)", "--prefix"):
        assert word in str(error.value)
    for prefix in ("backbone", "backbone."):
        model, report = load_checkpoint(path, prefix=prefix, num_attention_heads=2)
        assert_same_state(model, MODEL)
        assert "left out: head.weight" in str(report)


def test_one_of_several_prefixes_is_chosen_by_its_name(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    tensors = {**behind("module.student.", other), **behind("module.teacher.")}
    path = save_torch(tmp_path / "two.pth", tensors)
    with pytest.raises(UserError, match=r"several models.* student. \(30 tensors\), teacher. \(30 tensors\)"):
        load_checkpoint(path)
    for prefix in ("teacher", "module.teacher."):
        assert_same_state(load_checkpoint(path, prefix=prefix, num_attention_heads=2)[0], MODEL)


def test_prefix_that_is_not_there_lists_those_that_are():
    with pytest.raises(UserError, match=r"starts with 'teacher.'.* student. \(30 tensors\)"):
        choose_prefix("it", behind("student."), "teacher")
    with pytest.raises(UserError, match="Names start with head"):
        choose_prefix("it", HEAD, "teacher")


def test_empty_prefix_keeps_the_names():
    assert choose_prefix("it", behind("student."), "")[0].keys() == behind("student.").keys()


def test_metadata_of_a_file_is_no_note(tmp_path):
    save_file(STATE, tmp_path / "noted.safetensors", metadata={"notes": "hello"})
    assert not load_checkpoint(tmp_path / "noted.safetensors", num_attention_heads=2)[1].changed
