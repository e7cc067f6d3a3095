"""Checkpoints of other codes: read against the codes themselves and the official vectors, written and read back."""

import argparse
import json
from ast import literal_eval
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from configuration_mae import MAEConfig
from mae.conversion.config import find_grid
from mae.conversion.layouts import LAYOUTS, OFFICIAL, VIT_MAE, VIT_MAE_IN_MEMORY, from_ours, to_ours
from mae.conversion.loading import load_checkpoint, make_plan
from mae.conversion.report import fold
from mae.conversion.saving import full_state_dict, lost_in, save_checkpoint
from mae.conversion.weights import Weights, read_weights
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, sincos_positions


FIXTURES = Path(__file__).parent.parent / "fixtures"
KEYS = json.loads((FIXTURES / "official_checkpoint_keys.json").read_text())
SIZES = {  # Section 4; heads as in the official code
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
}
PARTS = {
    "pretrain_full": MAEForPreTraining,
    "pretrain_encoder": MAEModel,
    "finetuned_mean_pool": MAEForImageClassification,
}
LABELS = {0: "cat", 1: "dog", 2: "eel"}
KINDS = {
    "encoder": (MAEModel, {}),
    "pretraining": (MAEForPreTraining, {"norm_pix_loss": True, "mask_ratio": 0.5}),
    "classification_cls": (MAEForImageClassification, {"id2label": LABELS}),
    "classification_mean": (
        MAEForImageClassification,
        {"id2label": LABELS, "pooling": "mean", "problem_type": "multi_label_classification"},
    ),
}
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


def randomise(model):
    """Weights that let every mistake show: no two tensors, and no part of one, are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def make_model(kind, **fields):
    cls, own = KINDS[kind]
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    return randomise(cls(MAEConfig(**{**TINY, "image_mean": mean, "image_std": std, **own, **fields})))


def make_vit_mae(cls=ViTMAEForPreTraining, **fields):
    torch.manual_seed(0)
    model = cls(ViTMAEConfig(**{**TINY, "norm_pix_loss": True, "layer_norm_eps": 1e-6, **fields}))
    # Its own position tables are zero until they are loaded.
    for module, dim in ((getattr(model, "vit", model).embeddings, 24), (getattr(model, "decoder", None), 16)):
        if module is not None:
            name = "position_embeddings" if dim == 24 else "decoder_pos_embed"
            getattr(module, name).data.copy_(sincos_positions(dim, (4, 4)))
    return randomise(model)


def inputs(channels=3, size=(32, 32), patches=16):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, channels, *size, generator=generator)
    return images, torch.rand(2, patches, generator=generator)


def assert_same_state(model, expected):
    state, expected = full_state_dict(model), full_state_dict(expected)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# The released files, by their names and shapes


def meta_tensors(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", PARTS)
def test_released_files(size, part):
    weights = Weights("file", meta_tensors(KEYS[size][part]))
    plan = make_plan(weights)
    assert plan.model_class is PARTS[part] and plan.found.layout == "official"
    assert not plan.found.new and not plan.found.unused
    config = plan.config
    assert {name: getattr(config, name) for name in SIZES[size]} == SIZES[size]
    assert config.image_size == 224 and config.pooling == ("mean" if part == "finetuned_mean_pool" else "cls")
    assert config.intermediate_size == 4 * config.hidden_size
    if part == "pretrain_full":
        decoder = (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
        assert decoder == (512, 8, 16)
        assert any("norm_pix_loss" in line for line in plan.found.assumed)
    with torch.device("meta"):
        model = plan.model_class(config)
    names = {name: list(tensor.shape) for name, tensor in from_ours(full_state_dict(model), OFFICIAL).items()}
    assert names == {name: list(shape) for name, shape in KEYS[size][part].items()}


@pytest.mark.parametrize("size", SIZES)
def test_names_of_vit_mae(size):
    """Every tensor of a released model has a place in transformers' ViTMAE of that size, and the other way round."""
    state, _ = to_ours(meta_tensors(KEYS[size]["pretrain_full"]), OFFICIAL)
    fields = {**SIZES[size], "intermediate_size": 4 * SIZES[size]["hidden_size"], "image_size": 224}
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(ViTMAEConfig(**fields)).state_dict()
    ours = from_ours(state, VIT_MAE_IN_MEMORY)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("size", SIZES)
