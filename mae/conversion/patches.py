"""Resample weights to another patch size."""

from torch import Tensor

from patches_mae import resample_prediction, resample_projection


def resample(state: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int]) -> dict[str, Tensor]:
    """
    Resample tensors, with native names, for patches of `old` pixels (height, width) to patches of `new` pixels.

    The patch projection is resampled by the pseudo-inverse of a resize (FlexiViT). The decoder then predicts what it
    predicted before, resized.
    """
    state = dict(state)
    name = "mae.patch_embed.proj.weight"
    state[name] = resample_projection(state[name], new)
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name in state:
            state[name] = resample_prediction(state[name], old, new)
    return state
