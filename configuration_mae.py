# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""Configuration of the Masked Autoencoder (He et al. 2021, arXiv 2111.06377)."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


try:
    from .checks_mae import check_decoder, check_dense, check_files
except ImportError:
    if __package__:
        raise
    from checks_mae import check_decoder, check_dense, check_files


def to_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Return a size as (height, width). An int stands for a square."""
    return (size, size) if isinstance(size, int) else tuple(size)


def to_size(sides: Iterable[int]) -> int | tuple[int, int]:
    """Return one or two sides as a size: an int for a square, otherwise (height, width)."""
    height, *others = sides
    width = others[0] if others else height
    return height if height == width else (height, width)


# Encoder sizes: base, large and huge of the paper (Section 4), tiny and small of DeiT. All use the same decoder
# (Section 4.1, "MAE decoder": 8 blocks, 512 wide).
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
class MAEConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`MAEModel`], [`MAEForPreTraining`], [`MAEForImageClassification`], [`MAEBackbone`] and
    [`MAEForSemanticSegmentation`].

    The defaults give ViT-B/16 at 224 x 224 with the decoder of the paper. Field names follow `ViTMAEConfig`.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder, divisible by 4 (2-D sin-cos positions) and by `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder blocks.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads in each encoder block.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the encoder's MLPs.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs, a key of `transformers.activations.ACT2FN`. `"gelu"` is the exact GELU.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities, in [0, 1).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial cls and mask tokens. Linear layers are Xavier-uniform.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of every LayerNorm.
        image_size (`int` or `(int, int)`, *optional*, defaults to 224):
            Image size in pixels: a side, or (height, width).
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16):
            Patch size in pixels: a side, or (height, width). It must divide `image_size`.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether the query, key and value projections have a bias.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the encoder, in [0, 1). The rate rises linearly over the blocks, from 0 to this value.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"cls"`):
            Source of `pooler_output`: the cls token, or the mean of the patch tokens. With `"mean"` the encoder has no
            final norm and the classifier applies `fc_norm` after the mean, as in the official fine-tuning code.
            `MAEForPreTraining` always has the final norm.
        head_batch_norm (`bool`, *optional*, defaults to `False`):
            Whether a batch norm without scale and shift precedes the classifier, as in the official linear probe.
        decoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the decoder, divisible by 4 and by `decoder_num_attention_heads`.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8):
            Number of decoder blocks (Table 1a).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16):
            Number of attention heads in each decoder block.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the decoder's MLPs.
        decoder_type (`"self_attention"` or `"cross_attention"`, *optional*, defaults to `"self_attention"`):
            The paper's decoder, or that of CrossMAE (arXiv 2401.14391), in which mask tokens attend to the visible
            patches only, so that each patch is predicted alone.
        prediction_ratio (`float`, *optional*):
            Share of all patches that a cross-attention decoder predicts in training, in (0, `mask_ratio`]. They are
            drawn from the removed ones. By default all of these.
        weighted_feature_maps (`bool`, *optional*, defaults to `False`):
            Whether each block of a cross-attention decoder attends to a weighted sum, of its own, of the outputs of
            all encoder blocks. Otherwise it attends to the last one.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the patches that is removed, in [0, 1) (Figure 5). `MAEForPreTraining` uses it, and `MAEModel` if
            `noise` is passed.
        masking (`"random"`, `"block"` or `"grid"`, *optional*, defaults to `"random"`):
            Which patches are removed (Table 1f). `"grid"` keeps one patch of every 2 x 2. It requires
            `mask_ratio=0.75` and an even number of patches along each side.
        norm_pix_loss (`bool`, *optional*, defaults to `False`):
            Whether the target pixels are normalised within each patch (Table 1d).
        image_mean (`float` or `list[float]`, *optional*):
            Mean of each channel for pixels in [0, 1]. `save_pretrained` writes it to the image processor. For 3
            channels it defaults to the ImageNet mean. For other numbers of channels `None` means that pixels are
            rescaled to [0, 1] and not normalised.
        image_std (`float` or `list[float]`, *optional*):
            Standard deviation of each channel, with the same rules as `image_mean`.
        standardize_images (`bool`, *optional*, defaults to `False`):
            Whether the model gives each channel of each image mean 0 and variance 1 before it uses the image, in
            training and in inference. Use it if brightness and contrast of a channel mean nothing, as in fluorescence
            microscopy.
        input_channels (`list[int | str]`, *optional*):
            Channels of an image file that the model's channels are read from: numbers from 1, or names. By default all
            channels of the file, in their order. The model itself does not use it.
        value_range (`(float, float)` or a list of such pairs, *optional*):
            The values of an image file that are 0 and 1 in the model's input before `image_mean` and `image_std`, for
            all channels or for each. Values beyond are cut off. By default the range of the type. The model itself
            does not use it.
        nodata (`float`, *optional*):
            The value of an image file that stands for missing data, beside those that are not finite. Such values are
            replaced by `image_mean`. The model itself does not use it.
        out_features (`list[str]`, *optional*):
            Feature maps that [`MAEBackbone`] returns: "stem" is the input of the first block, "stage1" the output of
            the first block, and so on. Set either `out_features` or `out_indices`. By default it is the last block,
            and with `feature_pyramid` the blocks at 1/3, 1/2, 2/3 and the end (Appendix A.4: 4, 6, 8 and 12 of 12).
        out_indices (`list[int]`, *optional*):
            The same by numbers: 0 for "stem", 1 for "stage1".
        feature_pyramid (`bool`, *optional*, defaults to `False`):
            Whether four feature maps are sampled to 1/4, 1/2, 1 and 2 times the stride of a patch. That is a stride of
            4, 8, 16 and 32 pixels for patches of 16. UPerNet and most detectors need it.
        segmentation_head (`"linear"` or `"upernet"`, *optional*, defaults to `"linear"`):
            Head of [`MAEForSemanticSegmentation`]: a batch norm and a 1 x 1 convolution on the last block, or UPerNet
            on a feature pyramid.
        segmentation_hidden_size (`int`, *optional*):
            Width of UPerNet. It defaults to `hidden_size`, as in BEiT's code, which the paper uses.
        auxiliary_loss_weight (`float`, *optional*, defaults to 0.4):
            Weight of the loss of UPerNet's auxiliary head. With 0 there is no such head.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of the pixels that do not count in the loss of segmentation.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the loss of segmentation. By default all are 1.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: if a field is invalid. The message names field, value and rule.

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
    decoder_type: Literal["self_attention", "cross_attention"] = "self_attention"
    prediction_ratio: float | int | None = None
    weighted_feature_maps: bool = False
    mask_ratio: float | int = 0.75
    masking: Literal["random", "block", "grid"] = "random"
    norm_pix_loss: bool = False
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None = None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None = None
    standardize_images: bool = False
    input_channels: list[int | str] | tuple[int | str, ...] | None = None
    value_range: list | tuple | None = None
    nodata: float | int | None = None
    feature_pyramid: bool = False
    segmentation_head: Literal["linear", "upernet"] = "linear"
    segmentation_hidden_size: int | None = None
    auxiliary_loss_weight: float | int = 0.4
    semantic_loss_ignore_index: int = 255
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # JSON has lists only. With tuples throughout, a loaded configuration equals the one that was saved.
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
        if self.value_range:
            pairs = self.value_range if isinstance(self.value_range[0], (list, tuple)) else [self.value_range]
            pairs = list(pairs) * (self.num_channels if len(pairs) == 1 else 1)
            self.value_range = [[float(value) for value in pair] for pair in pairs]
        if self.input_channels is not None:
            self.input_channels = list(self.input_channels)
        if self.class_weights is not None:
            self.class_weights = [float(weight) for weight in self.class_weights]
        selected = [kwargs.pop(name, None) for name in ("out_features", "out_indices")]
        if selected != [None, None]:
            self.set_output_features_output_indices(*(value if value is None else list(value) for value in selected))
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "MAEConfig":
        """
        Create the configuration of a named encoder size.

        Args:
            size (`str`):
                "tiny", "small", "base", "large" or "huge" (patch size 14).
            overrides:
                Any field of the configuration.

        Raises:
            `ValueError`: if the size is unknown.
        """
        if size not in _SIZES:
            raise ValueError(f"size={size!r} is not a known model size. Choose one of {', '.join(_SIZES)}.")
        return cls(**{**_SIZES[size], **overrides})

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches along (height, width)."""
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """Number of patches in an image, L in the docstrings of the models."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that [`MAEBackbone`] can return."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    # Unless they are set, these depend on fields that may still change.

    @BackboneConfigMixin.out_indices.getter
    def out_indices(self) -> list[int]:
        if self._out_indices is not None:
            return self._out_indices
        depth = self.num_hidden_layers
        return [depth // 3, depth // 2, math.ceil(2 * depth / 3), depth] if self.feature_pyramid else [depth]

    @BackboneConfigMixin.out_features.getter
    def out_features(self) -> list[str]:
        return [self.stage_names[index] for index in self.out_indices]

    def validate_architecture(self) -> None:
        """Check the range of every field and the combinations of fields. `@strict` runs it after `__init__`."""
        # @strict itself checks types only.
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
                raise ValueError(f"{name}={value!r} must be a positive integer or a pair of them, (height, width).")
        for axis, side, patch in zip(("height", "width"), to_pair(self.image_size), to_pair(self.patch_size)):
            if side % patch != 0:
                raise ValueError(
                    f"image_size={self.image_size!r} is not divisible by patch_size={self.patch_size!r}: the {axis} "
                    f"{side} leaves a remainder of {side % patch}. Use a {axis} of {max(side // patch, 1) * patch} or "
                    f"{(side // patch + 1) * patch}."
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
                    f"{width_name}={width} must be divisible by 4, because sin-cos positions have a sine and a cosine "
                    "for each of two axes."
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
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown. Choose one of {', '.join(sorted(ACT2FN))}.")

        if self.masking == "grid":
            if self.mask_ratio != 0.75:
                raise ValueError(f"masking='grid' keeps 1 patch of 4, so mask_ratio={self.mask_ratio} must be 0.75.")
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
                f"image_mean={self.image_mean!r} and image_std={self.image_std!r} must be set together, or neither."
            )
        if self.image_std is not None and min(self.image_std) <= 0:
            raise ValueError(f"image_std={self.image_std!r} must be positive.")
        for check in (check_decoder, check_files, check_dense):
            check(self)


# The fields of backbones and segmentation. Encoder, decoder and classifier do not depend on them.
DENSE_FIELDS = (
    "out_features",
    "out_indices",
    "feature_pyramid",
    "segmentation_head",
    "segmentation_hidden_size",
    "auxiliary_loss_weight",
    "semantic_loss_ignore_index",
    "class_weights",
)
# The fields that describe image files.
FILE_FIELDS = ("input_channels", "value_range", "nodata")
# The other fields that MAEConfig itself defines, in order. It inherits more from PreTrainedConfig.
CONFIG_FIELDS = tuple(
    name for name in MAEConfig.__annotations__ if not name.startswith("_") and name not in DENSE_FIELDS
)
# The inherited fields that describe the labels of a classifier. A checkpoint keeps them beside CONFIG_FIELDS.
LABEL_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")

MAEConfig.register_for_auto_class()

# Only in the installed package: a copy from one Hub repository would shadow the copies from others.
if not __package__:
    AutoConfig.register("mae", MAEConfig, exist_ok=True)

__all__ = ["CONFIG_FIELDS", "DENSE_FIELDS", "FILE_FIELDS", "LABEL_FIELDS", "MAEConfig"]
