"""The models against the official code (recorded outputs), ViTMAE of transformers, and timm."""

from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from configuration_mae import MAEConfig
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, sincos_positions
from tests.support.models import TINY, assert_close, randomize


FIXTURES = Path(__file__).parent.parent / "fixtures"
PRETRAIN = ["official_pretrain_raw_pixels", "official_pretrain_norm_pixels"]
CLASSIFY = ["official_classify_cls", "official_classify_mean"]
ATTENTION = ["sdpa", "eager"]


def load(name):
    path = FIXTURES / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def pretraining_names(weights):
    """Rename official parameters to the names of `MAEForPreTraining`."""
    renamed = {}
    for key, value in weights.items():
        if key == "mask_token":
            key = "decoder.mask_token"
        elif key.startswith("decoder_"):
            key = "decoder." + key.removeprefix("decoder_")
        else:
            key = "mae." + key
        renamed[key] = value
    return renamed


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def official_pretraining(name, attention):
    tensors, metadata = load(name)
    fields = {key: literal_eval(value) for key, value in metadata.items()}  # numbers and booleans
    model = MAEForPreTraining(MAEConfig(**fields, attn_implementation=attention))
    model.load_state_dict(pretraining_names(part(tensors, "model.")))
    return model, tensors


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_outputs_are_those_of_the_official_code(name, attention):
    model, tensors = official_pretraining(name, attention)
    assert model.config._attn_implementation == attention
    outputs = model(tensors["pixel_values"], noise=tensors["noise"])
    assert_close(outputs.loss, tensors["loss"][0])
    assert_close(outputs.logits, tensors["pred"])
    assert torch.equal(outputs.mask, tensors["mask"])
    assert torch.equal(outputs.ids_restore, tensors["ids_restore"])
    latent = model.mae(tensors["pixel_values"], noise=tensors["noise"]).last_hidden_state
    assert_close(latent, tensors["latent"])
    assert_close(model.patchify(tensors["pixel_values"]), tensors["target_patches"], 0)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PRETRAIN)
def test_gradients_are_those_of_the_official_code(name, attention):
    model, tensors = official_pretraining(name, attention)
    model.train()(tensors["pixel_values"], noise=tensors["noise"]).loss.backward()
    expected = pretraining_names(part(tensors, "grad."))
    trained = {key: value.grad for key, value in model.named_parameters() if value.requires_grad}
    assert trained.keys() == expected.keys()
    for key, gradient in trained.items():
        reference = expected[key]
        if key.endswith("qkv.bias"):  # softmax ignores the bias of the keys, whose gradient is noise
            gradient, reference = (torch.cat(bias.chunk(3)[::2]) for bias in (gradient, reference))
        error = (gradient - reference).abs().max() / reference.abs().max()
        assert error < 1e-5, f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", PRETRAIN)
