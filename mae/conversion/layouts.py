"""
Checkpoints of other codes: which tensor of theirs is which of ours, in both directions.

    official   the official code's files: encoder, encoder and decoder, fine-tuned (mean pooling or cls)
    timm       its ViTs: the official names, without a decoder
    vit_mae    transformers' ViTMAE, by all three of its spellings
    mae        ours

Tensors may be on the meta device.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mae.utils.errors import UserError


# Names
@dataclass(frozen=True)
class Layout:
    """
    The names of one code for our tensors, which are named as in [`MAEForPreTraining`] and
    [`MAEForImageClassification`].

    Args:
        parameters: Ours -> theirs, of single tensors.
        modules: Ours -> theirs, of what has a `.weight` and a `.bias`.
        blocks: Ours -> theirs, of what is numbered: the blocks.
        block: Ours -> theirs within a block; three of theirs are query, key and value, one fused tensor of ours.
    """

    parameters: dict[str, str]
    modules: dict[str, str]
    blocks: dict[str, str]
    block: dict[str, str | tuple[str, str, str]]

    def table(self, names: Collection[str]) -> dict[str, str | tuple[str, ...]]:
        """Our tensor -> theirs, or the three that it is fused from; of as many blocks as `names` (theirs) have."""
        modules: dict[str, str | tuple[str, ...]] = dict(self.modules)
        for ours, theirs in self.blocks.items():
            for index in range(count_blocks(names, theirs)):
                for module, their_module in self.block.items():
                    parts = (their_module,) if isinstance(their_module, str) else their_module
                    parts = tuple(f"{theirs}.{index}.{part}" for part in parts)
                    modules[f"{ours}.{index}.{module}"] = parts[0] if len(parts) == 1 else parts
        table: dict[str, str | tuple[str, ...]] = dict(self.parameters)
        for ours, theirs in modules.items():
            for kind in ("weight", "bias"):
                whole = f"{theirs}.{kind}" if isinstance(theirs, str) else tuple(f"{part}.{kind}" for part in theirs)
                table[f"{ours}.{kind}"] = whole
        return table


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many blocks of a prefix there are: one more than the highest number."""
    numbers = [int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"\.(\d{1,3})\.", name))]
    return max(numbers, default=-1) + 1


# Also those of MAEModel.
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
OURS = Layout(*({ours: ours for ours in names} for names in vars(OFFICIAL).values()))
# The batch norm of a linear probe, which the others have no place for.
_BATCH_NORM = [f"head_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
OURS.parameters.update(zip(_BATCH_NORM, _BATCH_NORM))
TIMM = replace(
    OFFICIAL,
    parameters={ours: theirs for ours, theirs in OFFICIAL.parameters.items() if ours.startswith("mae.")},
    modules={ours: theirs for ours, theirs in OFFICIAL.modules.items() if not ours.startswith("decoder.")},
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
# What save_pretrained of transformers 5 writes.
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
# Name of a layout -> its spellings; the first is the one that is written.
LAYOUTS = {
    "mae": (OURS, OFFICIAL),
    "official": (OFFICIAL,),
    "timm": (TIMM,),
    "vit_mae": (VIT_MAE, VIT_MAE_SAVED_BY_5, VIT_MAE_IN_MEMORY),
}


def to_ours(tensors: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and the names of those that the layout does not know."""
    # ViTMAEModel's own names have no prefix.
    bare = any(name.startswith("embeddings.") for name in tensors)
    theirs_of = {(f"vit.{name}" if bare else name): name for name in tensors}
    state, used = {}, set()
    for ours, theirs in layout.table(theirs_of).items():
        parts = [theirs] if isinstance(theirs, str) else list(theirs)
        if all(part in theirs_of for part in parts):
            found = [tensors[theirs_of[part]] for part in parts]
            if len({tuple(tensor.shape) for tensor in found}) > 1:
                raise UserError(f"{', '.join(parts)} must have one shape, not {[tuple(t.shape) for t in found]}.")
            state[ours] = found[0] if len(found) == 1 else torch.cat(found)
            used.update(theirs_of[part] for part in parts)
    return state, [name for name in tensors if name not in used]


def spelling_of(tensors: dict[str, Tensor], layout: str) -> Layout:
    """The spelling of a layout that knows most of the tensors."""
    return min(LAYOUTS[layout], key=lambda spelling: len(to_ours(tensors, spelling)[1]))


def names_in(layout: Layout, names: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Our tensors among `names` -> theirs; without those that the layout has no name for."""
    names = list(names)
    last = [f"{theirs}.{count_blocks(names, ours) - 1}." for ours, theirs in layout.blocks.items()]
    table = layout.table(last)
    return {name: table[name] for name in names if name in table}


def from_ours(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Tensors by the layout's names, without those that it has no name for."""
    tensors = {}
    for ours, theirs in names_in(layout, state).items():
        if isinstance(theirs, str):
            tensors[theirs] = state[ours]
        else:
            # Copies, because a file cannot hold tensors that share their memory.
            tensors |= {part: third.clone() for part, third in zip(theirs, state[ours].chunk(3))}
    return tensors


def has_part(names: Iterable[str], part: str) -> bool:
    """Whether there is any tensor of "decoder", "head" and so on."""
    return any(name.startswith(f"{part}.") for name in names)