def test_names_of_timm(size):
    timm = pytest.importorskip("timm")
    patch_size = SIZES[size]["patch_size"]
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch{patch_size}_224", num_classes=0, global_pool="token")
    plan = make_plan(Weights("timm", vit.state_dict()), layout="timm")
    assert plan.model_class is MAEModel and not plan.found.new and not plan.found.unused
    assert list(vit.state_dict()) == list(KEYS[size]["pretrain_encoder"])


def test_tables_are_two_way():
    """No name twice on either side, as many as there are tensors."""
    for layout, spellings in LAYOUTS.items():
        for spelling in spellings:
            names = [f"{theirs}.1." for theirs in spelling.blocks.values()]
            table = spelling.table(names)
            theirs = [name for value in table.values() for name in ([value] if isinstance(value, str) else value)]
            assert len(set(theirs)) == len(theirs), layout


# Official


def official(tmp_path, name, suffix=".safetensors"):
    """A file of the official code: its names alone, the sizes in its metadata or its trainer's arguments."""
    path = FIXTURES / f"{name}.safetensors"
    tensors = load_file(path)
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    output = tmp_path / f"{name}{suffix}"
    if suffix == ".safetensors":
        save_file(weights, output, metadata=metadata)
    else:
        arguments = argparse.Namespace(
            model="mae_vit_base_patch16",
            norm_pix_loss=metadata.get("norm_pix_loss") == "True",
            mask_ratio=0.75,
            input_size=32,
        )
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
        torch.save({"model": weights, "optimizer": optimizer, "epoch": 799, "scaler": {}, "args": arguments}, output)
    return output, tensors, metadata


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["official_pretrain_norm_pixels", "official_pretrain_raw_pixels"])
def test_official_pretraining(name, suffix, tmp_path):
    path, tensors, metadata = official(tmp_path, name, suffix)
    heads = {key: literal_eval(metadata[key]) for key in ("num_attention_heads", "decoder_num_attention_heads")}
    model, found = load_checkpoint(path, **(heads if suffix == ".pth" else {}))
    assert type(model) is MAEForPreTraining and found.layout == "official"
    assert model.config.norm_pix_loss == (name == "official_pretrain_norm_pixels")
    assert not [line for line in found.assumed if "norm_pix_loss" in line or "heads" in line]
    assert not model.decoder.pos_embed.requires_grad and not model.training
    with torch.no_grad():
        outputs = model(tensors["pixel_values"], noise=tensors["noise"])
        latent = model.mae(tensors["pixel_values"], noise=tensors["noise"]).last_hidden_state
    close(outputs.logits, tensors["pred"])
    close(outputs.loss, tensors["loss"][0])
    close(latent, tensors["latent"])


@pytest.mark.parametrize("name", ["official_classify_mean", "official_classify_cls"])
def test_official_classification(name, tmp_path):
    path, tensors, _ = official(tmp_path, name)
    model, found = load_checkpoint(path)
    assert type(model) is MAEForImageClassification and model.config.num_labels == 7
    assert model.config.pooling == name.removeprefix("official_classify_")
    assert not found.new and not found.unused
    with torch.no_grad():
        close(model(tensors["pixel_values"]).logits, tensors["logits"])


def test_what_the_file_does_not_say(tmp_path):
    path, tensors, _ = official(tmp_path, "official_pretrain_raw_pixels")
    weights = load_file(path)
    save_file(weights, path)  # without metadata
    with pytest.raises(UserError, match="how many heads .* 48 is no width .* give num_attention_heads"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="32 is no width .* give decoder_num_attention_heads"):
        load_checkpoint(path, num_attention_heads=3)
    model, found = load_checkpoint(path, num_attention_heads=3, decoder_num_attention_heads=4)
    assert "norm_pix_loss=False" in found.assumed
    with torch.no_grad():
        close(model(tensors["pixel_values"], noise=tensors["noise"]).logits, tensors["pred"])
    model, found = load_checkpoint(path, num_attention_heads=3, decoder_num_attention_heads=4, norm_pix_loss=True)
    assert model.config.norm_pix_loss and "norm_pix_loss=False" not in found.assumed


