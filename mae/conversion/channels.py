"""Convert weights to another number of image channels."""

import torch
from torch import Tensor

from mae.utils.errors import UserError


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
