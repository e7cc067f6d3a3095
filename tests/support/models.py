"""Small models for the tests of several packages."""

from typing import Any

import torch
from torch import Tensor

from configuration_mae import MAEConfig
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    MAEPreTrainedModel,
)


# 4 x 4 patches of 8 x 8 pixels. Encoder and decoder differ in width and heads.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
KINDS = {
    "encoder": (MAEModel, {}),
    "pretraining": (MAEForPreTraining, {}),
    "classification_cls": (MAEForImageClassification, {"num_labels": 3}),
    "classification_mean": (MAEForImageClassification, {"num_labels": 3, "pooling": "mean"}),
}
DENSE_KINDS = {
    "backbone": (MAEBackbone, {"num_hidden_layers": 4, "feature_pyramid": True}),
    "segmentation_linear": (MAEForSemanticSegmentation, {"num_labels": 3}),
    "segmentation_upernet": (
        MAEForSemanticSegmentation,
        {"num_labels": 3, "num_hidden_layers": 4, "segmentation_head": "upernet", "segmentation_hidden_size": 16},
    ),
}
CROSS = {"decoder_type": "cross_attention", "prediction_ratio": 0.25, "weighted_feature_maps": True}
ALL_KINDS = KINDS | DENSE_KINDS | {"pretraining_cross": (MAEForPreTraining, CROSS)}


def tiny_config(**fields: Any) -> MAEConfig:
    return MAEConfig(**{**TINY, **fields})


def randomize(model: MAEPreTrainedModel) -> MAEPreTrainedModel:
    """Add noise to every parameter, so that no zero or one hides an error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def tiny_model(cls: type[MAEPreTrainedModel] = MAEForPreTraining, **fields: Any) -> MAEPreTrainedModel:
    """The same model on every call, in evaluation mode."""
    torch.manual_seed(0)
    return randomize(cls(tiny_config(**fields)))


def model_of_kind(kind: str) -> MAEPreTrainedModel:
    cls, fields = ALL_KINDS[kind]
    return tiny_model(cls, **fields)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def make_images(*size: int, channels: int = 3, batch_size: int = 2) -> Tensor:
    """The same images on every call, of 32 x 32 pixels by default."""
    return torch.randn(batch_size, channels, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def make_noise(batch_size: int = 2, num_patches: int = 16) -> Tensor:
    return torch.rand(batch_size, num_patches, generator=torch.Generator().manual_seed(2))
