"""The backbone inside models of transformers that take the configuration of one."""

import pytest
import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitMatteConfig,
    VitMatteForImageMatting,
)

from configuration_mae import MAEConfig
from modeling_mae import MAEBackbone, MAEForPreTraining, sincos_positions
from tests.support.models import assert_close, make_images, tiny_model


SMALL = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 10, "num_labels": 3}
SMALL |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-trained model with patches of 16, as the strides of detectors are."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(MAEForPreTraining, num_hidden_layers=4, patch_size=16, image_size=64).save_pretrained(folder)
    return folder


def make(cls, config_class, checkpoint, pyramid=True, **fields):
    """A model around the pre-trained backbone."""
    backbone_config = MAEConfig.from_pretrained(checkpoint, feature_pyramid=pyramid)
    model = cls(config_class(backbone_config=backbone_config, **fields)).eval()
    pretrained = MAEBackbone.from_pretrained(checkpoint, feature_pyramid=pyramid)
    (backbone,) = [module for module in model.modules() if isinstance(module, MAEBackbone)]
    assert_close(backbone.mae.pos_embed, sincos_positions(32, (4, 4)))  # it initialises itself
    backbone.load_state_dict(pretrained.state_dict())
    return model


def check_round_trip(model, path, output):
    model.save_pretrained(path)
    loaded = type(model).from_pretrained(path).eval()
    images = make_images(*SIZE)
    assert_close(loaded(images)[output], model(images)[output], 1e-4)


def check_gradient(model):
    """Every block, and the pyramid, learns."""
    for name, parameter in model.named_parameters():
        if ".mae.blocks." in name or ".pyramid." in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_upernet_trains_and_survives_saving(checkpoint, tmp_path):
    fields = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": 3}
    model = make(UperNetForSemanticSegmentation, UperNetConfig, checkpoint, **fields)
    check_round_trip(model, tmp_path, "logits")
    outputs = model.train()(make_images(*SIZE), labels=torch.randint(0, 3, (2, *SIZE)))
    assert outputs.logits.shape == (2, 3, *SIZE)
    outputs.loss.backward()
    check_gradient(model)


def test_detr_detects_on_the_last_block(checkpoint, tmp_path):
    model = make(
        DetrForObjectDetection, DetrConfig, checkpoint, pyramid=False, **SMALL, use_timm_backbone=False, dropout=0.0
    )
    check_round_trip(model, tmp_path, "pred_boxes")
    model(make_images(*SIZE)).pred_boxes.square().sum().backward()
    check_gradient(model)


def test_rt_detr_detects_on_four_levels(checkpoint, tmp_path):
    """Its defaults are for three levels, which a pyramid does not have."""
    levels = {"encoder_in_channels": [32] * 4, "feat_strides": [4, 8, 16, 32], "encode_proj_layers": [3]}
    levels |= {"num_feature_levels": 4, "decoder_in_channels": [32] * 4, "encoder_hidden_dim": 32}
    model = make(RTDetrForObjectDetection, RTDetrConfig, checkpoint, **SMALL, **levels)
    check_round_trip(model, tmp_path, "pred_boxes")
    assert model(make_images(*SIZE)).pred_boxes.shape == (2, 10, 4)


def test_mask2former_trains_on_instances(checkpoint, tmp_path):
    pytest.importorskip("scipy")  # which its loss needs
    fields = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 2}
    fields |= {"num_attention_heads": 2, "encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_queries": 5}
    model = make(
        Mask2FormerForUniversalSegmentation, Mask2FormerConfig, checkpoint, **fields, num_labels=3, train_num_points=64
    )
    check_round_trip(model, tmp_path, "masks_queries_logits")
    masks = [torch.randint(0, 2, (2, *SIZE)).float() for _ in range(2)]
    outputs = model.train()(make_images(*SIZE), mask_labels=masks, class_labels=[torch.tensor([0, 1])] * 2)
    assert outputs.masks_queries_logits.shape == (2, 5, 16, 24)
    outputs.loss.backward()
    check_gradient(model)


def test_vitmatte_takes_four_channels():
    backbone = tiny_model(MAEBackbone, num_channels=4, patch_size=16)
    config = VitMatteConfig(
        backbone_config=backbone.config,
        hidden_size=32,
        fusion_hidden_sizes=[16, 8, 8, 8],
        convstream_hidden_sizes=[8, 8, 8],
    )
    assert VitMatteForImageMatting(config)(make_images(*SIZE, channels=4)).alphas.shape == (2, 1, *SIZE)
