"""Saving in every layout: read back, by this package and by the other implementations."""

import pytest
import torch
from transformers import ViTMAEForPreTraining, ViTMAEModel

from mae.conversion.layouts import LAYOUTS
from mae.conversion.loading import load_checkpoint
from mae.conversion.saving import check_expressible, fold_head_norm, lost_in, save_checkpoint
from mae.utils.errors import UserError
from modeling_mae import MAEModel
from tests.support.checkpoints import (
    MODEL_KINDS,
    assert_close,
    assert_same_state,
    images_and_noise,
    make_model_of_kind,
)
from tests.support.models import DENSE_KINDS, model_of_kind


@pytest.mark.parametrize("kind", ["encoder", "pretraining"])
def test_round_trip_through_transformers(kind, tmp_path):
    """Through files, a model and save_pretrained of transformers."""
    model = make_model_of_kind(kind)
    save_checkpoint(model, tmp_path / "other", "vit_mae")
    cls = ViTMAEForPreTraining if kind == "pretraining" else ViTMAEModel
    vit_mae, info = cls.from_pretrained(tmp_path / "other", output_loading_info=True)
    assert not any(info.values())
    images, noise = images_and_noise()
    with torch.no_grad():
        output = "logits" if kind == "pretraining" else "last_hidden_state"
        assert_close(model(images, noise=noise)[output], vit_mae(images, noise=noise)[output])
    vit_mae.save_pretrained(tmp_path / "again")
    assert_same_state(load_checkpoint(tmp_path / "again")[0], model)


