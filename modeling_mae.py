# Copyright 2026 The MAE authors. SPDX-License-Identifier: Apache-2.0
"""
The Masked Autoencoder (He et al. 2021, arXiv 2111.06377) as transformers models.

    MAEModel                     image -> patches -> [masked] -> ViT encoder
    MAEForPreTraining            encoder on the visible patches -> light decoder -> pixels of the masked ones
    MAEForImageClassification    encoder -> class scores
    MAEBackbone                  encoder -> feature maps of any blocks, for detectors and other heads
    MAEForSemanticSegmentation   encoder -> class scores of each pixel

In the docstrings B is the batch size, C the number of channels, H and W the image size in pixels, L the number of
patches in an image, P the number of values in a patch (patch height * patch width * C) and D the encoder width.
Parameter names follow the official code and timm, so encoder checkpoints from both have the same keys.
"""

import copy
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import create_repo, file_exists
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.image_utils import PILImageResampling
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple


try:
    from .attention_mae import DEFAULT_ATTENTION
    from .configuration_mae import MAEConfig, to_pair
    from .cross_decoder_mae import choose_predicted, make_decoder
    from .dense_mae import MAEFeaturePyramid, SegmentationMixin, make_heads, resize_logits, to_feature_map
    from .layers_mae import MAEBlock, MAEDecoderBase, MAEPatchEmbeddings, resample_positions, sincos_positions
    from .outputs_mae import MAEForPreTrainingOutput, MAEModelOutput, MAEReconstructionOutput
    from .patches_mae import (
        MaskedPatches,
        SquaredNorms,
        check_pixel_values,
        image_statistics,
        invert,
        mask_from_noise,
        normalize,
        num_visible_patches,
        patch_statistics,
        patchify,
        resize_patches,
        standardize,
        take_patches,
        target_patches,
    )
except ImportError:
    if __package__:
        raise
    from attention_mae import DEFAULT_ATTENTION
    from configuration_mae import MAEConfig, to_pair
    from cross_decoder_mae import choose_predicted, make_decoder
    from dense_mae import MAEFeaturePyramid, SegmentationMixin, make_heads, resize_logits, to_feature_map
    from layers_mae import MAEBlock, MAEDecoderBase, MAEPatchEmbeddings, resample_positions, sincos_positions
    from outputs_mae import MAEForPreTrainingOutput, MAEModelOutput, MAEReconstructionOutput
    from patches_mae import (
        MaskedPatches,
        SquaredNorms,
        check_pixel_values,
        image_statistics,
        invert,
        mask_from_noise,
        normalize,
        num_visible_patches,
        patch_statistics,
        patchify,
        resize_patches,
        standardize,
        take_patches,
        target_patches,
    )


# Models


def _own_size_first(name_or_path, config, kwargs) -> tuple:
    """
    Return the `config` and `kwargs` that load a checkpoint at its own sizes, and the requested image and patch size,
    or `None` if no size is requested or the checkpoint has no configuration. The requested `image_size` and
    `patch_size` are in `kwargs`, or in `config`, where `AutoModel` puts them.
    """
    config, kwargs = copy.deepcopy(config), dict(kwargs)
    sizes = {name: kwargs.pop(name, getattr(config, name, None)) for name in ("image_size", "patch_size")}
    own_config: dict[str, Any] = {}
    requested = None
    if name_or_path is not None and any(sizes.values()):
        hub_kwargs = {**kwargs, "trust_remote_code": None}  # get_config_dict would warn about True
        try:
            own_config, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
        except OSError:
            pass  # the checkpoint has weights only, which must fit the given configuration
    if own_config:
        own = {name: own_config.get(name, getattr(MAEConfig, name)) for name in sizes}
        requested = [size or own[name] for name, size in sizes.items()]
        sizes = own
    sizes = {name: size for name, size in sizes.items() if size}
    if isinstance(config, PreTrainedConfig):  # remote code has an MAEConfig class of its own
        config.update(sizes)
    else:
        kwargs |= sizes
    return config, kwargs, requested


def _other_parts(*own: str) -> list[str]:
    """Patterns of the parameters around an encoder, except `own` parts of a model. Other models leave them out."""
    parts = ("decoder", "head", "head_norm", "fc_norm", "pyramid", "decode_head", "auxiliary_head")
    return [rf"^{part}\." for part in parts if part not in own]


