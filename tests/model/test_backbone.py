"""Feature maps: against other models, any image size, transformers' contract of backbones."""

import copy
import inspect

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, ViTMAEForPreTraining
from transformers.backbone_utils import BackboneType

from configuration_mae import MAEConfig
from mae import load_checkpoint
from modeling_mae import MAEBackbone, MAEForPreTraining, MAEModel
from tests.support.checkpoints import make_vit_mae
from tests.support.models import assert_close, make_images, tiny_config, tiny_model


PYRAMID = {"num_hidden_layers": 4, "feature_pyramid": True}


def maps_by_loops(hidden_states, rows, columns):
    """The maps of tokens, one pixel after the other."""
    maps = torch.empty(len(hidden_states), hidden_states.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            maps[:, :, row, column] = hidden_states[:, 1 + row * columns + column]
    return maps


# Features


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_feature_maps_are_the_hidden_states_of_the_encoder(pooling):
    backbone = tiny_model(MAEBackbone, pooling=pooling, out_indices=[0, 1, 2], image_size=(32, 48))
    images = make_images(32, 48)
    outputs = backbone.mae(images, output_hidden_states=True)
    expected = outputs.hidden_states
    if pooling == "cls":
        norm = backbone.mae.norm
        expected = [F.layer_norm(state, (32,), norm.weight, norm.bias, eps=1e-6) for state in expected]
    feature_maps = backbone(images).feature_maps
    assert len(feature_maps) == 3
    for feature_map, hidden_states in zip(feature_maps, expected):
        assert_close(feature_map, maps_by_loops(hidden_states, 4, 6))
    assert_close(feature_maps[-1], maps_by_loops(outputs.last_hidden_state, 4, 6))


def test_feature_maps_are_those_of_vit_mae(tmp_path):
    """The weights, and an implementation of transformers, which masks nothing here and keeps the order."""
    make_vit_mae(ViTMAEForPreTraining).save_pretrained(tmp_path)
    backbone, report = load_checkpoint(tmp_path, MAEBackbone, out_indices=[1, 2])
    assert not report.new and all(name.startswith("decoder.") for name in report.unused)
    vit = ViTMAEForPreTraining.from_pretrained(tmp_path, mask_ratio=0.0).vit.eval()
    images = make_images()
    with torch.no_grad():
        outputs = vit(images, noise=torch.arange(16.0).expand(2, -1), output_hidden_states=True)
        first, last = backbone(images).feature_maps
        assert_close(first, maps_by_loops(vit.layernorm(outputs.hidden_states[1]), 4, 4))
        assert_close(last, maps_by_loops(outputs.last_hidden_state, 4, 4))


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (16, 64), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_size_and_channels_have_resampled_positions(size, channels):
    backbone = tiny_model(MAEBackbone, num_channels=channels)
    images = make_images(*size, channels=channels)
    (feature_map,) = backbone(images).feature_maps
    rows, columns = size[0] // 8, size[1] // 8
    table = backbone.mae.pos_embed[0, 1:].T.reshape(1, 32, 4, 4)
    table = F.interpolate(table, (rows, columns), mode="bicubic", align_corners=False)[0].flatten(1).T
    encoder = tiny_model(MAEModel, num_channels=channels, image_size=size)
    encoder.load_state_dict(backbone.mae.state_dict() | {"pos_embed": encoder.pos_embed})
    encoder.pos_embed.data = torch.cat([backbone.mae.pos_embed[0, :1], table])[None].detach()
    assert_close(feature_map, maps_by_loops(encoder(images).last_hidden_state, rows, columns))


def test_image_that_is_no_multiple_of_a_patch_is_refused():
    with pytest.raises(ValueError, match="36 x 32 pixels.*multiple of the patch size"):
        tiny_model(MAEBackbone)(make_images(36, 32))


def test_uint8_images_are_normalised_with_the_configuration():
    backbone = tiny_model(MAEBackbone, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    assert_close(backbone(images).feature_maps[0], backbone((images / 255 - mean) / std).feature_maps[0])


@pytest.mark.parametrize("fields", [{}, PYRAMID])
def test_gradient_reaches_every_parameter(fields):
    backbone = tiny_model(MAEBackbone, **fields).train()
    sum(feature_map.square().mean() for feature_map in backbone(make_images(48, 32)).feature_maps).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in backbone.parameters())


def test_gradient_checkpointing_keeps_the_gradient():
    gradients = []
    for checkpointing in (False, True):
        backbone = tiny_model(MAEBackbone).train()
        if checkpointing:
            backbone.gradient_checkpointing_enable()
        backbone(make_images()).feature_maps[0].square().sum().backward()
        gradients.append(backbone.mae.blocks[0].mlp.fc1.weight.grad)
    assert_close(*gradients)


# Pyramid


def test_pyramid_has_the_strides_of_its_class():
    """Strides 4, 8, 16 and 32 for patches of 16, of odd and of tiny grids too."""
    backbone = MAEBackbone(tiny_config(**PYRAMID, patch_size=16, image_size=64)).eval()
    assert backbone.channels == [32] * 4 and backbone.out_indices == [1, 2, 3, 4]
    for size in [(64, 64), (80, 48), (16, 16)]:
        shapes = [tuple(feature_map.shape[2:]) for feature_map in backbone(make_images(*size)).feature_maps]
        assert shapes == [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)]


