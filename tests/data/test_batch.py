"""Batches."""

import io

import numpy as np
import torch

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.transforms import PreTrainingTransform
from tests.support.samples import (
    BrokenSource,
    assert_same,
    batches,
    sample,
)


def test_batches_of_several_types():
    """8 bits and more in one batch."""
    config = MAEConfig(image_size=8, patch_size=4, hidden_size=24, num_attention_heads=3, num_channels=2)
    examples = []
    for array in (np.full((8, 8, 2), 128, np.uint8), np.full((8, 8, 2), 0.5, np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        examples.append(SampleDataset(PreTrainingTransform(config))[sample(buffer.getvalue())])
    batch = SampleDataset(PreTrainingTransform(config)).collate(examples)
    torch.testing.assert_close(batch.pixel_values.float()[:, 0, 0, 0], torch.tensor([128.0, 127.5]))


def test_an_unreadable_image_consumes_its_position(emoji_bytes):
    good = BrokenSource(emoji_bytes[:32])
    bad = BrokenSource([b"no image" if row == 7 else data for row, data in enumerate(emoji_bytes[:32])])
    ours, theirs = batches(bad, stop=32), batches(good, stop=32)
    assert [batch.size for batch in ours] == [8] * 4
    (hit,) = [number for number, batch in enumerate(ours) if batch.skipped]
    assert (
        ours[hit].skipped == [(("file", 7), ours[hit].skipped[0][1])]
        and "no image of a known format" in ours[hit].skipped[0][1]
    )
    assert ours[hit].weight == 7 / 8 and len(ours[hit].pixel_values) == 7
    assert_same(ours[:hit] + ours[hit + 1 :], theirs[:hit] + theirs[hit + 1 :])
    kept = [not torch.equal(a, b) for a, b in zip(ours[hit].digests, theirs[hit].digests)].index(True)
    others = [row for row in range(8) if row != kept]
    assert torch.equal(ours[hit].pixel_values, theirs[hit].pixel_values[others])


def test_nothing_readable_gives_a_blank_of_weight_0():
    for batch in batches(BrokenSource([b""] * 32), stop=32):
        assert batch.weight == 0 and batch.size == 8 and batch.pixel_values.shape == (1, 3, 32, 32)
