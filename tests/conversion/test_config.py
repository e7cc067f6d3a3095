"""The configuration of a checkpoint: stated, read from tensors, overridden."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.conversion.config import find_grid
from mae.conversion.layouts import OFFICIAL, VIT_MAE, from_native
from mae.conversion.loading import load_checkpoint, make_plan
from mae.conversion.saving import full_state_dict
from mae.conversion.weights import Weights
from mae.utils.errors import UserError
from modeling_mae import MAEModel, sincos_positions
from tests.support.checkpoints import (
    LABELS,
    TINY_HEADS,
    assert_close,
    assert_same_state,
    images_and_noise,
    make_model_of_kind,
    make_vit_mae,
    save_torch,
    write_official_checkpoint,
)


def test_heads_that_nothing_states_are_asked_for(tmp_path):
    path, tensors, _ = write_official_checkpoint(tmp_path, "official_pretrain_raw_pixels")
    weights = load_file(path)
    save_file(weights, path)  # without metadata
    with pytest.raises(UserError, match="48.* num_attention_heads"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="32.* decoder_num_attention_heads"):
        load_checkpoint(path, num_attention_heads=3)
    heads = {"num_attention_heads": 3, "decoder_num_attention_heads": 4}
    model, report = load_checkpoint(path, **heads)
    assert "norm_pix_loss=False" in report.assumed
    with torch.no_grad():
        assert_close(model(tensors["pixel_values"], noise=tensors["noise"]).logits, tensors["pred"])
    model, report = load_checkpoint(path, **heads, norm_pix_loss=True)
    assert model.config.norm_pix_loss and "norm_pix_loss=False" not in report.assumed


def test_settings_of_vit_mae_are_kept(tmp_path):
    """Also its epsilon, which is not the official one."""
    make_vit_mae(layer_norm_eps=1e-12, mask_ratio=0.5, hidden_dropout_prob=0.1).save_pretrained(tmp_path)
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.3, 0.4], "size": 32, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model, report = load_checkpoint(tmp_path)
    config = model.config
    assert (config.layer_norm_eps, config.mask_ratio, config.norm_pix_loss) == (1e-12, 0.5, True)
    assert (config.image_mean, config.image_std) == ([0.5, 0.5, 0.5], [0.2, 0.3, 0.4])
    assert "hidden_dropout_prob" in str(report)
    assert load_checkpoint(tmp_path, layer_norm_eps=1e-6)[0].config.layer_norm_eps == 1e-6
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_normalize": False}))
    config = load_checkpoint(tmp_path)[0].config
    assert (config.image_mean, config.image_std) == ([0.0] * 3, [1.0] * 3)


def test_mean_and_std_of_the_processor_win(tmp_path):
    """Also in a directory of this package, and if they are one number."""
    for kind, save in (("mae", make_model_of_kind("encoder")), ("vit_mae", make_vit_mae())):
        path = tmp_path / kind
        save.save_pretrained(path)
        processor = {"image_mean": 0.5, "image_std": 0.25, "do_normalize": True}
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
        config = load_checkpoint(path)[0].config
        assert (config.image_mean, config.image_std) == ([0.5] * 3, [0.25] * 3)


def test_grid_of_a_sincos_table_is_certain_and_of_another_is_a_square():
    """A sin-cos table tells its grid, even if the number of patches is a square; another table does not."""
    for grid in ((4, 4), (2, 8), (8, 2), (1, 16), (3, 5)):
        assert find_grid(sincos_positions(24, grid)) == (grid, True)
        assert find_grid(sincos_positions(24, grid).bfloat16()) == (grid, True)
    learned = torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(0))
    assert find_grid(learned) == ((4, 4), False)
    assert find_grid(learned[:, :16]) == (None, False)


@pytest.fixture
def rectangle():
    """A model for rectangles with learned positions, which do not tell their grid."""
    model = make_model_of_kind("pretraining", image_size=(16, 64))
    with torch.no_grad():
        model.mae.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_rectangle_is_read_from_a_sincos_table(tmp_path):
    model = make_model_of_kind("pretraining", image_size=(16, 64))
    path = save_torch(tmp_path / "sincos.pth", from_native(full_state_dict(model), OFFICIAL))
    loaded, report = load_checkpoint(path, **TINY_HEADS)
    assert loaded.config.image_size == (16, 64) and not any("image_size=" in line for line in report.assumed)


def test_square_is_assumed_unless_a_rectangle_is_asked_for(rectangle, tmp_path):
    path = save_torch(tmp_path / "learned.pth", from_native(full_state_dict(rectangle), OFFICIAL))
    _, report = load_checkpoint(path, **TINY_HEADS)
    assert "image_size=32" in report.assumed
    stated, report = load_checkpoint(path, image_size=(16, 64), **TINY_HEADS)
    assert_same_state(stated, rectangle)
    assert not report.changed and "positions for 2 x 8 patches" in str(report)


def test_image_size_that_a_file_states_wrongly_gives_way_to_one_that_fits(rectangle, tmp_path):
    content = {"model": from_native(full_state_dict(rectangle), OFFICIAL), "args": argparse.Namespace(input_size=64)}
    path = save_torch(tmp_path / "wrong.pth", content)
    with pytest.raises(UserError, match="64 pixels .* image_size"):
        load_checkpoint(path, **TINY_HEADS)
    assert_same_state(load_checkpoint(path, image_size=(16, 64), **TINY_HEADS)[0], rectangle)


def test_image_size_that_is_no_square_is_asked_for(tmp_path):
    model = make_model_of_kind("encoder", image_size=(24, 32))
    with torch.no_grad():
        model.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    path = save_torch(tmp_path / "odd.pth", model.state_dict())
    with pytest.raises(UserError, match="12 patches.* image_size"):
        load_checkpoint(path, num_attention_heads=2)
    assert_same_state(load_checkpoint(path, num_attention_heads=2, image_size=(24, 32))[0], model)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_attention_heads": 4}, "num_attention_heads=2.* not 4"),
        ({"hidden_size": 48}, "hidden_size=24.* not 48"),
        ({"decoder_num_hidden_layers": 1}, "decoder_num_hidden_layers=3.* not 1"),
        ({"hidden_act": "relu"}, "hidden_act='gelu'.* not 'relu'"),
        ({"hidden": 3}, "hidden is not a field"),
        ({"image_size": 33}, "image_size=33 .*patch_size=8"),
        ({"mask_ratio": 0.0}, "16"),
        ({"masking": "stripes"}, "masking"),
        ({"num_labels": -1}, "num_labels=-1"),
        ({"id2label": ["a"]}, "id2label=.'a'"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "id2label=.* num_labels=2"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_channels": "1"}, "num_channels='1'"),
        ({"patch_size": None}, "patch_size=None"),
    ],
)
def test_impossible_override_is_refused(overrides, message, tmp_path):
    make_model_of_kind("pretraining").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path, **overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, "hidden_size=48.* 24"),
        ({"decoder_num_hidden_layers": 2}, "decoder_num_hidden_layers=2.* 3"),
        ({"image_size": 64}, "16 patches.* 64 pixels in patches of 8 have 64"),
        ({"num_attention_heads": 5}, "hidden_size=24 .*num_attention_heads=5"),
        ({"num_attention_heads": "2"}, "num_attention_heads"),
        ({"model_type": None}, "the model_type in its config.json is None"),
        ({"model_type": []}, "the model_type in its config.json is .."),
        ({"dtype": []}, "config.json"),
        ({"model_type": "bert"}, "the model_type in its config.json is 'bert'"),
        ({"id2label": ["cat"]}, "config.json|id2label"),
    ],
)
def test_configuration_that_contradicts_the_tensors_is_refused(change, message, tmp_path):
    make_model_of_kind("pretraining").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_other_entries_of_a_configuration_are_kept(tmp_path):
    config = make_model_of_kind("encoder").config
    config.my_note = "from the second microscope"
    MAEModel(config).save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path)[0].config.my_note == "from the second microscope"


def test_settings_of_timm_are_translated_or_refused(tmp_path):
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, act_layer="relu").eval()
    arguments = {"act_layer": "relu", "img_size": 32, "num_classes": 3}
    timm.models.save_for_hf(
        vit,
        tmp_path,
        model_config={"label_names": ["cat", "dog", "eel"]},
        model_args=arguments,
        safe_serialization=True,
    )
    model, _ = load_checkpoint(tmp_path)
    assert model.config.hidden_act == "relu" and model.config.id2label == LABELS
    images, _ = images_and_noise()
    with torch.no_grad():
        assert_close(model(images).logits, vit(images))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["init_values"] = 1e-5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="timm's model_args init_values=1e-05 have no counterpart"):
        load_checkpoint(tmp_path)


def test_encoder_without_a_last_norm_has_mean_pooling():
    """A ViTMAE always has a norm, so that one without it is incomplete."""
    model = make_model_of_kind("encoder", pooling="mean")
    plan = make_plan(Weights("it", model.state_dict()), num_attention_heads=2)
    assert plan.config.pooling == "mean" and any("pooling=mean" in line for line in plan.report.assumed)
    with pytest.raises(UserError, match="missing .*: mae.norm.weight, mae.norm.bias"):
        make_plan(Weights("it", from_native(full_state_dict(model), VIT_MAE)), num_attention_heads=2)
