"""Loading: against the implementations themselves and recorded outputs; every tensor is accounted for."""

from ast import literal_eval

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForPreTraining, ViTMAEForPreTraining, ViTMAEModel

from mae.conversion.layouts import LAYOUTS, OFFICIAL, VIT_MAE, from_native
from mae.conversion.loading import load_checkpoint, make_plan
from mae.conversion.saving import full_state_dict, save_checkpoint
from mae.conversion.weights import Weights, read_weights
from mae.utils.errors import UserError
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    sincos_positions,
)
from tests.support.checkpoints import (
    MODEL_KINDS,
    RELEASED_SHAPES,
    RELEASED_SIZES,
    assert_close,
    assert_same_state,
    images_and_noise,
    make_model_of_kind,
    make_vit_mae,
    meta_tensors,
    write_official_checkpoint,
)
from tests.support.models import CROSS, tiny_model


PARTS = {
    "pretrain_full": MAEForPreTraining,
    "pretrain_encoder": MAEModel,
    "finetuned_mean_pool": MAEForImageClassification,
}


ENCODER = make_model_of_kind("encoder").state_dict()


@pytest.mark.parametrize("size", RELEASED_SIZES)
@pytest.mark.parametrize("part", PARTS)
def test_released_file_gives_its_configuration_and_names(size, part):
    weights = Weights("file", meta_tensors(RELEASED_SHAPES[size][part]))
    plan = make_plan(weights)
    assert plan.model_class is PARTS[part] and plan.report.layout == "official"
    assert not plan.report.new and not plan.report.unused
    config = plan.config
    assert {name: getattr(config, name) for name in RELEASED_SIZES[size]} == RELEASED_SIZES[size]
    assert config.image_size == 224 and config.pooling == ("mean" if part == "finetuned_mean_pool" else "cls")
    assert config.intermediate_size == 4 * config.hidden_size
    if part == "pretrain_full":
        decoder = (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
        assert decoder == (512, 8, 16)
        assert any("norm_pix_loss" in line for line in plan.report.assumed)
    with torch.device("meta"):
        model = plan.model_class(config)
    names = {name: list(tensor.shape) for name, tensor in from_native(full_state_dict(model), OFFICIAL).items()}
    assert names == {name: list(shape) for name, shape in RELEASED_SHAPES[size][part].items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["official_pretrain_norm_pixels", "official_pretrain_raw_pixels"])
def test_official_pretraining_gives_the_recorded_outputs(name, suffix, tmp_path):
    path, tensors, metadata = write_official_checkpoint(tmp_path, name, suffix)
    heads = {key: literal_eval(metadata[key]) for key in ("num_attention_heads", "decoder_num_attention_heads")}
    model, report = load_checkpoint(path, **(heads if suffix == ".pth" else {}))
    assert type(model) is MAEForPreTraining and report.layout == "official"
    assert model.config.norm_pix_loss == (name == "official_pretrain_norm_pixels")
    assert not [line for line in report.assumed if "norm_pix_loss" in line or "heads" in line]
    assert not model.decoder.pos_embed.requires_grad and not model.training
    with torch.no_grad():
        outputs = model(tensors["pixel_values"], noise=tensors["noise"])
        latent = model.mae(tensors["pixel_values"], noise=tensors["noise"]).last_hidden_state
    assert_close(outputs.logits, tensors["pred"])
    assert_close(outputs.loss, tensors["loss"][0])
    assert_close(latent, tensors["latent"])


@pytest.mark.parametrize("name", ["official_classify_mean", "official_classify_cls"])
def test_official_classification_gives_the_recorded_outputs(name, tmp_path):
    path, tensors, _ = write_official_checkpoint(tmp_path, name)
    model, report = load_checkpoint(path)
    assert type(model) is MAEForImageClassification and model.config.num_labels == 7
    assert model.config.pooling == name.removeprefix("official_classify_")
    assert not report.new and not report.unused
    with torch.no_grad():
        assert_close(model(tensors["pixel_values"]).logits, tensors["logits"])


@pytest.mark.parametrize("cls", [ViTMAEForPreTraining, ViTMAEModel])
@pytest.mark.parametrize("spelling", ["hub", "saved", "in memory"])
def test_vit_mae_gives_the_outputs_of_transformers(cls, spelling, tmp_path):
    vit_mae = make_vit_mae(cls)
    path = tmp_path / "model"
    vit_mae.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    if spelling == "hub":  # the names of the files on the Hub, as design and documentation of transformers 4 have them
        tensors = {name.replace("decoder_encoder.layer", "decoder_layers"): value for name, value in tensors.items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if spelling == "in memory":
        tensors = vit_mae.state_dict()
        (path / "model.safetensors").unlink()
        torch.save(tensors, path / "pytorch_model.bin")
    assert any("decoder_encoder" in name for name in tensors) == (spelling == "saved" and cls is ViTMAEForPreTraining)

    model, report = load_checkpoint(path)
    assert report.layout == "vit_mae" and report.num_tensors == len(tensors) and not report.new and not report.unused
    images, noise = images_and_noise()
    with torch.no_grad():
        if cls is ViTMAEForPreTraining:
            actual, expected = model(images, noise=noise), vit_mae(images, noise=noise)
            assert_close(actual.logits, expected.logits)
            assert_close(actual.loss, expected.loss)
        else:
            assert_close(model(images, noise=noise).last_hidden_state, vit_mae(images, noise=noise).last_hidden_state)
    # Bit by bit, against the fused tensors made by hand.
    attention = vit_mae.get_submodule("vit" if cls is ViTMAEForPreTraining else "").layers[1].attention
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(full_state_dict(model)["mae.blocks.1.attn.qkv.weight"], qkv)


def test_checkpoint_of_several_types_becomes_float32(tmp_path):
    model = make_model_of_kind("encoder").half()
    tensors = model.state_dict()
    tensors["norm.bias"] = tensors["norm.bias"].float()
    torch.save(tensors, tmp_path / "mixed.pth")
    loaded, report = load_checkpoint(tmp_path / "mixed.pth", num_attention_heads=2)
    assert loaded.dtype == torch.float32 and "torch.float16 and torch.float32 made torch.float32" in str(report)
    assert_same_state(loaded, model.float())


def test_timm_features_with_mean_pooling_give_the_outputs_of_timm(tmp_path):
    """A timm model without a classifier has its norm after the pooling: a classifier of no labels."""
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", img_size=32).eval()
    timm.models.save_for_hf(vit, tmp_path / "timm", safe_serialization=True)
    model, report = load_checkpoint(tmp_path / "timm")
    assert report.layout == "timm" and type(model) is MAEForImageClassification and model.config.num_labels == 0
    assert model.config.num_attention_heads == 3 and model.config.image_size == 32
    images, _ = images_and_noise()
    with torch.no_grad():
        assert_close(model(images).logits, vit(images))
        encoder, report = load_checkpoint(tmp_path / "timm", MAEModel)
        assert_close(vit.fc_norm(encoder(images).pooler_output), vit(images))
    assert report.unused == ["fc_norm.weight", "fc_norm.bias"]


def test_encoder_gets_a_new_decoder(tmp_path):
    encoder = make_model_of_kind("encoder")
    encoder.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model, report = load_checkpoint(tmp_path, MAEForPreTraining, decoder_num_hidden_layers=1)
    assert "newly initialised: decoder (20 tensors)" in str(report)
    assert_same_state(model.mae, encoder)
    assert torch.equal(model.decoder.pos_embed, sincos_positions(16, (4, 4)))
    assert not model.decoder.pos_embed.requires_grad and not model.mae.pos_embed.requires_grad
    torch.manual_seed(3)
    again, _ = load_checkpoint(tmp_path, MAEForPreTraining, decoder_num_hidden_layers=1)
    assert_same_state(again, model)


def test_classifier_of_other_labels_gets_a_new_head(tmp_path):
    model = make_model_of_kind("classification_mean")
    model.save_pretrained(tmp_path)
    same, report = load_checkpoint(tmp_path, num_labels=3)
    assert_same_state(same, model)
    assert same.config.id2label == {0: "cat", 1: "dog", 2: "eel"} and not report.new
    other, report = load_checkpoint(tmp_path, num_labels=5)
    assert "newly initialised: head (2 tensors)" in str(report)
    assert other.head.weight.shape == (5, 24) and len(other.config.id2label) == 5
    assert torch.equal(other.fc_norm.weight, model.fc_norm.weight)
    encoder, report = load_checkpoint(tmp_path, MAEForPreTraining)
    assert report.unused == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert "mae.norm (2 tensors); decoder" in str(report)


def test_labels_by_their_names_make_a_classifier(tmp_path):
    make_model_of_kind("encoder").save_pretrained(tmp_path)
    model, _ = load_checkpoint(tmp_path, MAEForImageClassification, id2label={index: str(index) for index in range(5)})
    assert model.head.weight.shape[0] == 5 and model.config.id2label[4] == "4"


@pytest.mark.parametrize("size", [48, (16, 40)])
@pytest.mark.parametrize("layout", ["mae", "vit_mae", "official"])
def test_another_image_size_resamples_the_positions(layout, size, tmp_path):
    """As from_pretrained does, from any layout."""
    model = make_model_of_kind("pretraining")
    save_checkpoint(model, tmp_path / "native", "mae")
    save_checkpoint(model, tmp_path / layout, layout)
    expected = MAEForPreTraining.from_pretrained(tmp_path / "native", image_size=size)
    path = tmp_path / layout / ("checkpoint.pth" if layout == "official" else "")
    resized, report = load_checkpoint(path, image_size=size)
    assert_same_state(resized, expected)
    assert resized.config.image_size == size and "positions resampled from 4 x 4 to" in str(report)
    assert not resized.mae.pos_embed.requires_grad
    # The tables as the official fine-tuning code interpolates them.
    rows, columns = (side // 8 for side in ((size, size) if isinstance(size, int) else size))
    grid = model.mae.pos_embed[0, 1:].T.reshape(1, 24, 4, 4)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    assert_close(resized.mae.pos_embed[0, 1:], grid[0].flatten(1).T, 1e-6)


def test_another_patch_size_resamples_the_projections(tmp_path):
    model = make_model_of_kind("pretraining")
    model.save_pretrained(tmp_path)
    other, report = load_checkpoint(tmp_path, patch_size=4)
    new = {"mae.patch_embed.proj.weight", "decoder.pred.weight", "decoder.pred.bias"}
    assert not report.new and "positions resampled from 4 x 4 to 8 x 8" in str(report)
    assert "patch projections resampled from 8 x 8 to 4 x 4 pixels" in str(report)
    assert other.config.image_size == 32 and other.mae.patch_embed.proj.weight.shape == (24, 3, 4, 4)
    state, old = other.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], old[name]) for name in state if name not in new and "pos_embed" not in name)
    for cls in (MAEForPreTraining, AutoModelForPreTraining):
        expected = cls.from_pretrained(tmp_path, patch_size=4)
        assert_same_state(expected, other)
        assert (expected.config.image_size, expected.config.patch_size) == (32, 4)
    assert other(torch.randn(1, 3, 32, 32)).logits.shape == (1, 64, 48)