# transformers' ViTMAE


@pytest.mark.parametrize("cls", [ViTMAEForPreTraining, ViTMAEModel])
@pytest.mark.parametrize("spelling", ["hub", "saved", "in memory"])
def test_vit_mae(cls, spelling, tmp_path):
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

    model, found = load_checkpoint(path)
    assert found.layout == "vit_mae" and found.num_tensors == len(tensors) and not found.new and not found.unused
    images, noise = inputs()
    with torch.no_grad():
        if cls is ViTMAEForPreTraining:
            ours, theirs = model(images, noise=noise), vit_mae(images, noise=noise)
            close(ours.logits, theirs.logits)
            close(ours.loss, theirs.loss)
        else:
            close(model(images, noise=noise).last_hidden_state, vit_mae(images, noise=noise).last_hidden_state)
    # Bit by bit, against the fused tensors made by hand.
    attention = vit_mae.get_submodule("vit" if cls is ViTMAEForPreTraining else "").layers[1].attention
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(full_state_dict(model)["mae.blocks.1.attn.qkv.weight"], qkv)


def test_settings_of_vit_mae(tmp_path):
    """What its configuration and processor say is ours; its epsilon too, which is not the official one."""
    make_vit_mae(layer_norm_eps=1e-12, mask_ratio=0.5, hidden_dropout_prob=0.1).save_pretrained(tmp_path)
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.3, 0.4], "size": 32, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model, found = load_checkpoint(tmp_path)
    config = model.config
    assert (config.layer_norm_eps, config.mask_ratio, config.norm_pix_loss) == (1e-12, 0.5, True)
    assert (config.image_mean, config.image_std) == ([0.5, 0.5, 0.5], [0.2, 0.3, 0.4])
    assert "hidden_dropout_prob" in str(found)
    assert load_checkpoint(tmp_path, layer_norm_eps=1e-6)[0].config.layer_norm_eps == 1e-6
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_normalize": False}))
    config = load_checkpoint(tmp_path)[0].config
    assert (config.image_mean, config.image_std) == ([0.0] * 3, [1.0] * 3)


def test_the_processor_says_what_images_are_normalised_by(tmp_path):
    """Also where a user changed it in a directory of ours, and where it is one number."""
    for kind, save in (("mae", make_model("encoder")), ("vit_mae", make_vit_mae())):
        path = tmp_path / kind
        save.save_pretrained(path)
        processor = {"image_mean": 0.5, "image_std": 0.25, "do_normalize": True}
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
        config = load_checkpoint(path)[0].config
        assert (config.image_mean, config.image_std) == ([0.5] * 3, [0.25] * 3)


def test_several_types(tmp_path):
    model = make_model("encoder").half()
    tensors = model.state_dict()
    tensors["norm.bias"] = tensors["norm.bias"].float()
    torch.save(tensors, tmp_path / "mixed.pth")
    loaded, found = load_checkpoint(tmp_path / "mixed.pth", num_attention_heads=2)
    assert loaded.dtype == torch.float32 and "torch.float16 and torch.float32 made torch.float32" in str(found)
    assert_same_state(loaded, model.float())


@pytest.mark.parametrize("kind", ["encoder", "pretraining"])
def test_round_trip_through_transformers(kind, tmp_path):
    """Ours -> its files -> its model -> its own save_pretrained -> ours."""
    model = make_model(kind)
    save_checkpoint(model, tmp_path / "theirs", "vit_mae")
    cls = ViTMAEForPreTraining if kind == "pretraining" else ViTMAEModel
    vit_mae, info = cls.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    images, noise = inputs()
    with torch.no_grad():
        output = "logits" if kind == "pretraining" else "last_hidden_state"
        close(model(images, noise=noise)[output], vit_mae(images, noise=noise)[output])
    vit_mae.save_pretrained(tmp_path / "again")
    assert_same_state(load_checkpoint(tmp_path / "again")[0], model)


# timm


