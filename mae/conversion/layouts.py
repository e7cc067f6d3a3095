"""
Key tables: names of tensors in each layout, and their translation in both directions.

    official   files of the official implementation: encoder, encoder and decoder, fine-tuned (mean pooling or cls)
    timm       timm's ViTs: the official names, without a decoder
    vit_mae    transformers' ViTMAE, in all three of its spellings
    mae        this package

"Native" names are those of this package's larger models, for example `mae.blocks.0.norm1.weight`. Tensors may be on
the meta device.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mae.utils.errors import UserError


@dataclass(frozen=True)
class Layout:
    """
    The names that one implementation gives to the native tensors of [`MAEForPreTraining`] and
    [`MAEForImageClassification`]. Each of the first four fields maps native names to names of the layout.

    Args:
        parameters: Single tensors.
        modules: Modules with a `.weight` and a `.bias`.
        blocks: Lists of blocks, which are numbered.
        block: Modules within a block. Three names are query, key and value, which are one fused native tensor.
        same: Prefixes of tensors whose names are the native ones.
    """

    parameters: dict[str, str]
    modules: dict[str, str]
    blocks: dict[str, str]
    block: dict[str, str | tuple[str, str, str]]
    same: tuple[str, ...] = ()

    def table(self, names: Collection[str]) -> dict[str, str | tuple[str, ...]]:
        """Native tensor -> its name here, or the three that it is fused from; for as many blocks as `names` have."""
        modules: dict[str, str | tuple[str, ...]] = dict(self.modules)
        for native_blocks, blocks in self.blocks.items():
            for index in range(count_blocks(names, blocks)):
                for native_module, module in self.block.items():
                    parts = (module,) if isinstance(module, str) else module
                    parts = tuple(f"{blocks}.{index}.{part}" for part in parts)
                    modules[f"{native_blocks}.{index}.{native_module}"] = parts[0] if len(parts) == 1 else parts
        table: dict[str, str | tuple[str, ...]] = {name: name for name in names if name.startswith(self.same)}
        table |= self.parameters
        for native, module in modules.items():
            for kind in ("weight", "bias"):
                whole = f"{module}.{kind}" if isinstance(module, str) else tuple(f"{part}.{kind}" for part in module)
                table[f"{native}.{kind}"] = whole
        return table


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks of a prefix: one more than the highest number."""
    numbers = [int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"\.(\d{1,3})\.", name))]
    return max(numbers, default=-1) + 1