class MAEPreTrainedModel(PreTrainedModel):
    """Base class of the models: initialisation, loading, and saving of a complete directory."""

    config_class = MAEConfig
    base_model_prefix = "mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MAEBlock", "MAECrossBlock"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _pipeline_tag = "image-feature-extraction"
    # For PEFT: the linear layers of the encoder's blocks, and none of the decoder's.
    lora_target_modules = r"(mae\.)?blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    # Whether position tables are trained. Pre-training keeps them fixed (Section 3, "sine-cosine").
    _positions_trainable = False

    def __init__(self, config: MAEConfig, *args: Any, **kwargs: Any):
        # `from_pretrained` overrides fields by assignment, which checks each field alone.
        config.validate()
        super().__init__(config, *args, **kwargs)
        if (peft := sys.modules.get("peft.utils.constants")) is not None:  # PEFT asks a table, and not the model
            table = peft.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            table.setdefault(config.model_type, self.lora_target_modules)

    def post_init(self) -> None:
        super().post_init()
        # transformers adds what the encoder ignores. But surplus parameters of a model's own parts must be reported.
        ignored = type(self)._keys_to_ignore_on_load_unexpected  # type: ignore[has-type]
        self._keys_to_ignore_on_load_unexpected = set(ignored or ())

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        # transformers asks for None if the user requests no implementation.
        if requested_attention in (None, DEFAULT_ATTENTION):
            return DEFAULT_ATTENTION
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def _init_weights(self, module: nn.Module) -> None:
        # transformers skips modules without own parameters, so each rule belongs to the module that owns the
        # parameter. Its `init` functions do not change loaded tensors.
        if isinstance(module, nn.Linear):
            # The bound of the fused qkv is that of the whole matrix, sqrt(6 / 4D), as in the official code.
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # Xavier for the shape (D, C * patch). A view of that shape would lose the mark of a loaded tensor.
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
            if module.affine:  # not in a linear probe
                init.ones_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, MAEModel):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.pos_embed, sincos_positions(self.config.hidden_size, module.grid_size))
        elif isinstance(module, MAEDecoderBase):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.pos_embed, sincos_positions(self.config.decoder_hidden_size, module.grid_size))

    def _position_owners(self) -> list[nn.Module]:
        """Return the modules that have a position table (`pos_embed`, `grid_size`)."""
        return [module for module in self.modules() if isinstance(module, (MAEModel, MAEDecoderBase))]

    def _set_positions_trainable(self) -> None:
        for module in self._position_owners():
            module.pos_embed.requires_grad_(self._positions_trainable)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside one-dimensional ones. Pre-training has none, as officially."""
        return {"mae.cls_token", "mae.pos_embed"} if self._positions_trainable else set()

    def layer_ids(self) -> dict[str, int]:
        """
        Layer number of each parameter, for layer-wise learning-rate decay (Appendix A.1): 0 for patch embedding, cls
        token and positions, 1 to `num_hidden_layers` for the blocks, and one more for later layers.
        """
        ids = {}
        for name, _ in self.named_parameters():
            if name.startswith("mae.blocks."):
                ids[name] = int(name.split(".")[2]) + 1
            else:
                first = name in ("mae.cls_token", "mae.pos_embed") or name.startswith("mae.patch_embed.")
                ids[name] = 0 if first else self.config.num_hidden_layers + 1
        return ids

    @torch.no_grad()
    def resize_positions(self, image_size: int | tuple[int, int], patch_size=None) -> None:
        """
        Resample the position tables for images of another size in pixels and, with another `patch_size`, the patch
        projections. Set both in the configuration.
        """
        config, old_patch = copy.deepcopy(self.config), to_pair(self.config.patch_size)
        config.image_size = image_size if isinstance(image_size, int) else tuple(image_size)
        config.patch_size = patch_size or config.patch_size
        config.validate()
        self.config.image_size, self.config.patch_size = config.image_size, config.patch_size
        if (new_patch := to_pair(config.patch_size)) != old_patch:
            resize_patches(self, old_patch, new_patch)
        for module in self._position_owners():
            table = resample_positions(module.pos_embed, module.grid_size, config.grid_size)
            module.pos_embed = nn.Parameter(table.clone(), requires_grad=module.pos_embed.requires_grad)
            module.grid_size = config.grid_size

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Load a model like [`PreTrainedModel.from_pretrained`], with fixed position tables frozen. `image_size=…` and
        `patch_size=…`, or a `config` with other sizes, resample the position tables and patch projections.
        """
        config, kwargs, sizes = _own_size_first(pretrained_model_name_or_path, config, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if sizes is not None:
            model.resize_positions(*sizes)
        model._set_positions_trainable()  # transformers makes every parameter trainable
        return loaded

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, **kwargs):
        """
        Save a complete directory: both modules, an `auto_map` for every Auto class and, if the directory has no image
        processor, one made from the configuration. Arguments as in [`PreTrainedModel.save_pretrained`]. With
        `push_to_hub=True` those of [`~MAEPreTrainedModel.push_to_hub`] are accepted too.
        """
        if push_to_hub and kwargs.get("distributed_checkpoint"):  # all processes save, but one pushes
            raise ValueError("A distributed checkpoint cannot be pushed. Load it whole, and call push_to_hub.")
        hub_kwargs = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        self.config.auto_map = dict(_AUTO_MAP)  # transformers adds the saved class only
        # A copy, because transformers empties the dictionary.
        super().save_pretrained(save_directory, is_main_process, state_dict and dict(state_dict), **kwargs)
        if not is_main_process:
            return
        if not os.path.exists(os.path.join(save_directory, _PROCESSOR_FILE)):
            self._make_image_processor().save_pretrained(save_directory)
        if push_to_hub:
            repo_id = hub_kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self._push(repo_id, {"state_dict": state_dict, **kwargs}, **hub_kwargs)

    def _make_image_processor(self):
        return make_image_processor(self.config)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs: Any) -> str:
        """
        Push the model to the Hub. Arguments as in [`PreTrainedModel.push_to_hub`]. An image processor that the
        repository has is kept. A new model card gets a pipeline tag and tags.
        """
        if unknown := sorted(kwargs.keys() - set(_HUB_ARGUMENTS)):
            raise TypeError(f"push_to_hub() got unexpected arguments: {', '.join(unknown)}.")
        return self._push(repo_id, {"max_shard_size": max_shard_size}, **kwargs)

    def _push(self, repo_id, save_kwargs, private=None, token=None, revision=None, tags=None, **commit_kwargs) -> str:
        from transformers.utils.hub import create_and_tag_model_card  # here, because loading must not depend on it

        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        card = create_and_tag_model_card(repo_id, tags, token=token)
        if not file_exists(repo_id, "README.md", revision=revision, token=token):
            data: Any = card.data
            data.pipeline_tag = self._pipeline_tag
            data.tags = list(dict.fromkeys([*(data.tags or []), "mae", "masked-autoencoder"]))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_kwargs)
            card.save(os.path.join(folder, "README.md"))
            if file_exists(repo_id, _PROCESSOR_FILE, revision=revision, token=token):
                os.remove(os.path.join(folder, _PROCESSOR_FILE))
            # Private, but only this function of transformers makes the branch and the commit.
            return self._upload_modified_files(folder, repo_id, {}, token=token, revision=revision, **commit_kwargs)


