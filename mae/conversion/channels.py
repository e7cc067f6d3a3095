"""Convert weights to another number of image channels."""

import torch
from torch import Tensor

from mae.utils.errors import UserError


def inflate_values(values: Tensor, num_channels: int, how: str) -> Tensor:
    """Convert one value per channel, along the first dimension: their mean for each new channel, or repeated."""
    if how == "mean":
        return values.mean(dim=0, keepdim=True).expand(num_channels, *values.shape[1:])
    return values[torch.arange(num_channels) % len(values)]


def inflate(state: dict[str, Tensor], old: int, new: int, how: str | None) -> dict[str, Tensor]:
    """
    Convert tensors, with native names, for images of `old` channels to images of `new` channels.

    Args:
        how:
            "mean": every channel gets the mean of the old ones. From three channels to one, a grey image then gives
            the same output as before in three channels. "repeat": the old ones in turn. The patch projection is
            scaled by old / new, which keeps the size of its output. The decoder predicts each new channel as the old
            one that it comes from.

    Raises:
        UserError: if `how` is None, because only the user knows what the other channels mean.
    """
    if how not in ("mean", "repeat"):
        raise UserError(
            f"The checkpoint is for {old} channels, not {new}: choose with inflate_channels how the patch projection "
            f"is inflated, mean or repeat{'' if how is None else f', not {how!r}'}."
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