def test_every_problem_is_in_one_error():
    tensors = from_native(full_state_dict(make_model_of_kind("pretraining")), VIT_MAE)
    del tensors["decoder.decoder_norm.bias"], tensors["vit.encoder.layer.1.output.dense.weight"]
    tensors["vit.layernorm.weight"] = torch.zeros(23)
    tensors["vit.pooler.dense.weight"] = torch.zeros(3)
    tensors["decoder.decoder_layers.0.attention.attention.key.bias"] = torch.zeros(16)
    with pytest.raises(UserError) as error:
        make_plan(Weights("it", tensors), num_attention_heads=2, decoder_num_attention_heads=4)
    message = str(error.value)
    assert "unknown: vit.pooler.dense.weight;" in message
    assert "mae.blocks.1.mlp.fc2.weight, decoder.norm.bias;" in message
    assert "of the wrong shape: mae.norm.weight is (23,) instead of (24,)." in message


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (kind, layout)
        for kind in MODEL_KINDS
        for layout in LAYOUTS
        if not (layout == "vit_mae" and kind.startswith("classification"))  # without a classifier
        and not (layout == "timm" and kind == "pretraining")  # without a decoder
    ],
)
def test_a_missing_misshaped_or_additional_tensor_is_refused_or_reported(kind, layout):
    """Each tensor of each layout, one at a time."""
    config = {"num_attention_heads": 2, "image_size": 32}
    if kind == "pretraining":
        config["decoder_num_attention_heads"] = 4
    tensors = from_native(full_state_dict(make_model_of_kind(kind)), LAYOUTS[layout][0])
    assert not make_plan(Weights("it", tensors), layout=layout, **config).report.new
    for name in tensors:
        others = {key: value for key, value in tensors.items() if key != name}
        try:
            plan = make_plan(Weights("it", others), layout=layout, **config)
        except UserError:
            pass
        else:  # a part of its own
            assert plan.report.new or plan.report.assumed
        wrong = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)
        with pytest.raises(UserError):
            make_plan(Weights("it", {**others, name: wrong}), layout=layout, **config)
        with pytest.raises(UserError):
            make_plan(Weights("it", {**tensors, f"{name}_ema": tensors[name]}), layout=layout, **config)


