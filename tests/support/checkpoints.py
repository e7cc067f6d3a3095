"""Tiny checkpoints of every kind and layout, broken and malicious ones, and inputs for them."""

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from configuration_mae import MAEConfig
from mae.conversion.saving import full_state_dict
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel, sincos_positions
from tests.support.data import ROOT


FIXTURES = ROOT / "tests" / "fixtures"
# Part of a released model -> name -> shape of its tensors, per size.
RELEASED_SHAPES = json.loads((FIXTURES / "official_checkpoint_keys.json").read_text())
RELEASED_SIZES = {  # Section 4; heads as in the official code
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
}
LABELS = {0: "cat", 1: "dog", 2: "eel"}
TINY_FIELDS = {
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
# Kind -> class, and the fields that it differs in.
MODEL_KINDS = {
    "encoder": (MAEModel, {}),
    "pretraining": (MAEForPreTraining, {"norm_pix_loss": True, "mask_ratio": 0.5}),
    "classification_cls": (MAEForImageClassification, {"id2label": LABELS}),
    "classification_mean": (
        MAEForImageClassification,
        {"id2label": LABELS, "pooling": "mean", "problem_type": "multi_label_classification"},
    ),
}
# What no tensor tells of the models above.
TINY_HEADS = {"num_attention_heads": 2, "decoder_num_attention_heads": 4}


def randomise_weights(model):
    """Give a model weights that let every mistake show: no two tensors, and no parts of one, are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def make_model_of_kind(kind, **fields):
    """A tiny model with random weights, and a mean and std that are not ImageNet's."""
    cls, own = MODEL_KINDS[kind]
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    return randomise_weights(cls(MAEConfig(**{**TINY_FIELDS, **statistics, **own, **fields})))


def make_vit_mae(cls=ViTMAEForPreTraining, **fields):
    """The same sizes as transformers' ViTMAE."""
    torch.manual_seed(0)
    model = cls(ViTMAEConfig(**{**TINY_FIELDS, "norm_pix_loss": True, "layer_norm_eps": 1e-6, **fields}))
    # Its own position tables are zero until they are loaded.
    for module, dim in ((getattr(model, "vit", model).embeddings, 24), (getattr(model, "decoder", None), 16)):
        if module is not None:
            name = "position_embeddings" if dim == 24 else "decoder_pos_embed"
            getattr(module, name).data.copy_(sincos_positions(dim, (4, 4)))
    return randomise_weights(model)


def images_and_noise(channels=3, size=(32, 32), patches=16):
    """Two random images, and the noise of their masks."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, channels, *size, generator=generator)
    return images, torch.rand(2, patches, generator=generator)


def assert_same_state(model, expected):
    """Two models have the same tensors, bit for bit."""
    state, expected = full_state_dict(model), full_state_dict(expected)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def meta_tensors(shapes):
    """Tensors without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def save_torch(path, content, **kwargs):
    """`torch.save`; returns the path."""
    torch.save(content, path, **kwargs)
    return path


def write_malicious(folder):
    """A file of weights that would write the file "executed" beside it."""
    content = {"model": make_model_of_kind("encoder").state_dict(), "epoch": Malicious(folder / "executed")}
    return save_torch(folder / "m.pth", content)


def write_official_checkpoint(folder: Path, name: str, suffix: str = ".safetensors"):
    """
    Write a fixture as a file of the official code: only its names; the sizes in the file's metadata, or in the
    arguments of the official trainer. Returns its path, all tensors of the fixture, and its metadata.
    """
    path = FIXTURES / f"{name}.safetensors"
    tensors = load_file(path)
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    output = folder / f"{name}{suffix}"
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
