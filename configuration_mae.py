# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""Configuration of the Masked Autoencoder (He et al. 2021, arXiv 2111.06377)."""

from collections.abc import Iterable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def to_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """A size as (height, width); an int stands for a square."""
    return (size, size) if isinstance(size, int) else tuple(size)


def to_size(sides: Iterable[int]) -> int | tuple[int, int]:
    """One side, or (height, width), as a configuration has it: an int for a square."""
    height, *others = sides
    width = others[0] if others else height
    return height if height == width else (height, width)


# Encoder sizes: the paper's base, large and huge (Section 4), and DeiT's tiny and small. The decoder is the
# same for all of them (Section 4.1, "MAE decoder": 8 blocks, 512 wide).
_SIZES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
        "patch_size": 14,
    },
}


@strict
class MAEConfig(PreTrainedConfig):
    r"""
    Configuration of [`MAEModel`], [`MAEForPreTraining`] and [`MAEForImageClassification`]. The defaults are those of
    ViT-B/16 at 224 x 224 with the paper's decoder. Field names are those of `ViTMAEConfig`.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder. Divisible by 4 (2-D sin-cos positions) and by `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder blocks.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads of each encoder block.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the encoder's MLPs.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs, a name of `transformers.activations.ACT2FN`. `"gelu"` is the exact GELU.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities, in [0, 1).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial cls and mask tokens. Linear layers are Xavier-uniform.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of every LayerNorm.
        image_size (`int` or `(int, int)`, *optional*, defaults to 224):
            Size of the images in pixels: a side, or (height, width).
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16):
            Size of the patches in pixels: a side, or (height, width). Divides `image_size`.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether the query, key and value projections have a bias.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the encoder in [0, 1), rising linearly over the blocks from 0 to this rate.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"cls"`):
            What `pooler_output` is: the cls token, or the mean of the patch tokens. With `"mean"` the encoder has no
            final norm and the classifier has `fc_norm` after the mean, as in the official fine-tuning code;
            `MAEForPreTraining` always has the final norm.
        head_batch_norm (`bool`, *optional*, defaults to `False`):
            Whether the classifier has a batch norm without scale and shift before it, as in the official linear probe.
        decoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the decoder. Divisible by 4 and by `decoder_num_attention_heads`.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8):
            Number of decoder blocks (Table 1a).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16):
            Number of attention heads of each decoder block.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the decoder's MLPs.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the patches that is removed, in [0, 1) (Figure 5). Used by `MAEForPreTraining`, and by `MAEModel`
            when it is given `noise`.
        masking (`"random"`, `"block"` or `"grid"`, *optional*, defaults to `"random"`):
            Which patches are removed (Table 1f). `"grid"` keeps one patch of every 2 x 2: `mask_ratio` 0.75 and a
            patch grid with even sides only.
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Whether the target pixels are normalised within each patch (Table 1d).
        image_mean (`float` or `list[float]`, *optional*):
            Mean of each channel of images in [0, 1]; written to the image processor that `save_pretrained` makes.
            For 3 channels it defaults to ImageNet's; for another number of channels `None` means that pixels are
            rescaled to [0, 1] and not normalised.
        image_std (`float` or `list[float]`, *optional*):
            Standard deviation of each channel, as `image_mean`.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: naming the field, its value and the rule it breaks.

    Example:

    ```python
    >>> from configuration_mae import MAEConfig
    >>> from modeling_mae import MAEForPreTraining

    >>> model = MAEForPreTraining(MAEConfig.from_size("tiny", image_size=(96, 160)))
    ```"""

    model_type = "mae"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.0
    pooling: Literal["cls", "mean"] = "cls"
    head_batch_norm: bool = False
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
    masking: Literal["random", "block", "grid"] = "random"
    norm_pix_loss: bool = False
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None = None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # JSON knows lists only; a tuple everywhere keeps a saved configuration equal to the one it came from.
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        if self.num_channels == 3:
            self.image_mean = IMAGENET_DEFAULT_MEAN if self.image_mean is None else self.image_mean
            self.image_std = IMAGENET_DEFAULT_STD if self.image_std is None else self.image_std
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                value = [value] * self.num_channels
            setattr(self, name, None if value is None else [float(channel) for channel in value])
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "MAEConfig":
        """
        The configuration of a named encoder size.

        Args:
            size (`str`):
                "tiny", "small", "base", "large" or "huge" (patch 14).
            overrides:
                Any field of the configuration.

        Raises:
            `ValueError`: for an unknown size.
        """
        if size not in _SIZES:
            raise ValueError(f"size={size!r} is not a known model size; choose one of {', '.join(_SIZES)}.")
        return cls(**{**_SIZES[size], **overrides})

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches along (height, width)."""
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """Number of patches of an image, L in the docstrings of the models."""
        return self.grid_size[0] * self.grid_size[1]

    def validate_architecture(self) -> None:
        """Checks every field, alone and against the others. Called by `__init__` and when a model is built."""
        # @strict checks types, when a field is set; ranges and combinations are left to us.
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer.")

        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            sides = to_pair(value)
            if len(sides) != 2 or min(sides) < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer or a pair (height, width) of them.")
        for axis, side, patch in zip(("height", "width"), to_pair(self.image_size), to_pair(self.patch_size)):
            if side % patch != 0:
                raise ValueError(
                    f"image_size={self.image_size!r} is not divisible by patch_size={self.patch_size!r}: the {axis} "
                    f"{side} leaves a remainder of {side % patch}. The nearest {axis}s that fit are "
                    f"{max(side // patch, 1) * patch} and {(side // patch + 1) * patch}."
                )

        for width_name, heads_name in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            width, heads = getattr(self, width_name), getattr(self, heads_name)
            if width % heads != 0:
                raise ValueError(f"{width_name}={width} must be divisible by {heads_name}={heads}.")
            if width % 4 != 0:
                raise ValueError(
                    f"{width_name}={width} must be divisible by 4: sin-cos positions hold a sine and a cosine for "
                    "each of two axes."
                )

        for name in ("mask_ratio", "drop_path_rate", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value!r} must be in [0, 1).")
        if not self.initializer_range >= 0:
            raise ValueError(f"initializer_range={self.initializer_range!r} must not be negative.")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps!r} must be positive.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown; choose one of {', '.join(sorted(ACT2FN))}.")

        if self.masking == "grid":
            if self.mask_ratio != 0.75:
                raise ValueError(f"masking='grid' keeps one patch of four: mask_ratio={self.mask_ratio} must be 0.75.")
            if self.grid_size[0] % 2 or self.grid_size[1] % 2:
                raise ValueError(
                    f"masking='grid' needs an even number of patches along each side, not {self.grid_size[0]} x "
                    f"{self.grid_size[1]} (image_size={self.image_size!r}, patch_size={self.patch_size!r})."
                )

        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, (int, float)) or len(value) != self.num_channels):
                raise ValueError(f"{name}={value!r} must hold one value for each of num_channels={self.num_channels}.")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError(
                f"image_mean={self.image_mean!r} and image_std={self.image_std!r} must be given together, or neither."
            )
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"image_std={self.image_std!r} must be positive.")


# The fields that this class adds to `PreTrainedConfig`, and those of `PreTrainedConfig` that come with a classifier.
CONFIG_FIELDS = tuple(MAEConfig.__annotations__)
LABEL_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")

MAEConfig.register_for_auto_class()

# Only as the installed package: from a Hub repository's copy, the first repository would shadow later ones.
if not __package__:
    AutoConfig.register("mae", MAEConfig, exist_ok=True)

__all__ = ["MAEConfig"]