def test_pyramid_samples_each_block_by_itself():
    """A transposed convolution with stride and kernel 2 is a product for each pixel."""
    backbone = tiny_model(MAEBackbone, **PYRAMID)
    images = make_images()
    plain = copy.deepcopy(backbone)
    plain.pyramid = nn.Identity()
    maps = plain(images).feature_maps

    def double(layer, feature_map):
        batch, _, rows, columns = feature_map.shape
        pixels = torch.einsum("bchw,cdpq->bdhpwq", feature_map, layer.weight)
        return pixels.reshape(batch, -1, 2 * rows, 2 * columns) + layer.bias.view(-1, 1, 1)

    up4, up2 = backbone.pyramid.up4, backbone.pyramid.up2
    norm = up4[1]
    middle = double(up4[0], maps[0]).transpose(1, 3)
    middle = (middle - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    expected = [
        double(up4[3], F.gelu(middle.transpose(1, 3))),
        double(up2, maps[1]),
        maps[2],
        maps[3].unflatten(3, (2, 2)).unflatten(2, (2, 2)).amax((3, 5)),
    ]
    for actual, feature_map in zip(backbone(images).feature_maps, expected):
        assert_close(actual, feature_map, 1e-4)


@pytest.mark.parametrize("depth, blocks", [(4, [1, 2, 3, 4]), (12, [4, 6, 8, 12]), (24, [8, 12, 16, 24])])
def test_default_blocks_of_a_pyramid_are_those_of_the_ade20k_recipe(depth, blocks):
    config = tiny_config(num_hidden_layers=depth, feature_pyramid=True)
    assert config.out_indices == blocks and config.out_features == [f"stage{block}" for block in blocks]


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 3}, {"num_hidden_layers": 4, "out_indices": [2, 4]}])
def test_pyramid_without_four_blocks_is_refused(fields):
    with pytest.raises(StrictDataclassError, match="feature_pyramid=True needs 4 feature maps"):
        MAEBackbone(tiny_config(feature_pyramid=True, **fields))


# The contract of transformers, which UperNet and the detectors rely on


