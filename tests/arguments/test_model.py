"""Flags that choose the model."""

import pytest

from mae.arguments.model import CheckpointArguments, FeatureArguments, ModelArguments
from mae.utils.errors import UserError


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (CheckpointArguments, {"model_revision": "main"}, "--model_revision needs --model_name_or_path"),
        (CheckpointArguments, {"image_size": [1, 2, 3]}, "--image_size 1 2 3"),
        (ModelArguments, {"patch_size": [1, 2, 3]}, "--patch_size 1 2 3"),
        (ModelArguments, {"image_mean": ["0.5"]}, "--image_mean and --image_std"),
        (ModelArguments, {"image_std": ["0.5"]}, "--image_mean and --image_std"),
        (ModelArguments, {"image_mean": ["auto"], "image_std": ["0.5"]}, "--image_mean auto"),
        (ModelArguments, {"config_name": "a", "model_size": "base"}, "--config_name and --model_size"),
        (ModelArguments, {"config_name": "a", "model_name_or_path": "b"}, "--config_name and --model_name_or_path"),
        (FeatureArguments, {}, "--model_name_or_path is required"),
        (FeatureArguments, {"model_name_or_path": "a", "pooling": "max"}, "--pooling max must be one of cls, mean"),
        (FeatureArguments, {"model_name_or_path": "a", "batch_size": 0}, "--batch_size 0"),
    ],
)
def test_impossible_model_is_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_options_of_features_are_those_of_the_flags():
    arguments = FeatureArguments(model_name_or_path="a", layer=-2, pooling="mean", dataloader_num_workers=0)
    assert arguments.encoding == {
        "pooling": "mean",
        "layer": -2,
        "batch_size": 64,
        "num_workers": 0,
        "retry_minutes": 10,
    }
