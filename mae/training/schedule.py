"""The learning-rate schedule."""

import math


def learning_rate_at(
    epoch: float, learning_rate: float, warmup_epochs: float, epochs: float, min_learning_rate: float = 0.0
) -> float:
    """
    Linear warm-up from 0, then half a cosine down to `min_learning_rate`: the official schedule, by epoch fraction.

    Args:
        epoch: Epochs done before this step, fractions included; 0 for the first step, whose rate is 0.
        learning_rate: The peak.
        epochs: Length of the whole schedule, warm-up included.
    """
    if epoch < warmup_epochs:
        return learning_rate * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