# The names of MAEModel are the official ones, too.
OFFICIAL = Layout(
    parameters={
        "mae.cls_token": "cls_token",
        "mae.pos_embed": "pos_embed",
        "decoder.mask_token": "mask_token",
        "decoder.pos_embed": "decoder_pos_embed",
    },
    modules={
        "mae.patch_embed.proj": "patch_embed.proj",
        "mae.norm": "norm",
        "decoder.embed": "decoder_embed",
        "decoder.norm": "decoder_norm",
        "decoder.pred": "decoder_pred",
        "fc_norm": "fc_norm",
        "head": "head",
    },
    blocks={"mae.blocks": "blocks", "decoder.blocks": "decoder_blocks"},
    block={
        "norm1": "norm1",
        "attn.qkv": "attn.qkv",
        "attn.proj": "attn.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
)
# Parts of feature maps and segmentation, which only this package saves.
DENSE_PARTS = ("pyramid.", "decode_head.", "auxiliary_head.")
NATIVE = Layout(
    *({name: name for name in names} for names in vars(OFFICIAL).values() if isinstance(names, dict)),
    same=(*DENSE_PARTS, "decoder.features."),
)
# The cross-attention decoder, which only this package saves.
NATIVE.block.update({name: name for name in ("attn.q", "attn.kv")})
# The batch norm of a linear probe, which only this package saves.
_BATCH_NORM = [f"head_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
NATIVE.parameters.update(zip(_BATCH_NORM, _BATCH_NORM))
TIMM = replace(
    OFFICIAL,
    parameters={native: name for native, name in OFFICIAL.parameters.items() if native.startswith("mae.")},
    modules={native: name for native, name in OFFICIAL.modules.items() if not native.startswith("decoder.")},
    blocks={"mae.blocks": "blocks"},
)
# The files on the Hub.
VIT_MAE = Layout(
    parameters={
        "mae.cls_token": "vit.embeddings.cls_token",
        "mae.pos_embed": "vit.embeddings.position_embeddings",
        "decoder.mask_token": "decoder.mask_token",
        "decoder.pos_embed": "decoder.decoder_pos_embed",
    },
    modules={
        "mae.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "mae.norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.pred": "decoder.decoder_pred",
    },
    blocks={"mae.blocks": "vit.encoder.layer", "decoder.blocks": "decoder.decoder_layers"},
    block={
        "norm1": "layernorm_before",
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)
# The files that save_pretrained of transformers 5 writes.
VIT_MAE_SAVED_BY_5 = replace(
    VIT_MAE, blocks={"mae.blocks": "vit.encoder.layer", "decoder.blocks": "decoder.decoder_encoder.layer"}
)
# state_dict() in transformers 5.
VIT_MAE_IN_MEMORY = replace(
    VIT_MAE,
    blocks={"mae.blocks": "vit.layers", "decoder.blocks": "decoder.decoder_layers"},
    block={
        "norm1": "layernorm_before",
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
)
# Name of a layout -> its spellings; the first one is written.
LAYOUTS = {
    "mae": (NATIVE, OFFICIAL),
    "official": (OFFICIAL,),
    "timm": (TIMM,),
    "vit_mae": (VIT_MAE, VIT_MAE_SAVED_BY_5, VIT_MAE_IN_MEMORY),
}


def _full_names(names: Iterable[str]) -> dict[str, str]:
    """Name with the prefix of ViTMAEForPreTraining -> name; those of ViTMAEModel have no prefix."""
    names = list(names)
    prefix = "vit." if any(name.startswith("embeddings.") for name in names) else ""
    return {f"{prefix}{name}": name for name in names}


def _parts(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def to_native(tensors: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Translate tensors to native names; also returns the names that the layout does not know."""
    name_of = _full_names(tensors)
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for native, names in layout.table(name_of).items():
        parts = _parts(names)
        if all(part in name_of for part in parts):
            found = [tensors[name_of[part]] for part in parts]
            if len({tuple(tensor.shape) for tensor in found}) > 1:
                raise UserError(f"{', '.join(parts)} must have one shape, not {[tuple(t.shape) for t in found]}.")
            state[native] = found[0] if len(found) == 1 else torch.cat(found)
            used.update(name_of[part] for part in parts)
    return state, [name for name in tensors if name not in used]


def num_unknown(names: Collection[str], layout: Layout) -> int:
    """Count the names that a layout does not know."""
    full_names = _full_names(names)
    known = {part for parts in layout.table(full_names).values() for part in _parts(parts)}
    return len(full_names.keys() - known)


def spelling_of(names: Collection[str], layout: str) -> Layout:
    """The spelling of a layout that knows most of the names."""
    return min(LAYOUTS[layout], key=lambda spelling: num_unknown(names, spelling))


def names_in(layout: Layout, names: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Native names -> names in a layout, without those that it has no place for."""
    names = list(names)
    last = [f"{blocks}.{count_blocks(names, native_blocks) - 1}." for native_blocks, blocks in layout.blocks.items()]
    table = layout.table([*last, *(name for name in names if name.startswith(layout.same))])
    return {name: table[name] for name in names if name in table}


def from_native(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Translate tensors with native names to a layout, without those that it has no place for."""
    tensors = {}
    for native, names in names_in(layout, state).items():
        if isinstance(names, str):
            tensors[names] = state[native]
        else:
            # Copies, because a file cannot hold tensors that share their memory.
            tensors |= {part: third.clone() for part, third in zip(names, state[native].chunk(3))}
    return tensors


def has_part(names: Iterable[str], part: str) -> bool:
    """Whether there is any tensor of a part, such as "decoder" or "head"."""
    return any(name.startswith(f"{part}.") for name in names)