@pytest.mark.parametrize("kind", ["encoder", "classification_cls", "classification_mean"])
def test_round_trip_through_timm(kind, tmp_path):
    timm = pytest.importorskip("timm")
    model = make_model(kind)
    save_checkpoint(model, tmp_path / "theirs", "timm")
    vit = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).eval()
    assert vit.pretrained_cfg["mean"] == model.config.image_mean
    images, _ = inputs()
    with torch.no_grad():
        if kind == "encoder":
            close(model(images).last_hidden_state, vit.forward_features(images))
        else:
            close(model(images).logits, vit(images))
    torch.save(vit.state_dict(), tmp_path / "again.pt")
    again, found = load_checkpoint(tmp_path / "again.pt", num_attention_heads=2)
    assert_same_state(again, model)


def test_timm_features_with_mean_pooling(tmp_path):
    """A timm model without a classifier has its norm after the pooling: a classifier of no labels."""
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", img_size=32).eval()
    timm.models.save_for_hf(vit, tmp_path / "timm", safe_serialization=True)
    model, found = load_checkpoint(tmp_path / "timm")
    assert found.layout == "timm" and type(model) is MAEForImageClassification and model.config.num_labels == 0
    assert model.config.num_attention_heads == 3 and model.config.image_size == 32
    images, _ = inputs()
    with torch.no_grad():
        close(model(images).logits, vit(images))
        encoder, found = load_checkpoint(tmp_path / "timm", MAEModel)
        close(vit.fc_norm(encoder(images).pooler_output), vit(images))
    assert found.unused == ["fc_norm.weight", "fc_norm.bias"]


# Written and read back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, layout, dtype, tmp_path):
    model = make_model(kind, layer_norm_eps=1e-6 if layout != "mae" else 1e-5).to(dtype)
    if layout == "vit_mae" and kind.startswith("classification"):
        with pytest.raises(UserError, match="ViTMAE has no classifier"):
            save_checkpoint(model, tmp_path, layout)
        assert not list(tmp_path.iterdir())
        return
    save_checkpoint(model, tmp_path, layout)
    left_out = lost_in(model, layout)
    path = tmp_path / "checkpoint.pth" if layout == "official" else tmp_path
    again, found = load_checkpoint(path)
    assert found.layout == layout and not found.new and not found.unused and not found.assumed
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


def test_what_other_codes_do_not_have(tmp_path):
    rectangle = make_model("pretraining", image_size=(32, 16))
    for model, layout, message in [
        (rectangle, "vit_mae", "square"),
        (make_model("encoder", pooling="mean"), "vit_mae", "mean pooling"),
        (make_model("encoder", pooling="mean"), "timm", "without a last norm"),
        (make_model("encoder", hidden_act="relu"), "official", "official code has hidden_act='gelu' only"),
        (make_model("encoder", layer_norm_eps=1e-2), "timm", "timm code has layer_norm_eps=1e-06 only"),
        (make_model("encoder", qkv_bias=False), "official", "official code has qkv_bias=True only"),
    ]:
        with pytest.raises(UserError, match=message):
            save_checkpoint(model, tmp_path, layout)
        assert not list(tmp_path.iterdir())
    save_checkpoint(rectangle, tmp_path, "official")
    assert load_checkpoint(tmp_path / "checkpoint.pth")[0].config.image_size == (32, 16)


# Another model than the checkpoint's


def test_encoder_gets_a_fresh_decoder(tmp_path):
    encoder = make_model("encoder")
    encoder.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model, found = load_checkpoint(tmp_path, MAEForPreTraining, decoder_num_hidden_layers=1)
    assert "newly initialised: decoder (20 tensors)" in str(found)
    assert_same_state(model.mae, encoder)
    assert torch.equal(model.decoder.pos_embed, sincos_positions(16, (4, 4)))
    assert not model.decoder.pos_embed.requires_grad and not model.mae.pos_embed.requires_grad
    torch.manual_seed(3)
    again, _ = load_checkpoint(tmp_path, MAEForPreTraining, decoder_num_hidden_layers=1)
    assert_same_state(again, model)


def test_classifier_of_other_labels(tmp_path):
    model = make_model("classification_mean")
    model.save_pretrained(tmp_path)
    same, found = load_checkpoint(tmp_path, num_labels=3)
    assert_same_state(same, model)
    assert same.config.id2label == {0: "cat", 1: "dog", 2: "eel"} and not found.new
    other, found = load_checkpoint(tmp_path, num_labels=5)
    assert "newly initialised: head (2 tensors)" in str(found)
    assert other.head.weight.shape == (5, 24) and len(other.config.id2label) == 5
    assert torch.equal(other.fc_norm.weight, model.fc_norm.weight)
    encoder, found = load_checkpoint(tmp_path, MAEForPreTraining)
    assert found.unused == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert "mae.norm (2 tensors); decoder" in str(found)


