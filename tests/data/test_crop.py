"""Boxes of crops, and flips."""

import pytest
import torch
from torchvision.transforms import v2

from mae.data.crop import RandomCrop


@pytest.mark.parametrize("height, width", [(1, 1), (32, 32), (375, 500), (500, 40), (40, 500), (3, 100), (5, 6)])
@pytest.mark.parametrize("min_area", [0.08, 0.2, 1.0])
def test_boxes_are_torchvisions(height, width, min_area):
    """torchvision draws from the default generator. Long images have none that fits, and take the middle."""
    crop, reference, generator = RandomCrop(min_area), v2.RandomResizedCrop(8, (min_area, 1)), torch.Generator()
    flips = 0
    for seed in range(200):
        torch.manual_seed(seed)
        box = reference.make_params([torch.empty(0, height, width)])
        flip = bool(torch.rand(()) < 0.5)
        found = crop.draw(height, width, generator.manual_seed(seed))
        assert found._asdict() == box | {"flip": flip}
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3))  # and nothing else is drawn
        flips += flip
    assert 70 < flips < 130
