"""A batch of decoded samples, and the digest of what it holds."""

from dataclasses import dataclass

import numpy as np
import torch

from mae.utils.hashing import hash_key


DIGEST_SIZE = 16


@dataclass
class Batch:
    """
    A batch of the images that could be decoded. If none could, it holds one blank image with weight 0, so that all
    ranks stay in step.

    Args:
        pixel_values: Of shape (good, C, H, W), uint8, or float32 in the range of 8 bits.
        weight: good / size, the factor of the mean loss over the good images.
        size: Number of positions consumed.
        keys: Position and digest of each sample, one after the other.
        skipped: (origin, reason) of each unreadable image.
        rows: Numbers of the good images over all groups of the source.
        noise: float32 of shape (good, L), in pre-training. A NumPy array until it is pinned, as are the labels: each
            torch tensor that a worker returns costs another 0.6 ms.
        labels: int64 of shape (good,), or float32 of shape (good, classes), if there are any.
    """

    pixel_values: torch.Tensor
    weight: float
    size: int
    keys: bytes
    skipped: list[tuple[tuple[str, int], str]]
    rows: list[int]
    noise: np.ndarray | torch.Tensor | None = None
    labels: np.ndarray | torch.Tensor | None = None

    @property
    def digests(self) -> torch.Tensor:
        """The keys as uint8 of shape (size, 8 + DIGEST_SIZE)."""
        return torch.frombuffer(bytearray(self.keys), dtype=torch.uint8).view(self.size, -1)

    def pin_memory(self) -> "Batch":
        """Pin the tensors, for the DataLoader, because a GPU's host waits for copies of memory that is not pinned."""
        self.pixel_values = self.pixel_values.pin_memory()
        for name in ("noise", "labels"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, torch.as_tensor(value).pin_memory())
        return self


def samples_digest(digests: torch.Tensor) -> str:
    """
    One hash for the samples of a step, on whatever rank they were.

    Args:
        digests: uint8 of shape (global batch, 8 + DIGEST_SIZE), in any order.
    """
    rows = sorted(bytes(row) for row in digests.cpu().numpy())  # a row starts with its position
    return hash_key(b"".join(rows), size=DIGEST_SIZE).hex()