@pytest.mark.parametrize("size", [48, (16, 40)])
@pytest.mark.parametrize("layout", ["mae", "vit_mae", "official"])
def test_another_image_size(layout, size, tmp_path):
    """As from_pretrained does it, whatever the layout."""
    model = make_model("pretraining")
    save_checkpoint(model, tmp_path / "ours", "mae")
    save_checkpoint(model, tmp_path / layout, layout)
    expected = MAEForPreTraining.from_pretrained(tmp_path / "ours", image_size=size)
    path = tmp_path / layout / ("checkpoint.pth" if layout == "official" else "")
    resized, found = load_checkpoint(path, image_size=size)
    assert_same_state(resized, expected)
    assert resized.config.image_size == size and "positions resampled from 4 x 4 to" in str(found)
    assert not resized.mae.pos_embed.requires_grad
    # The tables as the official fine-tuning code interpolates them.
    rows, columns = (side // 8 for side in ((size, size) if isinstance(size, int) else size))
    grid = model.mae.pos_embed[0, 1:].T.reshape(1, 24, 4, 4)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    close(resized.mae.pos_embed[0, 1:], grid[0].flatten(1).T, 1e-6)


def test_another_patch_size(tmp_path):
    model = make_model("pretraining")
    model.save_pretrained(tmp_path)
    other, found = load_checkpoint(tmp_path, patch_size=4)
    new = {"mae.patch_embed.proj.weight", "mae.patch_embed.proj.bias", "decoder.pred.weight", "decoder.pred.bias"}
    assert set(found.new) == new and "positions resampled from 4 x 4 to 8 x 8" in str(found)
    assert other.config.image_size == 32 and other.mae.patch_embed.proj.weight.shape == (24, 3, 4, 4)
    state, old = other.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], old[name]) for name in state if name not in new and "pos_embed" not in name)
    for cls in (MAEForPreTraining, AutoModelForPreTraining):
        expected = cls.from_pretrained(tmp_path, patch_size=4, ignore_mismatched_sizes=True)
        assert torch.equal(expected.mae.pos_embed, other.mae.pos_embed)
        assert torch.equal(expected.decoder.pos_embed, other.decoder.pos_embed)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            cls.from_pretrained(tmp_path, patch_size=4)
    assert other(torch.randn(1, 3, 32, 32)).logits.shape == (1, 64, 48)


def test_own_grid_of_a_table():
    """A sin-cos table tells its grid, also one that could be square; another table does not."""
    for grid in ((4, 4), (2, 8), (8, 2), (1, 16), (3, 5)):
        assert find_grid(sincos_positions(24, grid)) == (grid, True)
        assert find_grid(sincos_positions(24, grid).bfloat16()) == (grid, True)
    learned = torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(0))
    assert find_grid(learned) == ((4, 4), False)
    assert find_grid(learned[:, :16]) == (None, False)


def test_rectangular_tables(tmp_path):
    """Files that do not say their image size."""
    heads = {"num_attention_heads": 2, "decoder_num_attention_heads": 4}
    model = make_model("pretraining", image_size=(16, 64))
    torch.save(from_ours(full_state_dict(model), OFFICIAL), tmp_path / "sincos.pth")
    loaded, found = load_checkpoint(tmp_path / "sincos.pth", **heads)
    assert loaded.config.image_size == (16, 64) and not any("image_size=" in line for line in found.assumed)

    with torch.no_grad():
        model.mae.pos_embed.normal_()
    torch.save(from_ours(full_state_dict(model), OFFICIAL), tmp_path / "learned.pth")
    loaded, found = load_checkpoint(tmp_path / "learned.pth", **heads)
    assert "image_size=32" in found.assumed  # 16 patches: a square, as far as one can tell
    stated, found = load_checkpoint(tmp_path / "learned.pth", image_size=(16, 64), **heads)
    assert_same_state(stated, model)
    assert not found.changed and "positions for 2 x 8 patches" in str(found)
    # A size that the file states wrongly gives way to one that fits.
    wrong = {"model": from_ours(full_state_dict(model), OFFICIAL), "args": argparse.Namespace(input_size=64)}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="images of 64 pixels .* give the image_size that it was trained at"):
        load_checkpoint(tmp_path / "wrong.pth", **heads)
    assert_same_state(load_checkpoint(tmp_path / "wrong.pth", image_size=(16, 64), **heads)[0], model)

    model = make_model("encoder", image_size=(24, 32))
    with torch.no_grad():
        model.pos_embed.normal_()
    torch.save(model.state_dict(), tmp_path / "odd.pth")
    with pytest.raises(UserError, match="positions for 12 patches, which make no square: give the image_size"):
        load_checkpoint(tmp_path / "odd.pth", num_attention_heads=2)
    assert_same_state(load_checkpoint(tmp_path / "odd.pth", num_attention_heads=2, image_size=(24, 32))[0], model)


