"""
FLOPs of a model and of a device, for model FLOP utilisation (MFU).

A FLOP is an addition or a multiplication, so that a product of matrices of m x k and k x n takes 2mkn. Matrix products
and attention count; activations, norms and the recomputation of gradient checkpointing do not.
"""

import torch

from configuration_mae import MAEConfig, to_pair
from modeling_mae import num_visible_patches


# Dense peak FLOP/s of matrix products by precision, from NVIDIA's data sheets. The first entry whose words are all in
# the device's name counts.
_PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"half": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100 NVL": {"half": 835e12, "tf32": 417e12, "fp32": 60e12},
    "H100": {"half": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H200": {"half": 989e12, "tf32": 494e12, "fp32": 67e12},
    "B200": {"half": 2250e12, "tf32": 1125e12, "fp32": 75e12},
    "A100": {"half": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "A10G": {"half": 70e12, "tf32": 35e12, "fp32": 31.5e12},
    "L40S": {"half": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    "L4": {"half": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    "T4": {"half": 65e12, "fp32": 8.1e12},
}


def peak_flops(device: torch.device, mixed_precision: str, tf32: bool) -> float | None:
    """Peak FLOP/s of a device at one of Accelerate's precisions ("no", "fp16", "bf16"); None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return _peak_of(name, mixed_precision, tf32)


def _peak_of(name: str, mixed_precision: str, tf32: bool) -> float | None:
    precision = "half" if mixed_precision in ("fp16", "bf16") else "tf32" if tf32 else "fp32"
    words = name.replace("-", " ").split()
    for known, peaks in _PEAKS.items():
        if all(word in words for word in known.split()):
            return peaks.get(precision)
    return None


def _block_flops(num_blocks: int, tokens: int, width: int, hidden: int) -> int:
    """Forward FLOPs of transformer blocks: qkv, scores, values, projection and MLP."""
    return num_blocks * 2 * tokens * (4 * width * width + 2 * width * hidden + 2 * tokens * width)


def forward_flops(config: MAEConfig, num_visible: int | None = None, num_predicted: int | None = None) -> int:
    """
    FLOPs of one image through [`MAEForPreTraining`] as it trains: `num_visible` patches are encoded and
    `num_predicted` patches are predicted (default: the visible ones of `config.mask_ratio`, and the removed ones or
    the share of `config.prediction_ratio`).
    """
    if num_visible is None:
        num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
    if num_predicted is None:
        num_predicted = config.num_patches - num_visible
        if config.prediction_ratio is not None:
            num_predicted = min(num_predicted, int(config.num_patches * config.prediction_ratio))
    patch_height, patch_width = to_pair(config.patch_size)
    patch_values = patch_height * patch_width * config.num_channels
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    encoder = _block_flops(config.num_hidden_layers, 1 + num_visible, width, config.intermediate_size)
    if config.decoder_type == "cross_attention":
        decoder = _cross_decoder_flops(config, 1 + num_visible, num_predicted)
    else:
        decoder = 2 * (1 + num_visible) * width * decoder_width + _block_flops(
            config.decoder_num_hidden_layers, 1 + config.num_patches, decoder_width, config.decoder_intermediate_size
        )
    embedding = 2 * num_visible * patch_values * width
    prediction = 2 * num_predicted * decoder_width * patch_values
    return embedding + encoder + decoder + prediction


def _cross_decoder_flops(config: MAEConfig, num_features: int, num_predicted: int) -> int:
    """Forward FLOPs of the blocks of a cross-attention decoder, and of the weighted sums of feature maps."""
    width, dim, num_blocks = config.hidden_size, config.decoder_hidden_size, config.decoder_num_hidden_layers
    keys_and_values = num_features * 2 * width * dim
    per_patch = 2 * dim * dim + 2 * dim * config.decoder_intermediate_size + 2 * num_features * dim
    sums = (config.num_hidden_layers + 1) * num_features * width if config.weighted_feature_maps else 0
    return num_blocks * 2 * (keys_and_values + num_predicted * per_patch + sums)


def training_flops(config: MAEConfig) -> int:
    """FLOPs of training on one image: the backward pass computes two products for each one of the forward pass."""
    return 3 * forward_flops(config)