def test_positions_equal_those_of_official_models(name):
    tensors, metadata = load(name)
    grid = (int(metadata["image_size"]) // int(metadata["patch_size"]),) * 2
    for key in ("pos_embed", "decoder_pos_embed"):
        expected = tensors[f"model.{key}"]
        assert torch.equal(sincos_positions(expected.shape[2], grid), expected)


def official_positions(dim, size):
    """`get_2d_sincos_pos_embed` of the official code in numpy, with float64 for its `np.float`."""

    def one_axis(dim, pos):
        omega = np.arange(dim // 2, dtype=np.float64) / (dim / 2.0)
        out = np.einsum("m,d->md", pos.reshape(-1), 1.0 / 10000**omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    grid = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))  # width goes first
    table = np.concatenate([one_axis(dim // 2, grid[0]), one_axis(dim // 2, grid[1])], axis=1)
    return np.concatenate([np.zeros([1, dim]), table], axis=0).astype(np.float32)


@pytest.mark.parametrize("dim, size", [(768, 14), (512, 14), (1024, 14), (1280, 16), (16, 3)])
def test_positions_equal_the_official_numpy_code(dim, size):
    table = sincos_positions(dim, (size, size))
    assert table.dtype == torch.float32
    assert np.array_equal(table[0].numpy(), official_positions(dim, size))


def test_positions_of_a_rectangle_are_rows_and_columns_of_a_square():
    square = sincos_positions(16, (7, 7))[0, 1:].view(7, 7, 16)
    rectangle = sincos_positions(16, (3, 7))[0, 1:].view(3, 7, 16)
    assert torch.equal(rectangle, square[:3])
    assert torch.equal(sincos_positions(16, (7, 3))[0, 1:].view(7, 3, 16), square[:, :3])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", CLASSIFY)
def test_classification_outputs_are_those_of_the_official_code(name, attention):
    tensors, metadata = load(name)
    weights = part(tensors, "model.")
    config = MAEConfig(
        hidden_size=int(metadata["hidden_size"]),
        num_hidden_layers=int(metadata["num_hidden_layers"]),
        num_attention_heads=int(metadata["num_attention_heads"]),
        intermediate_size=weights["blocks.0.mlp.fc1.bias"].shape[0],
        image_size=int(metadata["image_size"]),
        patch_size=int(metadata["patch_size"]),
        num_labels=int(metadata["num_labels"]),
        pooling="mean" if metadata["global_pool"] == "True" else "cls",
        attn_implementation=attention,
    )
    model = MAEForImageClassification(config).eval()
    top = ("head.", "fc_norm.")
    model.load_state_dict({key if key.startswith(top) else f"mae.{key}": value for key, value in weights.items()})
    assert_close(model(tensors["pixel_values"]).logits, tensors["logits"])
    assert_close(model.fc_norm(model.mae(tensors["pixel_values"]).pooler_output), tensors["features"])


def vitmae_names(weights):
    """Rename parameters to those of ViTMAE in transformers, with the fused qkv split."""
    replacements = [
        ("mae.blocks.", "vit.layers."),
        ("decoder.blocks.", "decoder.decoder_layers."),
        ("attn.proj", "attention.o_proj"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mae.cls_token", "vit.embeddings.cls_token"),
        ("mae.pos_embed", "vit.embeddings.position_embeddings"),
        ("mae.patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        ("mae.norm", "vit.layernorm"),
    ]
    replacements += [(f"decoder.{key}", f"decoder.decoder_{key}") for key in ("pos_embed", "embed.", "norm.", "pred.")]
    renamed = {}
    for key, value in weights.items():
        for name, vitmae_name in replacements:
            if name in key:
                key = key.replace(name, vitmae_name)
        if "attn.qkv" in key:
            for name, third in zip("qkv", value.chunk(3)):
                renamed[key.replace("attn.qkv", f"attention.{name}_proj")] = third
        else:
            renamed[key] = value
    return renamed


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_pretraining_outputs_are_those_of_vitmae(norm_pix_loss):
    model = randomize(MAEForPreTraining(MAEConfig(**TINY, norm_pix_loss=norm_pix_loss)))
    vitmae = ViTMAEForPreTraining(ViTMAEConfig(**TINY, layer_norm_eps=1e-6, norm_pix_loss=norm_pix_loss)).eval()
    vitmae.load_state_dict(vitmae_names(model.state_dict()))
    pixel_values, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    outputs, expected = model(pixel_values, noise=noise), vitmae(pixel_values, noise=noise)
    assert_close(outputs.loss, expected.loss)
    assert_close(outputs.logits, expected.logits)
    assert torch.equal(outputs.mask, expected.mask)
    assert torch.equal(outputs.ids_restore, expected.ids_restore)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_encoder_outputs_are_those_of_timm(pooling):
    timm = pytest.importorskip("timm")
    model = randomize(MAEModel(MAEConfig(**TINY, pooling=pooling)))
    vit = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0,
        global_pool="token" if pooling == "cls" else "avg",
        fc_norm=False if pooling == "cls" else None,
    ).eval()
    missing, unexpected = vit.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("fc_norm.") for key in missing)
    pixel_values = torch.randn(2, 3, 32, 32)
    assert_close(model(pixel_values).last_hidden_state, vit.forward_features(pixel_values))