# Channels


def test_channels_are_never_inflated_by_surprise(tmp_path):
    make_model("pretraining").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is for 3 channels, not 1: say with inflate_channels .* mean or repeat"):
        load_checkpoint(tmp_path, num_channels=1)
    with pytest.raises(UserError, match="not 'max'"):
        load_checkpoint(tmp_path, num_channels=1, inflate_channels="max")
    with pytest.raises(UserError, match="nothing to do"):
        load_checkpoint(tmp_path, inflate_channels="mean")
    # Patch projections that are made anew need no inflation.
    model, found = load_checkpoint(tmp_path, num_channels=1, patch_size=4)
    assert model.config.image_mean is None and "inflated" not in str(found)
    assert "newly initialised: mae.patch_embed (2 tensors); decoder.pred (2 tensors)" in str(found)


def test_inflating_images_that_are_not_normalised(tmp_path):
    """Three channels have a mean and a std by default; these must not."""
    make_model("pretraining", num_channels=1, image_mean=None, image_std=None).save_pretrained(tmp_path)
    model, found = load_checkpoint(tmp_path, num_channels=3, inflate_channels="mean")
    assert (model.config.image_mean, model.config.image_std) == ([0.0] * 3, [1.0] * 3)
    assert "image_mean=[0.0, 0.0, 0.0]" in str(found)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("layout", ["mae", "vit_mae", "timm", "official"])
def test_channels_without_normalisation(layout, channels, tmp_path):
    model = make_model("encoder", num_channels=channels, image_mean=None, image_std=None)
    save_checkpoint(model, tmp_path, layout)
    again, _ = load_checkpoint(tmp_path / "checkpoint.pth" if layout == "official" else tmp_path)
    assert_same_state(again, model)
    neutral = ([0.0] * channels, [1.0] * channels) if layout == "timm" else (None, None)
    assert (again.config.image_mean, again.config.image_std) == neutral


def test_mean_of_the_channels(tmp_path):
    """A grey image gives what it gave in three channels; each new channel is predicted as the mean of the old ones."""
    model = make_model("pretraining", norm_pix_loss=False)
    model.save_pretrained(tmp_path)
    images, noise = inputs(channels=1)
    expected = model(images.expand(-1, 3, -1, -1), noise=noise)
    for channels in (1, 2, 5):
        other, found = load_checkpoint(tmp_path, num_channels=channels, inflate_channels="mean")
        assert f"3 channels inflated to {channels} (mean)" in str(found)
        outputs = other(images.expand(-1, channels, -1, -1), noise=noise)
        prediction = expected.logits.unflatten(2, (64, 3)).mean(3, keepdim=True).expand(-1, -1, -1, channels)
        close(outputs.logits.unflatten(2, (64, channels)), prediction)
        close(torch.tensor(other.config.image_mean), torch.full((channels,), 0.2))
        close(torch.tensor(other.config.image_std), torch.full((channels,), 0.5))