def test_selection_of_features_follows_transformers():
    names = ["stem", *(f"stage{number}" for number in range(1, 13))]
    config = MAEConfig()
    assert config.stage_names == names and config.out_features == ["stage12"] and config.out_indices == [12]
    assert MAEConfig(out_features=["stage1", "stage3"]).out_indices == [1, 3]
    assert MAEConfig(out_indices=[0, 2]).out_features == ["stem", "stage2"]
    both = MAEConfig(out_features=["stem", "stage1"], out_indices=[0, 1])
    assert both.out_features == ["stem", "stage1"] and both.out_indices == [0, 1]
    with pytest.raises(ValueError):
        MAEConfig(out_features=["stage1", "stage2"], out_indices=[0, 2])
    for wrong in ({"out_indices": [13]}, {"out_features": ["stage13"]}, {"out_indices": [2, 1]}):
        with pytest.raises(ValueError):
            MAEConfig(**wrong)


def test_default_selection_follows_a_later_depth():
    config = MAEConfig()
    config.num_hidden_layers = 6
    assert config.out_indices == [6] and MAEConfig(**config.to_dict()).out_indices == [6]


def test_selection_survives_saving(tmp_path):
    MAEConfig(out_indices=[1, 5]).save_pretrained(tmp_path)
    assert MAEConfig.from_pretrained(tmp_path).out_features == ["stage1", "stage5"]
    assert MAEConfig.from_pretrained(tmp_path, out_features=["stage2"]).out_indices == [2]


def test_attributes_are_those_of_a_backbone():
    config = tiny_config(out_features=["stem", "stage2"])
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is MAEBackbone and backbone.backbone_type is BackboneType.TRANSFORMERS
    assert list(inspect.signature(backbone.forward).parameters)[0] == "pixel_values"
    assert backbone.stage_names == ["stem", "stage1", "stage2"] and backbone.num_features == [32, 32, 32]
    assert backbone.out_feature_channels == {"stem": 32, "stage1": 32, "stage2": 32}
    assert backbone.out_features == ["stem", "stage2"] and backbone.out_indices == [0, 2]
    assert backbone.channels == [32, 32]
    for name in ("out_features", "out_indices"):  # back to the default
        changed = copy.deepcopy(config)
        setattr(changed, name, None)
        backbone = MAEBackbone(changed)
        assert backbone.out_features == ["stage2"] and backbone.channels == [32]
        assert len(backbone(make_images()).feature_maps) == 1


def test_outputs_hold_only_what_is_asked_for():
    backbone = tiny_model(MAEBackbone, out_indices=[1, 2])
    outputs = backbone(make_images())
    assert isinstance(outputs.feature_maps, tuple) and outputs.hidden_states is None and outputs.attentions is None
    outputs = backbone.forward_with_filtered_kwargs(make_images(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == 3 * [(2, 17, 32)]
    assert [tuple(attention.shape) for attention in outputs.attentions] == 2 * [(2, 4, 17, 17)]
    (feature_maps,) = backbone(make_images(), return_dict=False)
    assert_close(feature_maps[1], outputs.feature_maps[1])


# Checkpoints


def test_backbone_of_a_pretraining_checkpoint_is_its_encoder(tmp_path):
    source = tiny_model(MAEForPreTraining)
    source.save_pretrained(tmp_path)
    images = make_images()
    expected = source.mae(images).last_hidden_state
    backbone, info = MAEBackbone.from_pretrained(tmp_path, out_indices=[1, 2], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert backbone.mae.pos_embed.requires_grad  # unlike in pre-training
    for loaded in (backbone, load_checkpoint(tmp_path, MAEBackbone, out_features=["stage1", "stage2"])[0]):
        assert_close(loaded(images).feature_maps[1], maps_by_loops(expected, 4, 4))


def test_pyramid_round_trip_keeps_the_feature_maps(tmp_path):
    backbone = tiny_model(MAEBackbone, **PYRAMID)
    backbone.save_pretrained(tmp_path)
    expected = backbone(make_images()).feature_maps
    for loaded in (MAEBackbone.from_pretrained(tmp_path), load_checkpoint(tmp_path)[0]):
        assert type(loaded) is MAEBackbone and loaded.config.out_indices == [1, 2, 3, 4]
        for actual, feature_map in zip(loaded.eval()(make_images()).feature_maps, expected):
            assert_close(actual, feature_map)
