"""
Checkpoints of other codes: which tensor of theirs is which of ours, in both directions.

    official   the official code's files: encoder, encoder and decoder, fine-tuned (mean pooling or cls)
    timm       its ViTs: the official names, without a decoder
    vit_mae    transformers' ViTMAE, by all three of its spellings
    mae        ours

Tensors may be on the meta device.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mae.utils.errors import UserError
from modeling_mae import sincos_positions


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


def describe_mapping(names: Iterable[str], new: Iterable[str], source: Layout, target: Layout) -> list[str]:
    """Lines "name -> name (count)" for tensors by our names, some of which are new; blocks together."""
    names = list(names)
    sources, targets = names_in(source, set(names).difference(new)), names_in(target, names)

    def template(theirs: str | tuple[str, ...]) -> str:
        parts = [theirs] if isinstance(theirs, str) else theirs
        parts = [re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", part)) for part in parts]
        if len(parts) == 1:
            return parts[0]
        prefix = os.path.commonprefix(parts)
        return f"{prefix}{{{','.join(part.removeprefix(prefix) for part in parts)}}}"

    counts = Counter(
        f"{template(sources.get(name, '(new)'))} -> {template(targets.get(name, '(left out)'))}" for name in names
    )
    return [f"{line} ({count})" for line, count in counts.items()]


def fold(names: Iterable[str]) -> list[str]:
    """Names that differ in the number of a block alone as one: blocks.{0-11}.norm1.weight. No line breaks in it."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        name = name if name.isprintable() else repr(name)
        number = re.search(r"(?<=\.)\d{1,3}(?=\.)", name)
        template = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        numbers.setdefault(template, []).append(int(number[0]) if number else 0)
    folded = []
    for template, found in numbers.items():
        starts = [number for number in found if number - 1 not in found]
        ends = [number for number in found if number + 1 not in found]
        ranges = ",".join(f"{start}" if start == end else f"{start}-{end}" for start, end in zip(starts, ends))
        folded.append(template.replace("\0", f"{{{ranges}}}" if len(found) > 1 else ranges))
    return folded


def has_part(names: Iterable[str], part: str) -> bool:
    """Whether there is any tensor of "decoder", "head" and so on."""
    return any(name.startswith(f"{part}.") for name in names)


def to_size(pair: Iterable[int]) -> int | tuple[int, int]:
    """(height, width) as a configuration has it: a square is an int."""
    height, width = pair
    return height if height == width else (height, width)


def read_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a configuration that tensors, by our names, fix. They may be on the meta device."""
    height, width = state["mae.patch_embed.proj.weight"].shape[2:]
    sizes: dict[str, Any] = {
        "hidden_size": state["mae.patch_embed.proj.weight"].shape[0],
        "num_channels": state["mae.patch_embed.proj.weight"].shape[1],
        "patch_size": to_size((height, width)),
        "num_hidden_layers": count_blocks(state, "mae.blocks"),
        "intermediate_size": state["mae.blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "mae.blocks.0.attn.qkv.bias" in state,
    }
    if "decoder.mask_token" in state:
        sizes["decoder_hidden_size"] = state["decoder.mask_token"].shape[-1]
        sizes["decoder_num_hidden_layers"] = count_blocks(state, "decoder.blocks")
        sizes["decoder_intermediate_size"] = state["decoder.blocks.0.mlp.fc1.weight"].shape[0]
    else:  # in pre-training there is a norm whatever the pooling
        sizes["pooling"] = "cls" if has_part(state, "mae.norm") else "mean"
    if has_part(state, "head") or has_part(state, "fc_norm"):
        heads = [state[name].shape[0] for name in ("head.weight", "head.bias") if name in state]
        sizes["num_labels"] = heads[0] if heads else 0
    return sizes


def find_grid(pos_embed: Tensor) -> tuple[tuple[int, int] | None, bool]:
    """
    The patch grid (rows, columns) of a position table `(1, 1 + L, D)`, and whether it is certain: the grid whose
    sin-cos table it is, else the square one, else None.
    """
    num_patches, dim = pos_embed.shape[1] - 1, pos_embed.shape[2]
    if not pos_embed.is_meta and dim % 4 == 0:
        for rows in range(1, num_patches + 1):
            if num_patches % rows == 0:
                table = sincos_positions(dim, (rows, num_patches // rows))
                if torch.allclose(pos_embed.float(), table, atol=1e-2):  # of bfloat16 too
                    return (rows, num_patches // rows), True
    side = math.isqrt(num_patches)
    return ((side, side), False) if side and side * side == num_patches else (None, False)


# Channels


def inflate_values(values: Tensor, num_channels: int, how: str) -> Tensor:
    """One value a channel, along the first dimension, for another number of channels: their mean, or repeated."""
    if how == "mean":
        return values.mean(dim=0, keepdim=True).expand(num_channels, *values.shape[1:])
    return values[torch.arange(num_channels) % len(values)]


def inflate(state: dict[str, Tensor], old: int, new: int, how: str | None) -> dict[str, Tensor]:
    """
    Tensors for images of `new` channels from those for `old`, by our names.

    Args:
        how:
            "mean": every channel gets the mean of the old ones, so that of three to one a grey image gives what it
            gave in three channels. "repeat": the old ones in turn. The patch projection is scaled by old / new,
            which keeps its output's size; the decoder predicts for each new channel what it did for its origin.

    Raises:
        UserError: where `how` is None, because what other channels mean is the user's to say.
    """
    if how not in ("mean", "repeat"):
        raise UserError(
            f"The checkpoint is for {old} channels, not {new}: say with inflate_channels how the patch projection is "
            f"to be inflated, mean or repeat{'' if how is None else f', not {how!r}'}."
        )
    state = dict(state)
    name = "mae.patch_embed.proj.weight"
    weight = inflate_values(state[name].float().transpose(0, 1), new, how).transpose(0, 1) * (old / new)
    state[name] = weight.contiguous().to(state[name].dtype)
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name in state:  # the channel is last within a patch
            rows = state[name].float().unflatten(0, (-1, old)).transpose(0, 1)
            rows = inflate_values(rows, new, how).transpose(0, 1).flatten(0, 1)
            state[name] = rows.contiguous().to(state[name].dtype)
    return state