def test_repeated_channels(tmp_path):
    """Six channels of an image and itself give what three gave; their order is kept."""
    model = make_model("pretraining")
    model.save_pretrained(tmp_path)
    images, noise = inputs()
    expected = model(images, noise=noise)
    other, _ = load_checkpoint(tmp_path, num_channels=6, inflate_channels="repeat")
    outputs = other(torch.cat([images, images], dim=1), noise=noise)
    prediction = expected.logits.unflatten(2, (64, 3))
    close(outputs.logits.unflatten(2, (64, 6)), torch.cat([prediction, prediction], dim=3))
    close(torch.tensor(other.config.image_mean), torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
    four, _ = load_checkpoint(tmp_path, num_channels=4, inflate_channels="repeat", image_mean=0.5, image_std=0.5)
    weight, old = four.mae.patch_embed.proj.weight, model.mae.patch_embed.proj.weight
    close(weight, torch.cat([old, old[:, :1]], dim=1) * 3 / 4)
    assert four.config.image_mean == [0.5] * 4


# Nothing is skipped silently


def test_every_problem_in_one_error():
    tensors = from_ours(full_state_dict(make_model("pretraining")), VIT_MAE)
    del tensors["decoder.decoder_norm.bias"], tensors["vit.encoder.layer.1.output.dense.weight"]
    tensors["vit.layernorm.weight"] = torch.zeros(23)
    tensors["vit.pooler.dense.weight"] = torch.zeros(3)
    tensors["decoder.decoder_layers.0.attention.attention.key.bias"] = torch.zeros(16)
    with pytest.raises(UserError) as error:
        make_plan(Weights("it", tensors), num_attention_heads=2, decoder_num_attention_heads=4)
    message = str(error.value)
    assert "unknown: vit.pooler.dense.weight;" in message
    assert "missing (by our names): mae.blocks.1.mlp.fc2.weight, decoder.norm.bias;" in message
    assert "of the wrong shape: mae.norm.weight is (23,) instead of (24,)." in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["mae", "official", "timm", "vit_mae"])
def test_each_tensor_counts(kind, layout):
    """Without any one of them, and with one of another shape, a checkpoint is refused, or the lack is told."""
    if (layout == "vit_mae" and kind.startswith("classification")) or (layout == "timm" and kind == "pretraining"):
        return
    config = {"num_attention_heads": 2, "image_size": 32}
    if kind == "pretraining":
        config["decoder_num_attention_heads"] = 4
    tensors = from_ours(full_state_dict(make_model(kind)), LAYOUTS[layout][0])
    assert not make_plan(Weights("it", tensors), layout=layout, **config).found.new
    for name in tensors:
        others = {key: value for key, value in tensors.items() if key != name}
        try:
            plan = make_plan(Weights("it", others), layout=layout, **config)
        except UserError:
            pass
        else:  # a part of its own
            assert plan.found.new or plan.found.assumed
        wrong = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)
        with pytest.raises(UserError):
            make_plan(Weights("it", {**others, name: wrong}), layout=layout, **config)
        with pytest.raises(UserError):
            make_plan(Weights("it", {**tensors, f"{name}_ema": tensors[name]}), layout=layout, **config)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_attention_heads": 4}, "has num_attention_heads=2, which its weights are made for, not 4"),
        ({"hidden_size": 48}, "has hidden_size=24, which"),
        ({"decoder_num_hidden_layers": 1}, "has decoder_num_hidden_layers=3, which"),
        ({"hidden_act": "relu"}, "has hidden_act='gelu', which"),
        ({"hidden": 3}, "hidden is not a field of the configuration"),
        ({"image_size": 33}, "image_size=33 is not divisible by patch_size=8"),
        ({"mask_ratio": 0.01}, "the mask keeps 15 of 16|Pre-training needs visible and removed"),
        ({"masking": "stripes"}, "masking"),
        ({"num_labels": -1}, "num_labels=-1 must be a number of labels"),
        ({"id2label": ["a"]}, "id2label=.* must name each"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "must name each of num_labels=2"),
        ({"num_channels": 0}, "num_channels=0 must be positive"),
        ({"num_channels": "1"}, "num_channels='1'"),
        ({"patch_size": None}, "patch_size=None"),
    ],
)
def test_overrides_that_cannot_be(overrides, message, tmp_path):
    make_model("pretraining").save_pretrained(tmp_path)
    if overrides == {"mask_ratio": 0.01}:
        load_checkpoint(tmp_path, **overrides)  # removes one
        overrides = {"mask_ratio": 0.0}
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path, **overrides)