class MAEModel(MAEPreTrainedModel):
    """
    The encoder: a ViT on the visible patches. It masks only if `forward` gets a mask, noise or mask ratio.

    Args:
        final_norm (`bool`, *optional*):
            Whether a norm follows the last block. Defaults to `config.pooling == "cls"`.
    """

    _keys_to_ignore_on_load_unexpected = [*_other_parts(), r"^norm\."]  # pooling="mean" has no final norm

    def __init__(self, config: MAEConfig, final_norm: bool | None = None):
        super().__init__(config)
        dim = config.hidden_size
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, dim))
        self.patch_embed = MAEPatchEmbeddings(config)
        self.blocks = nn.ModuleList(
            MAEBlock(config, dim, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.set_drop_path_rate(config.drop_path_rate)
        if final_norm is None:
            final_norm = config.pooling == "cls"
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        self.post_init()
        self._set_positions_trainable()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    def set_drop_path_rate(self, rate: float) -> None:
        """Set `config.drop_path_rate`. The rate of the blocks rises linearly from 0 to it."""
        self.config.drop_path_rate = rate
        for index, block in enumerate(self.blocks):
            block.drop_path_rate = rate * index / max(len(self.blocks) - 1, 1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | MaskedPatches,
        bool_masked_pos: Tensor | None = None,
        noise: Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MAEModelOutput:
        """
        Encode images. They are masked if, and only if, one of `bool_masked_pos`, `noise` and `mask_ratio` is given, in
        training and in evaluation.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`):
                Normalised images, or uint8 images, which are normalised with the mean and std of the configuration.
                Images that [`~MAEModel.mask_patches`] has masked are accepted too.
            bool_masked_pos (`torch.Tensor` of shape `(B, L)`, *optional*):
                True (or 1) for each patch to remove, in raster order and the same number in every sample. The visible
                patches stay in raster order. Takes precedence over `noise`.
            noise (`torch.Tensor` of shape `(B, L)`, *optional*):
                Uniform in [0, 1). The mask is a pure function of it, see [`mask_from_noise`]. If only `mask_ratio` is
                given, the noise comes from the default generator of torch.
            mask_ratio (`float`, *optional*, defaults to `config.mask_ratio`):
                Share of the patches to remove, in [0, 1).
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept images of another size than `config.image_size` and resample the position tables.
            output_hidden_states (`bool`, *optional*): Whether to return all hidden states.
            output_attentions (`bool`, *optional*):
                Whether to return attention probabilities. Attention is then computed eagerly.

        Raises:
            `ValueError`: if images or masks have the wrong shape, or `mask_ratio` is out of range.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions

        mask = bool_masked_pos, noise, mask_ratio
        if any(value is not None for value in mask):
            pixel_values = self.mask_patches(pixel_values, *mask, interpolate_pos_encoding)
        if isinstance(pixel_values, MaskedPatches):
            masked = pixel_values
            positions = resample_positions(self.pos_embed, self.grid_size, masked.grid_size)
            hidden_states = self.patch_embed(self._normalized(masked.visible, patches=True))
            ids_keep = masked.ids_shuffle[:, : masked.num_visible]
            hidden_states = hidden_states + F.embedding(ids_keep, positions[0, 1:])
        else:
            masked = None
            grid_size = check_pixel_values(pixel_values, config, interpolate_pos_encoding)
            positions = resample_positions(self.pos_embed, self.grid_size, grid_size)
            hidden_states = self.patch_embed(self._normalized(pixel_values)) + positions[:, 1:]

        cls_token = (self.cls_token + positions[:, :1]).to(hidden_states.dtype)
        hidden_states = torch.cat([cls_token.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)

        all_hidden_states, all_attentions = (hidden_states,), ()
        for block in self.blocks:
            hidden_states, attentions = block(hidden_states, output_attentions)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            all_attentions += (attentions,)

        hidden_states = self.norm(hidden_states)
        return MAEModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0] if config.pooling == "cls" else hidden_states[:, 1:].mean(dim=1),
            mask=masked.mask if masked else None,
            ids_restore=masked.ids_restore if masked else None,
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )

    def feature_maps(
        self, pixel_values: Tensor, indices: Sequence[int], output_attentions: bool | None = None
    ) -> tuple[MAEModelOutput, tuple[Tensor, ...]]:
        """
        Encode images of any size, and arrange hidden states as maps `(B, D, H / patch, W / patch)` after the final
        norm. `indices` selects them: 0 is the input of the first block, 1 its output. Returns the output of the
        encoder, with all hidden states, and the maps.
        """
        outputs = self(
            pixel_values,
            interpolate_pos_encoding=True,
            output_hidden_states=True,
            output_attentions=output_attentions,
            return_dict=True,
        )
        sizes = zip(pixel_values.shape[2:], to_pair(self.config.patch_size))
        grid_size = tuple(side // patch for side, patch in sizes)
        return outputs, tuple(to_feature_map(self.norm(outputs.hidden_states[i]), grid_size) for i in indices)

    def _normalized(self, pixels: Tensor, patches: bool = False) -> Tensor:
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.config, patches).to(self.patch_embed.proj.weight.dtype)
        return pixels if patches else standardize(pixels, self.config)

    def mask_patches(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        noise: Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> MaskedPatches:
        """Cut images into patches and mask them. Arguments and errors as in [`MAEModel.forward`]."""
        grid_size = check_pixel_values(pixel_values, self.config, interpolate_pos_encoding)
        shape = (pixel_values.shape[0], math.prod(grid_size))
        ids_keep, mask, ids_restore = self._make_mask(
            shape, grid_size, pixel_values.device, bool_masked_pos, noise, mask_ratio
        )
        ids_shuffle = invert(ids_restore)
        if self.config.standardize_images:  # from whole images
            pixel_values = self._normalized(pixel_values)
        patches = take_patches(patchify(pixel_values, self.config.patch_size), ids_shuffle)
        return MaskedPatches(patches, ids_keep.shape[1], ids_shuffle, ids_restore, mask, grid_size)

    def _make_mask(
        self, shape, grid_size, device, bool_masked_pos, noise, mask_ratio
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Check the mask arguments and return `ids_keep`, `mask` and `ids_restore`."""
        for name, value in (("bool_masked_pos", bool_masked_pos), ("noise", noise)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape (batch, patches) = {shape}, not {tuple(value.shape)}.")

        if bool_masked_pos is not None:
            scores = bool_masked_pos.to(device, torch.bool).int()
            num_removed = scores.sum(dim=1).tolist()
            if min(num_removed) != max(num_removed):
                raise ValueError(f"bool_masked_pos must remove equally many patches per sample, not {num_removed}.")
            # The sort is stable: visible patches first, in raster order.
            return mask_from_noise(scores, grid_size, shape[1] - num_removed[0])

        mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must be in [0, 1).")
        if noise is None:
            noise = torch.rand(shape, device=device)
        num_visible = num_visible_patches(shape[1], mask_ratio)
        return mask_from_noise(noise.to(device), grid_size, num_visible, self.config.masking)


class MAEForPreTraining(MAEPreTrainedModel):
    """
    The Masked Autoencoder: encoder, decoder and loss (Section 3). It always masks, so `config.mask_ratio` must keep at
    least one patch and remove at least one.
    """

    _keys_to_ignore_on_load_unexpected = _other_parts("decoder")

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self._check_num_visible(num_visible_patches(config.num_patches, config.mask_ratio), config.num_patches)
        self.mae = MAEModel(config, final_norm=True)
        self.decoder = make_decoder(config)
        self.post_init()
        self._set_positions_trainable()

    @staticmethod
    def _check_num_visible(num_visible: int, num_patches: int) -> None:
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f"Pre-training needs visible and removed patches, but the mask keeps {num_visible} of {num_patches}. "
                "Change mask_ratio (or bool_masked_pos), or use smaller patches."
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        noise: Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_loss: bool = True,
        return_logits: bool = True,
        patch_weights: Tensor | None = None,
    ) -> MAEForPreTrainingOutput:
        """
        Mask images, encode the visible patches and predict all. Arguments and errors as in [`MAEModel.forward`]. A
        mask that keeps or removes no patch raises a `ValueError` too. `return_loss=False` skips the loss, and
        `return_logits=False` the predictions that the loss does not need. `patch_weights` `(B, L)` weight the errors.
        In training, `config.prediction_ratio` limits the loss to a part of the removed patches, which `noise` chooses.
        """
        masked = self.mae.mask_patches(
            pixel_values,
            bool_masked_pos,
            noise,
            self.config.mask_ratio if mask_ratio is None else mask_ratio,
            interpolate_pos_encoding,
        )
        self._check_num_visible(masked.num_visible, masked.mask.shape[1])
        if self.training and self.config.prediction_ratio is not None:
            masked = choose_predicted(masked, noise, self.config.prediction_ratio)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        needs_states = wants_states or self.config.weighted_feature_maps
        outputs = self.mae(
            masked, output_hidden_states=needs_states, output_attentions=output_attentions, return_dict=True
        )
        removed, logits = self.decoder(outputs, masked, return_logits)
        if patch_weights is not None:
            patch_weights = patch_weights.gather(1, masked.ids_shuffle[:, masked.num_visible :])
        return MAEForPreTrainingOutput(
            loss=self.loss(masked.removed, removed, patch_weights) if return_loss else None,
            logits=logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states if wants_states else None,
            attentions=outputs.attentions,
        )

    def loss(self, patches: Tensor, predictions: Tensor, weights: Tensor | None = None) -> Tensor:
        """
        Mean squared error of the predictions for removed patches (Section 3, "Reconstruction target"), a scalar in
        float32. Patches (normalised pixels, or uint8) and predictions are `(B, removed, P)`, weights `(B, removed)`.
        """
        errors = SquaredNorms.apply(predictions.float() - target_patches(patches, self.config))
        return (errors if weights is None else errors * weights).mean() / patches.shape[-1]

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images `(B, C, H, W)` of any size into patches `(B, L, P)`, in raster order and channels last."""
        check_pixel_values(pixel_values, self.config, any_size=True)
        return patchify(pixel_values, self.config.patch_size)

    def unpatchify(self, patches: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        """
        Join patches `(B, L, P)` to images `(B, C, H, W)`, the inverse of [`~MAEForPreTraining.patchify`]. `image_size`
        is (H, W) in pixels (default: `config.image_size`). A `ValueError` is raised if the patches do not fit it.
        """
        height, width = to_pair(self.config.image_size if image_size is None else image_size)
        patch_height, patch_width = to_pair(self.config.patch_size)
        grid_size = (height // patch_height, width // patch_width)
        patch_shape = (patch_height, patch_width, self.config.num_channels)
        expected = (math.prod(grid_size), math.prod(patch_shape))
        if patches.ndim != 3 or patches.shape[1:] != expected:
            raise ValueError(
                f"Images of {height} x {width} pixels need patches of shape (batch, {expected[0]}, {expected[1]}), "
                f"not {tuple(patches.shape)}. Pass image_size=(height, width)."
            )
        patches = patches.unflatten(2, patch_shape).unflatten(1, grid_size)
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4).flatten(2, 3)

    @torch.no_grad()
    def reconstruct(self, pixel_values: Tensor, **kwargs: Any) -> MAEReconstructionOutput:
        """
        Mask images and predict the removed patches (Figures 2 to 4). Arguments as in [`~MAEForPreTraining.forward`].
        A model with `norm_pix_loss` does not predict the mean and contrast of a patch. They are taken from the true
        patch, which makes its pictures look better than its predictions are. Mention this beside such pictures.
        """
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalize(pixel_values, self.config).to(self.dtype)
        outputs = self(pixel_values, return_loss=False, return_dict=True, **kwargs)
        patches = self.patchify(standardize(pixel_values, self.config))
        prediction = outputs.logits
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(patches.float())
            prediction = prediction * std + mean
        prediction = prediction.to(patches.dtype)
        removed = outputs.mask[..., None].bool()
        pictures = patches.masked_fill(removed, 0), prediction, torch.where(removed, prediction, patches)
        images = [self.unpatchify(picture, pixel_values.shape[2:]) for picture in pictures]
        if self.config.standardize_images:
            mean, std = image_statistics(pixel_values)
            images = [(image * std + mean).to(image.dtype) for image in images]
        return MAEReconstructionOutput(*images, mask=outputs.mask)


class MAEForImageClassification(MAEPreTrainedModel):
    """
    The encoder with a linear classifier, as in the official fine-tuning code. `config.pooling` selects its input: the
    cls token after the final norm, or the mean of the patch tokens after `fc_norm`. The position table is trained.
    With `config.head_batch_norm` a batch norm precedes the classifier, as in the official linear probe.
    """

    _keys_to_ignore_on_load_unexpected = [*_other_parts(), r"^(mae\.)?norm\."]
    _pipeline_tag = "image-classification"
    _positions_trainable = True

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mae = MAEModel(config)
        mean_pooling, probing = config.pooling == "mean", config.head_batch_norm
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if mean_pooling else nn.Identity()
        self.head_norm = nn.BatchNorm1d(config.hidden_size, affine=False, eps=1e-6) if probing else nn.Identity()
        self.head = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()
        self._set_positions_trainable()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head and isinstance(module, nn.Linear):
            # The values of the official linear probe and fine-tuning code.
            init.trunc_normal_(module.weight, std=0.01 if self.config.head_batch_norm else 2e-5)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        encoder_outputs: MAEModelOutput | None = None,
    ) -> ImageClassifierOutput:
        """
        Classify images, or outputs of the encoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Normalised images.
            labels (`torch.Tensor`, *optional*):
                Class indices of shape `(B,)`, or soft labels (for example from mixup) of shape `(B, num_labels)`, for
                cross-entropy. With `config.problem_type = "multi_label_classification"`, 0 or 1 for each class, of
                shape `(B, num_labels)`, for binary cross-entropy. With `"regression"`, the default for one label,
                numbers of shape `(B, num_labels)`, or `(B,)` for one label, for the mean squared error.
            interpolate_pos_encoding, output_hidden_states, output_attentions: As in [`MAEModel.forward`].
            encoder_outputs ([`MAEModelOutput`], *optional*):
                An output of the encoder, to be passed instead of images. Only its `pooler_output` is used.

        Returns:
            [`ImageClassifierOutput`] with `logits` of shape `(B, num_labels)`.
        """
        if (pixel_values is None) == (encoder_outputs is None):
            raise ValueError("Pass either pixel_values or encoder_outputs.")
        if encoder_outputs is None:
            encoder_outputs = self.mae(
                pixel_values,
                interpolate_pos_encoding=interpolate_pos_encoding,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                return_dict=True,
            )
        logits = self.head(self.head_norm(self.fc_norm(encoder_outputs.pooler_output)))
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss for `labels` in float32, see [`~MAEForImageClassification.forward`]."""
        logits, labels = logits.float(), labels.to(logits.device)
        default = "regression" if self.num_labels == 1 else "single_label_classification"
        problem_type = self.config.problem_type or default
        class_indices = problem_type == "single_label_classification" and not labels.is_floating_point()
        flat = class_indices or (self.num_labels == 1 and labels.ndim == 1)
        expected = logits.shape[:1] if flat else logits.shape
        if labels.shape != expected:
            raise ValueError(
                f"labels of type {labels.dtype} must have shape {tuple(expected)}, not {tuple(labels.shape)}. Pass "
                "class indices, or soft labels as floats. If images have several labels, set "
                'config.problem_type="multi_label_classification".'
            )
        if class_indices:
            return F.cross_entropy(logits, labels)
        labels = labels.view_as(logits).float()
        if problem_type == "regression":
            return F.mse_loss(logits, labels)
        if problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits, labels)


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """
    The encoder as a backbone of transformers: feature maps of the blocks that `config.out_indices` selects, after the
    final norm if the encoder has one (`pooling="cls"`). Images may have any size that is a multiple of the patch. The
    position table is resampled for them, and trained.
    """

    _keys_to_ignore_on_load_unexpected = [*_other_parts(), r"^(mae\.)?norm\."]
    _positions_trainable = True

    def __init__(self, config: MAEConfig):
        config.out_indices = config.out_indices  # a default becomes explicit, because BackboneMixin has none
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.mae = MAEModel(config)
        self.pyramid = MAEFeaturePyramid(config) if config.feature_pyramid else nn.Identity()
        self.post_init()
        self._set_positions_trainable()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None
    ) -> BackboneOutput:
        """
        Compute feature maps. Arguments as in [`MAEModel.forward`].

        Returns:
            [`BackboneOutput`] with `feature_maps`, one of shape `(B, D, H / patch, W / patch)` for each of
            `config.out_indices`. With `config.feature_pyramid` they have 4, 2, 1 and 1/2 times as many rows and
            columns.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs, feature_maps = self.mae.feature_maps(pixel_values, self.config.out_indices, output_attentions)
        return BackboneOutput(
            feature_maps=self.pyramid(feature_maps),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


class MAEForSemanticSegmentation(SegmentationMixin, MAEPreTrainedModel):
    """
    The encoder with a head that scores every pixel. `config.segmentation_head` selects it: "linear" is a batch norm
    and a 1 x 1 convolution on the last block, "upernet" is transformers' UPerNet on a feature pyramid, with an
    auxiliary head for training. Image sizes, norm and positions are as in [`MAEBackbone`]. `segment` takes images of
    any size.
    """

    _keys_to_ignore_on_load_unexpected = [*_other_parts("decode_head"), r"^(mae\.)?norm\."]
    _pipeline_tag = "image-segmentation"
    _positions_trainable = True

    def __init__(self, config: MAEConfig):
        if config.segmentation_head == "upernet":
            config.feature_pyramid = True
        super().__init__(config)
        if config.num_labels < 2:
            raise ValueError(f"num_labels={config.num_labels} must be at least 2. Background is a class too.")
        if config.class_weights is not None and len(config.class_weights) != config.num_labels:
            raise ValueError(f"class_weights={config.class_weights} must hold num_labels={config.num_labels} numbers.")
        self.num_labels = config.num_labels
        self.mae = MAEModel(config)
        self.pyramid = MAEFeaturePyramid(config) if config.segmentation_head == "upernet" else nn.Identity()
        self.decode_head, self.auxiliary_head = make_heads(config)
        self.post_init()
        self._set_positions_trainable()

    def _init_weights(self, module: nn.Module) -> None:
        if module in [head.classifier for head in (self.decode_head, self.auxiliary_head) if head is not None]:
            init.normal_(module.weight, std=0.01)  # as in BEiT's code and in mmsegmentation
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _make_image_processor(self):
        return make_image_processor(self.config, segmentation=True)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """
        Score the pixels of images.

        Args:
            pixel_values, output_hidden_states, output_attentions: As in [`MAEModel.forward`].
            labels (`torch.LongTensor` of shape `(B, H, W)`, *optional*):
                Class of each pixel, or `config.semantic_loss_ignore_index` for pixels that do not count in the loss.

        Returns:
            [`SemanticSegmenterOutput`] with `logits` of shape `(B, num_labels, H, W)`. The loss is the mean
            cross-entropy, weighted by `config.class_weights`, and 0 if no pixel counts. UPerNet adds
            `config.auxiliary_loss_weight` times the loss of its auxiliary head.

        Raises:
            `ValueError`: if images or labels have the wrong shape, or UPerNet gets a single image in training.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        is_upernet = self.config.segmentation_head == "upernet"
        if is_upernet and self.training and len(pixel_values) == 1:
            raise ValueError("UPerNet needs at least 2 images for its batch norm in training. Use a larger batch.")
        indices = self.config.out_indices if is_upernet else [-1]
        outputs, feature_maps = self.mae.feature_maps(pixel_values, indices, output_attentions)
        feature_maps = self.pyramid(feature_maps)
        logits = resize_logits(self.decode_head(feature_maps), pixel_values)
        loss = None
        if labels is not None:
            loss = self.loss(logits, labels)
            if self.auxiliary_head is not None:
                auxiliary_logits = resize_logits(self.auxiliary_head(feature_maps), pixel_values)
                loss = loss + self.config.auxiliary_loss_weight * self.loss(auxiliary_logits, labels)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


def make_image_processor(config: MAEConfig, segmentation: bool = False):
    """
    Create the image processor for a model: bicubic, with the mean and std of the configuration. For square models it
    resizes the shorter side and crops the centre, with the margin of the official evaluation (224 of 256 up to 224
    pixels, none above). For rectangular models and for `segmentation` it resizes to the exact size. It is a
    `ViTImageProcessor`, or for segmentation a `BeitImageProcessor`, which turns scores into masks.
    """
    from transformers import BeitImageProcessor, ViTImageProcessor  # needs torchvision, which the model does not

    height, width = to_pair(config.image_size)
    size = {"height": height, "width": width}
    geometry: dict[str, Any] = {"size": size}
    if height == width and not segmentation:
        shortest_edge = int(height / 0.875) if height <= 224 else height
        geometry = {"size": {"shortest_edge": shortest_edge}, "do_center_crop": True, "crop_size": size}
    normalisation = {"do_normalize": False}
    if config.image_mean is not None:
        normalisation = {"image_mean": config.image_mean, "image_std": config.image_std}
    processor_class = BeitImageProcessor if segmentation else ViTImageProcessor
    return processor_class(
        resample=PILImageResampling.BICUBIC, do_convert_rgb=config.num_channels == 3, **geometry, **normalisation
    )


_PROCESSOR_FILE = "preprocessor_config.json"
# Arguments of `push_to_hub` that `save_pretrained` accepts too.
_HUB_ARGUMENTS = "repo_id private token revision create_pr commit_message commit_description tags".split()
_AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
    "AutoModelForSemanticSegmentation": "modeling_mae.MAEForSemanticSegmentation",
}

for auto_class, model_class in (
    (AutoModel, MAEModel),
    (AutoModelForPreTraining, MAEForPreTraining),
    (AutoModelForImageClassification, MAEForImageClassification),
    (AutoBackbone, MAEBackbone),
    (AutoModelForSemanticSegmentation, MAEForSemanticSegmentation),
):
    # Always: a model saves its code only if its class is registered.
    model_class.register_for_auto_class(auto_class.__name__)
    # Only in the installed package: a copy from one Hub repository would shadow the copies from others.
    if not __package__:
        auto_class.register(MAEConfig, model_class, exist_ok=True)

__all__ = [
    "MAEBackbone",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEForSemanticSegmentation",
    "MAEModel",
    "MAEPreTrainedModel",
]