@pytest.mark.parametrize(
    ("tensors", "layout", "message"),
    [
        ({"conv1.weight": torch.zeros(3)}, None, "not a Masked Autoencoder of a known layout.* conv1.weight"),
        ({"cls_token": torch.zeros(1, 1, 24)}, None, "missing .*mae.pos_embed"),
        ({**ENCODER, "cls_token": torch.zeros(24)}, None, "mae.cls_token has 1 dimensions instead of 3"),
        (ENCODER, "vit_mae", "vit_mae layout"),
        (ENCODER, "onnx", "layout='onnx' is unknown"),
    ],
    ids=["other", "part", "flat", "other layout", "unknown layout"],
)
def test_tensors_of_no_layout_are_refused(tensors, layout, message):
    with pytest.raises(UserError, match=message):
        make_plan(Weights("it", tensors), layout=layout)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_directory_loads_as_with_from_pretrained(kind, tmp_path):
    make_model_of_kind(kind).save_pretrained(tmp_path)
    assert_same_state(load_checkpoint(tmp_path)[0], MODEL_KINDS[kind][0].from_pretrained(tmp_path))
    assert read_weights(tmp_path / "model.safetensors").config is not None


@pytest.mark.parametrize("fields", [{}, CROSS, {"decoder_num_hidden_layers": 1}], ids=["plain", "weighted", "1 block"])
def test_cross_attention_decoder_is_read_and_left_out_of_other_classes(fields, tmp_path):
    model = tiny_model(MAEForPreTraining, **(fields | {"decoder_type": "cross_attention"}))
    model.save_pretrained(tmp_path)
    loaded, report = load_checkpoint(tmp_path)
    assert_same_state(loaded, model)
    assert loaded.config.decoder_type == "cross_attention" and not report.new
    # A file without a configuration tells the decoder by its tensors.
    save_file(full_state_dict(model), tmp_path / "alone.safetensors")
    heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 2, "prediction_ratio": 0.25, "image_size": 32}
    assert_same_state(load_checkpoint(tmp_path / "alone.safetensors", **heads)[0], model)
    for cls in (MAEModel, MAEForImageClassification, MAEForSemanticSegmentation, MAEBackbone):
        other, _ = load_checkpoint(tmp_path, cls)
        encoder = other if cls in (MAEModel, MAEBackbone) else other.mae
        encoder = encoder.mae if hasattr(encoder, "mae") else encoder
        assert torch.equal(encoder.blocks[1].mlp.fc2.weight, model.mae.blocks[1].mlp.fc2.weight)