def test_configuration_that_contradicts_the_tensors(tmp_path):
    make_model("pretraining").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in [
        ({"hidden_size": 48}, "says hidden_size=48, but its tensors have 24"),
        ({"decoder_num_hidden_layers": 2}, "says decoder_num_hidden_layers=2, but its tensors have 3"),
        ({"image_size": 64}, "positions for 16 patches; images of 64 pixels in patches of 8 have 64"),
        ({"num_attention_heads": 5}, "hidden_size=24 must be divisible by num_attention_heads=5"),
        ({"num_attention_heads": "2"}, "num_attention_heads"),
        ({"model_type": None}, "the model_type in its config.json is None"),
        ({"model_type": []}, "the model_type in its config.json is ..,"),
        ({"dtype": []}, "config.json"),
        ({"model_type": "bert"}, "the model_type in its config.json is 'bert'"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path)


def test_labels_by_their_names(tmp_path):
    make_model("encoder").save_pretrained(tmp_path)
    model, _ = load_checkpoint(tmp_path, MAEForImageClassification, id2label={index: str(index) for index in range(5)})
    assert model.head.weight.shape[0] == 5 and model.config.id2label[4] == "4"


def test_what_else_a_configuration_holds_is_kept(tmp_path):
    config = make_model("encoder").config
    config.my_note = "from the second microscope"
    MAEModel(config).save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path)[0].config.my_note == "from the second microscope"


def test_timm_settings(tmp_path):
    """What its arguments change is translated or refused, and its class names are ours."""
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
    images, _ = inputs()
    with torch.no_grad():
        close(model(images).logits, vit(images))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["init_values"] = 1e-5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="timm's model_args init_values=1e-05 have no counterpart"):
        load_checkpoint(tmp_path)


def test_names_are_folded_and_printable():
    assert fold(["a.0.b", "a.1.b", "a.2.b", "a.7.b", "a.3.c", "d"]) == ["a.{0-2,7}.b", "a.3.c", "d"]
    tensors = {**make_model("encoder").state_dict(), "evil\nerror: all good": torch.zeros(1)}
    tensors |= {f"blocks.{index}.norm1.weight": torch.zeros(24) for index in range(900)}
    with pytest.raises(UserError) as error:
        make_plan(Weights("it", tensors), num_attention_heads=2)
    assert "\n" not in str(error.value) and "evil" in str(error.value) and len(str(error.value)) < 2000


def test_not_a_masked_autoencoder():
    with pytest.raises(UserError, match="not a Masked Autoencoder of a known layout .* its tensors are conv1.weight"):
        make_plan(Weights("resnet.pth", {"conv1.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match="missing .*mae.pos_embed"):
        make_plan(Weights("part.pth", {"cls_token": torch.zeros(1, 1, 24)}))
    with pytest.raises(UserError, match="mae.cls_token has 1 dimensions instead of 3"):
        make_plan(Weights("flat.pth", {**make_model("encoder").state_dict(), "cls_token": torch.zeros(24)}))
    tensors = make_model("encoder").state_dict()
    with pytest.raises(UserError, match="vit_mae layout"):
        make_plan(Weights("official.pth", tensors), layout="vit_mae")


def test_reading_again_gives_the_same(tmp_path):
    """A directory that this reads is what from_pretrained reads."""
    for kind, (cls, _) in KINDS.items():
        make_model(kind).save_pretrained(tmp_path / kind)
        assert_same_state(load_checkpoint(tmp_path / kind)[0], cls.from_pretrained(tmp_path / kind))
        assert read_weights(tmp_path / kind / "model.safetensors").config is not None


def test_encoder_without_a_last_norm():
    """Ours with mean pooling, which is told; a ViTMAE always has one, so that it has lost it."""
    model = make_model("encoder", pooling="mean")
    plan = make_plan(Weights("it", model.state_dict()), num_attention_heads=2)
    assert plan.config.pooling == "mean" and any("pooling=mean" in line for line in plan.found.assumed)
    with pytest.raises(UserError, match="missing .by our names.: mae.norm.weight, mae.norm.bias"):
        make_plan(Weights("it", from_ours(full_state_dict(model), VIT_MAE)), num_attention_heads=2)
