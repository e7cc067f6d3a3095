# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""Checks of the parts of a configuration that not every model has: decoder, image files, and dense tasks."""

import math

from transformers import PreTrainedConfig


def check_decoder(config: PreTrainedConfig) -> None:
    """Check the fields of a cross-attention decoder."""
    ratio = config.prediction_ratio
    if config.decoder_type != "cross_attention":
        for name in ("prediction_ratio", "weighted_feature_maps"):
            if getattr(config, name):
                raise ValueError(
                    f"{name}={getattr(config, name)!r} needs decoder_type='cross_attention', which predicts each "
                    f"patch alone, not {config.decoder_type!r}."
                )
    if ratio is not None and not 0 < ratio <= config.mask_ratio:
        raise ValueError(
            f"prediction_ratio={ratio!r} must be positive and at most mask_ratio={config.mask_ratio!r}: it is the "
            "share of all patches that is predicted, and only removed patches are."
        )


def check_files(config: PreTrainedConfig) -> None:
    """Check the fields that describe image files."""
    for name in ("input_channels", "value_range"):
        value = getattr(config, name)
        if value is not None and len(value) != config.num_channels:
            raise ValueError(f"{name}={value!r} must hold one value for each of num_channels={config.num_channels}.")
    for channel in config.input_channels or ():
        if channel == "" or (isinstance(channel, int) and channel < 1):
            raise ValueError(f"input_channels={config.input_channels!r} must hold names, or numbers from 1.")
    for pair in config.value_range or ():
        if len(pair) != 2 or not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]):
            raise ValueError(f"value_range={config.value_range!r} must hold pairs of a low and a higher number.")
    if config.nodata is not None and not math.isfinite(config.nodata):
        raise ValueError(f"nodata={config.nodata!r} must be finite. Other values are missing data anyway.")


def check_dense(config: PreTrainedConfig) -> None:
    """Check the fields of backbones and segmentation."""
    if config.feature_pyramid and len(set(config.out_indices)) != 4:
        raise ValueError(
            f"feature_pyramid=True needs 4 feature maps of different blocks, not out_indices={config.out_indices}. "
            f"Set out_indices, or use a model of at least 4 blocks instead of {config.num_hidden_layers}."
        )
    width, weight = config.segmentation_hidden_size, config.auxiliary_loss_weight
    if width is not None and width < 1:
        raise ValueError(f"segmentation_hidden_size={width} must be a positive integer.")
    if not weight >= 0:
        raise ValueError(f"auxiliary_loss_weight={weight!r} must not be negative.")
    if config.class_weights is not None and not min(config.class_weights, default=-1) >= 0:
        raise ValueError(f"class_weights={config.class_weights!r} must hold one number per class, none negative.")
