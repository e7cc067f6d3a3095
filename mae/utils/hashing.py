"""Hashes and permutations that are the same on every machine."""

import hashlib

import numpy as np
import torch
from torch import nn


def hash_weights(model: nn.Module) -> str:
    """Hash a model's tensors and their names."""
    weights = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return weights.hexdigest()


def hash_key(*values: int | str | bytes, size: int = 8) -> bytes:
    """Hash a tuple of values; the same on every machine and in every version."""
    return hashlib.blake2b(repr(values).encode(), digest_size=size).digest()


def hash_text(text: str, size: int = 8) -> str:
    """Hash a text, as hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def permutation(length: int, *key: int | str) -> np.ndarray:
    """Draw a permutation of range(length) from a key. It is made of raw generator bits, which no version changes."""
    bits = np.random.Philox(key=int.from_bytes(hash_key("permutation", *key, size=16), "big")).random_raw(length)
    return np.argsort(bits, kind="stable")