@pytest.mark.parametrize("kind", ["encoder", "classification_cls", "classification_mean"])
def test_round_trip_through_timm(kind, tmp_path):
    timm = pytest.importorskip("timm")
    model = make_model_of_kind(kind)
    save_checkpoint(model, tmp_path / "other", "timm")
    vit = timm.create_model(f"local-dir:{tmp_path / 'other'}", pretrained=True).eval()
    assert vit.pretrained_cfg["mean"] == model.config.image_mean
    images, _ = images_and_noise()
    with torch.no_grad():
        if kind == "encoder":
            assert_close(model(images).last_hidden_state, vit.forward_features(images))
        else:
            assert_close(model(images).logits, vit(images))
    torch.save(vit.state_dict(), tmp_path / "again.pt")
    again, report = load_checkpoint(tmp_path / "again.pt", num_attention_heads=2)
    assert_same_state(again, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_round_trip_through_every_layout(kind, layout, dtype, tmp_path):
    model = make_model_of_kind(kind, layer_norm_eps=1e-6 if layout != "mae" else 1e-5).to(dtype)
    if layout == "vit_mae" and kind.startswith("classification"):
        with pytest.raises(UserError, match="ViTMAE has no classifier"):
            save_checkpoint(model, tmp_path, layout)
        assert not list(tmp_path.iterdir())
        return
    save_checkpoint(model, tmp_path, layout)
    left_out = lost_in(model, layout)
    path = tmp_path / "checkpoint.pth" if layout == "official" else tmp_path
    again, report = load_checkpoint(path)
    assert report.layout == layout and not report.new and not report.unused and not report.assumed
    assert again.dtype == dtype
    if layout == "timm" and kind == "pretraining":
        assert all(name.startswith("decoder.") for name in left_out) and len(left_out) == 6 + 36 + 2
        model = model.mae
    else:
        assert not left_out and type(again) is type(model)
    assert_same_state(again, model)
    for name in ("num_attention_heads", "image_size", "image_mean", "image_std", "pooling", "layer_norm_eps"):
        assert getattr(again.config, name) == getattr(model.config, name), name
    if kind == "pretraining" and layout != "timm":
        assert again.config.norm_pix_loss and again.config.mask_ratio == 0.5
    if kind.startswith("classification"):
        assert again.config.id2label == model.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    if layout in ("mae", "official"):
        assert again.config.problem_type == model.config.problem_type


@pytest.mark.parametrize(
    ("kind", "fields", "layout", "message"),
    [
        ("pretraining", {"image_size": (32, 16)}, "vit_mae", "square"),
        ("encoder", {"pooling": "mean"}, "vit_mae", "mean pooling"),
        ("encoder", {"pooling": "mean"}, "timm", "without a last norm"),
        ("encoder", {"hidden_act": "relu"}, "official", "official code has hidden_act='gelu' only"),
        ("encoder", {"layer_norm_eps": 1e-2}, "timm", "timm code has layer_norm_eps=1e-06 only"),
        ("encoder", {"qkv_bias": False}, "official", "official code has qkv_bias=True only"),
        ("encoder", {"standardize_images": True}, "timm", "timm code does not standardise images"),
        (
            "pretraining",
            {"decoder_type": "cross_attention"},
            "official",
            "official code has no cross_attention",
        ),
        ("pretraining", {"decoder_type": "cross_attention"}, "vit_mae", "vit_mae code has no cross_attention"),
        ("classification_cls", {}, "vit_mae", "no classifier"),
    ],
)
def test_model_that_a_layout_cannot_express_is_refused(kind, fields, layout, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save_checkpoint(make_model_of_kind(kind, **fields), tmp_path, layout)
    assert not list(tmp_path.iterdir())


def test_rectangle_survives_the_official_layout(tmp_path):
    save_checkpoint(make_model_of_kind("pretraining", image_size=(32, 16)), tmp_path, "official")
    assert load_checkpoint(tmp_path / "checkpoint.pth")[0].config.image_size == (32, 16)


def test_folded_batch_norm_gives_the_same_logits():
    model = make_model_of_kind("classification_cls", head_batch_norm=True)
    with torch.no_grad():
        model.head_norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        model.head_norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    images, _ = images_and_noise()
    expected = model(images).logits
    with pytest.raises(UserError, match="batch norm"):
        check_expressible(model, "timm")
    fold_head_norm(model)
    assert not model.config.head_batch_norm and not any("head_norm" in name for name in model.state_dict())
    assert_close(model(images).logits, expected)
    check_expressible(model, "timm")


def test_settings_of_training_that_a_layout_lacks_are_listed():
    model = make_model_of_kind("pretraining", masking="block", pooling="mean")
    assert lost_in(model, "vit_mae") == ["masking=block", "pooling=mean"]
    assert not lost_in(model, "mae")
    model.config.update({"masking": "random", "pooling": "cls", "nodata": 0, "value_range": [[0.0, 4000.0]] * 3})
    for layout, lost in (("vit_mae", True), ("timm", True), ("mae", False), ("official", False)):
        found = lost_in(model, layout)
        assert {"nodata=0", "value_range=[[0.0, 4000.0], [0.0, 4000.0], [0.0, 4000.0]]"} <= set(found) or not lost
        assert lost or not any("=" in name for name in found)


@pytest.mark.parametrize("kind", DENSE_KINDS)
def test_dense_model_is_saved_in_its_own_layout_only(kind, tmp_path):
    model = model_of_kind(kind)
    assert lost_in(model, "mae") == []
    save_checkpoint(model, tmp_path / "own", "mae")
    loaded, report = load_checkpoint(tmp_path / "own")
    assert type(loaded) is type(model)
    assert_same_state(loaded, model)
    assert not report.new and not report.unused
    for layout in LAYOUTS.keys() - {"mae"}:
        with pytest.raises(UserError, match="no feature maps and no segmentation"):
            save_checkpoint(model, tmp_path / layout, layout)
        assert not (tmp_path / layout).exists()
    encoder, _ = load_checkpoint(tmp_path / "own", MAEModel)
    save_checkpoint(encoder, tmp_path / "official", "official")  # the way out that the error names
    again, _ = load_checkpoint(next((tmp_path / "official").glob("*.pth")))
    assert_same_state(again, encoder)
