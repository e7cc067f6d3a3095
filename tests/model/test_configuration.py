"""The configuration: defaults, sizes, validation, saving."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ViTMAEConfig

from configuration_mae import MAEConfig, to_pair
from modeling_mae import MAEForPreTraining, MAEModel


def test_defaults_are_those_of_vitmae():
    ours, theirs = MAEConfig().to_dict(), ViTMAEConfig().to_dict()
    fields = [
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("attention_probs_dropout_prob", "initializer_range", "image_size", "patch_size", "num_channels", "qkv_bias"),
        *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads"),
        *("decoder_intermediate_size", "mask_ratio", "norm_pix_loss"),
    ]
    assert {field: ours[field] for field in fields} == {field: theirs[field] for field in fields}
    assert ours["layer_norm_eps"] == 1e-6
    assert MAEConfig.model_type == "mae"


@pytest.mark.parametrize(
    "size, width, depth, heads, patch, tensors",
    [
        ("tiny", 192, 12, 3, 16, 150),
        ("small", 384, 12, 6, 16, 150),
        ("base", 768, 12, 12, 16, 150),
        ("large", 1024, 24, 16, 16, 294),
        ("huge", 1280, 32, 16, 14, 390),
    ],
)
def test_sizes(size, width, depth, heads, patch, tensors):
    config = MAEConfig.from_size(size)
    with torch.device("meta"):
        model = MAEModel(config)
    assert len(model.state_dict()) == tensors  # of the official encoder files
    assert model.cls_token.shape[2] == width and len(model.blocks) == depth
    assert model.blocks[0].attn.num_heads == heads
    assert model.blocks[0].mlp.fc1.weight.shape == (4 * width, width)
    assert model.patch_embed.proj.weight.shape == (width, 3, patch, patch)
    assert model.pos_embed.shape[1] == (224 // patch) ** 2 + 1
    decoder = (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
    assert decoder == (512, 8, 16)


def test_number_of_parameters():
    with torch.device("meta"):
        model = MAEForPreTraining(MAEConfig.from_size("base"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 111_907_840  # of the official code


def test_size_overrides():
    config = MAEConfig.from_size("huge", patch_size=16, mask_ratio=0.5)
    assert (config.patch_size, config.mask_ratio, config.hidden_size) == (16, 0.5, 1280)
    with pytest.raises(ValueError, match="size='giant'.*tiny, small, base, large, huge"):
        MAEConfig.from_size("giant")


POSITIVE = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"),
    *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size"),
]


@pytest.mark.parametrize(
    "fields, parts",
    [
        *[({field: value}, [f"{field}={value}", "positive integer"]) for field in POSITIVE for value in (0, -3)],
        ({"image_size": 0}, ["image_size=0", "positive"]),
        ({"patch_size": (16, -1)}, ["patch_size=(16, -1)", "positive"]),
        ({"image_size": (224,)}, ["image_size=(224,)", "(height, width)"]),
        ({"image_size": [32, 32, 32]}, ["image_size=(32, 32, 32)", "(height, width)"]),
        ({"image_size": 225}, ["image_size=225", "patch_size=16", "divisible", "height 225", "224 and 240"]),
        ({"image_size": (224, 100)}, ["image_size=(224, 100)", "patch_size=16", "width 100", "96 and 112"]),
        ({"image_size": 8}, ["image_size=8", "patch_size=16", "16 and"]),
        ({"num_attention_heads": 7}, ["hidden_size=768", "divisible by num_attention_heads=7"]),
        (
            {"decoder_num_attention_heads": 7},
            ["decoder_hidden_size=512", "divisible by decoder_num_attention_heads=7"],
        ),
        ({"hidden_size": 30, "num_attention_heads": 3}, ["hidden_size=30", "divisible by 4", "sin-cos"]),
        (
            {"decoder_hidden_size": 30, "decoder_num_attention_heads": 3},
            ["decoder_hidden_size=30", "divisible by 4", "sin-cos"],
        ),
        *[
            ({field: value}, [f"{field}={value}", "[0, 1)"])
            for field in ("mask_ratio", "drop_path_rate", "attention_probs_dropout_prob")
            for value in (1.0, -0.1, 75, float("nan"))
        ],
        ({"initializer_range": -1.0}, ["initializer_range=-1.0", "negative"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps=0.0", "positive"]),
        ({"hidden_act": "gleu"}, ["hidden_act='gleu'", "gelu"]),
        ({"masking": "grid", "mask_ratio": 0.5}, ["masking='grid'", "mask_ratio=0.5", "0.75"]),
        (
            {"masking": "grid", "image_size": (240, 224)},
            ["masking='grid'", "even", "15 x 14", "image_size=(240, 224)"],
        ),
        ({"masking": "grid", "image_size": (224, 240)}, ["masking='grid'", "even", "14 x 15"]),
        ({"image_mean": [0.5, 0.5]}, ["image_mean=[0.5, 0.5]", "num_channels=3"]),
        ({"num_channels": 2, "image_mean": 0.5, "image_std": [1.0]}, ["image_std=[1.0]", "num_channels=2"]),
        ({"num_channels": 1, "image_mean": 0.5}, ["image_mean=[0.5]", "image_std=None", "together"]),
        ({"image_std": [0.1, 0.0, 0.1]}, ["image_std=[0.1, 0.0, 0.1]", "positive"]),
        # wrong types and unknown choices, refused by @strict
        ({"hidden_size": 768.0}, ["hidden_size", "int", "768.0"]),
        ({"image_size": "224"}, ["image_size", "'224'"]),
        ({"image_size": (224, 224.0)}, ["image_size", "int", "224.0"]),
        ({"mask_ratio": "0.75"}, ["mask_ratio", "float", "'0.75'"]),
        ({"norm_pix_loss": "yes"}, ["norm_pix_loss", "bool", "'yes'"]),
        ({"masking": "blok"}, ["masking", "blok", "block"]),
        ({"pooling": "max"}, ["pooling", "max", "mean"]),
    ],
)
def test_validation(fields, parts):
    with pytest.raises(StrictDataclassError) as error:
        MAEConfig(**fields)
    message = str(error.value)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("size, grid", [(224, (14, 14)), ([224, 160], (14, 10)), ((64, 224), (4, 14))])
def test_image_sizes(size, grid):
    config = MAEConfig(image_size=size)
    assert config.grid_size == grid and config.num_patches == grid[0] * grid[1]
    assert config.image_size == (size if isinstance(size, int) else tuple(size))


@pytest.mark.parametrize("size, grid", [(8, (12, 20)), ((8, 16), (12, 10)), ([4, 8], (24, 20))])
def test_patch_sizes(size, grid):
    config = MAEConfig(image_size=(96, 160), patch_size=size)
    assert config.grid_size == grid and config.num_patches == grid[0] * grid[1]


def test_to_pair():
    assert to_pair(3) == (3, 3) and to_pair([3, 5]) == to_pair((3, 5)) == (3, 5)


def test_integer_ratios():
    config = MAEConfig(mask_ratio=0, drop_path_rate=0)
    assert config.mask_ratio == 0
    config.mask_ratio = 0.5
    assert config.mask_ratio == 0.5


def test_mean_and_std():
    assert MAEConfig().image_mean == [0.485, 0.456, 0.406] and MAEConfig().image_std == [0.229, 0.224, 0.225]
    assert MAEConfig(num_channels=4).image_mean is None and MAEConfig(num_channels=1).image_std is None
    config = MAEConfig(num_channels=2, image_mean=0.5, image_std=(1, 0.25))
    assert config.image_mean == [0.5, 0.5] and config.image_std == [1.0, 0.25]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (64, 96), "patch_size": (8, 16), "masking": "block", "norm_pix_loss": True},
        {"image_size": [64, 96], "patch_size": [8, 16], "num_channels": 13, "mask_ratio": 0},
        {"num_channels": 1, "image_mean": 0.5, "image_std": 0.25, "pooling": "mean", "drop_path_rate": 0.1},
    ],
)
def test_round_trip(fields, tmp_path):
    config = MAEConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = MAEConfig.from_pretrained(tmp_path)
    loaded.transformers_version = config.transformers_version  # of the file, where there is one
    assert loaded == config and loaded.to_dict() == config.to_dict()
    assert loaded.image_size == config.image_size and type(loaded.image_size) is type(config.image_size)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mae"


def test_unknown_fields(tmp_path):
    config = MAEConfig(organ="heart", num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = MAEConfig.from_pretrained(tmp_path)
    assert config.organ == loaded.organ == "heart" and loaded.num_labels == 3


def test_invalid_override_is_refused_by_the_model(tmp_path):
    MAEConfig.from_size("tiny").save_pretrained(tmp_path)
    config = MAEConfig.from_pretrained(tmp_path, num_attention_heads=5)  # single fields only are checked here
    with pytest.raises(StrictDataclassError, match="hidden_size=192 must be divisible by num_attention_heads=5"):
        MAEModel(config)
    config = MAEConfig.from_pretrained(tmp_path, mask_ratio=0.5, image_size=[64, 96])
    assert config.mask_ratio == 0.5 and config.grid_size == (4, 6)
