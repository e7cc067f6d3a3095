"""The configuration: defaults, sizes, validation, saving."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ViTMAEConfig

from configuration_mae import CONFIG_FIELDS, DENSE_FIELDS, LABEL_FIELDS, MAEConfig, to_pair, to_size
from modeling_mae import MAEForPreTraining, MAEModel


def test_defaults_equal_those_of_vitmae():
    mae, vitmae = MAEConfig().to_dict(), ViTMAEConfig().to_dict()
    fields = [
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("attention_probs_dropout_prob", "initializer_range", "image_size", "patch_size", "num_channels", "qkv_bias"),
        *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads"),
        *("decoder_intermediate_size", "mask_ratio", "norm_pix_loss"),
    ]
    assert {field: mae[field] for field in fields} == {field: vitmae[field] for field in fields}
    assert mae["layer_norm_eps"] == 1e-6
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
def test_from_size_gives_the_official_shapes(size, width, depth, heads, patch, tensors):
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


def test_base_model_has_the_official_number_of_parameters():
    with torch.device("meta"):
        model = MAEForPreTraining(MAEConfig.from_size("base"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 111_907_840  # of the official code


def test_from_size_takes_overrides_and_refuses_unknown_sizes():
    config = MAEConfig.from_size("huge", patch_size=16, mask_ratio=0.5)
    assert (config.patch_size, config.mask_ratio, config.hidden_size) == (16, 0.5, 1280)
    with pytest.raises(ValueError, match="giant.*tiny, small, base, large, huge"):
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
        ({"image_size": 225}, ["image_size=225", "patch_size=16", "height 225", "224", "240"]),
        ({"image_size": (224, 100)}, ["image_size=(224, 100)", "patch_size=16", "width 100", "96", "112"]),
        ({"image_size": 8}, ["image_size=8", "patch_size=16", "height of 16"]),
        ({"num_attention_heads": 7}, ["hidden_size=768", "num_attention_heads=7"]),
        (
            {"decoder_num_attention_heads": 7},
            ["decoder_hidden_size=512", "decoder_num_attention_heads=7"],
        ),
        ({"hidden_size": 30, "num_attention_heads": 3}, ["hidden_size=30", "by 4", "sin-cos"]),
        (
            {"decoder_hidden_size": 30, "decoder_num_attention_heads": 3},
            ["decoder_hidden_size=30", "by 4", "sin-cos"],
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
        ({"num_channels": 1, "image_mean": 0.5}, ["image_mean=[0.5]", "image_std=None"]),
        ({"image_std": [0.1, 0.0, 0.1]}, ["image_std=[0.1, 0.0, 0.1]", "positive"]),
        # @strict refuses wrong types and unknown choices
        ({"hidden_size": 768.0}, ["hidden_size", "int", "768.0"]),
        ({"image_size": "224"}, ["image_size", "'224'"]),
        ({"image_size": (224, 224.0)}, ["image_size", "int", "224.0"]),
        ({"mask_ratio": "0.75"}, ["mask_ratio", "float", "'0.75'"]),
        ({"norm_pix_loss": "yes"}, ["norm_pix_loss", "bool", "'yes'"]),
        ({"masking": "blok"}, ["masking", "blok", "block"]),
        ({"pooling": "max"}, ["pooling", "max", "mean"]),
    ],
)
def test_invalid_field_is_refused_by_name_and_value(fields, parts):
    with pytest.raises(StrictDataclassError) as error:
        MAEConfig(**fields)
    message = str(error.value)
    assert all(part in message for part in parts), message


def test_config_fields_are_the_documented_arguments():
    assert CONFIG_FIELDS + DENSE_FIELDS == tuple(re.findall(r"^        (\w+) \(", MAEConfig.__doc__, re.MULTILINE))


def test_label_fields_are_inherited():
    assert not set(LABEL_FIELDS) & set(CONFIG_FIELDS)
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}, "problem_type": "regression"}
    config = MAEConfig(**labels)
    assert {name: getattr(config, name) for name in LABEL_FIELDS} == {"num_labels": 2, **labels}


@pytest.mark.parametrize("size, grid", [(224, (14, 14)), ([224, 160], (14, 10)), ((64, 224), (4, 14))])
def test_image_size_of_any_form_gives_the_patch_grid(size, grid):
    config = MAEConfig(image_size=size)
    assert config.grid_size == grid and config.num_patches == grid[0] * grid[1]
    assert config.image_size == (size if isinstance(size, int) else tuple(size))


@pytest.mark.parametrize("size, grid", [(8, (12, 20)), ((8, 16), (12, 10)), ([4, 8], (24, 20))])
def test_patch_size_of_any_form_gives_the_patch_grid(size, grid):
    config = MAEConfig(image_size=(96, 160), patch_size=size)
    assert config.grid_size == grid and config.num_patches == grid[0] * grid[1]


def test_to_pair_repeats_a_single_side():
    assert to_pair(3) == (3, 3) and to_pair([3, 5]) == to_pair((3, 5)) == (3, 5)


def test_to_size_gives_an_int_for_a_square():
    assert to_size([3]) == to_size((3, 3)) == 3 and to_size([3, 5]) == (3, 5)


def test_ratio_may_be_an_integer():
    config = MAEConfig(mask_ratio=0, drop_path_rate=0)
    assert config.mask_ratio == 0
    config.mask_ratio = 0.5
    assert config.mask_ratio == 0.5


def test_mean_and_std_default_to_imagenet_for_three_channels():
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
def test_saved_configuration_loads_as_an_equal_one(fields, tmp_path):
    config = MAEConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = MAEConfig.from_pretrained(tmp_path)
    loaded.transformers_version = config.transformers_version  # a loaded configuration keeps that of its file
    assert loaded == config and loaded.to_dict() == config.to_dict()
    assert loaded.image_size == config.image_size and type(loaded.image_size) is type(config.image_size)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mae"


def test_unknown_fields_survive_saving(tmp_path):
    config = MAEConfig(organ="heart", num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = MAEConfig.from_pretrained(tmp_path)
    assert config.organ == loaded.organ == "heart" and loaded.num_labels == 3


def test_invalid_override_is_refused_by_the_model(tmp_path):
    MAEConfig.from_size("tiny").save_pretrained(tmp_path)
    config = MAEConfig.from_pretrained(tmp_path, num_attention_heads=5)  # this checks each field alone
    with pytest.raises(StrictDataclassError, match="hidden_size=192 .*num_attention_heads=5"):
        MAEModel(config)
    config = MAEConfig.from_pretrained(tmp_path, mask_ratio=0.5, image_size=[64, 96])
    assert config.mask_ratio == 0.5 and config.grid_size == (4, 6)
