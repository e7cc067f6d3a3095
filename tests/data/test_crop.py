"""Boxes of crops, flips and turns."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mae.data.crop import CropOptions, RandomCrop, place


SIZES = [(1, 1), (32, 32), (375, 500), (500, 40), (40, 500), (3, 100), (5, 6)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("area", [(0.08, 1), (0.2, 1), (1, 1), (0.5, 0.9)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.1, 3)])
def test_boxes_are_torchvisions(height, width, area, ratio):
    """torchvision draws from the default generator. Long images have none that fits, and take the middle."""
    crop = RandomCrop(CropOptions("random_resized", *area, *ratio), (8, 8))
    reference, generator = v2.RandomResizedCrop(8, area, ratio), torch.Generator()
    flips = 0
    for seed in range(200):
        torch.manual_seed(seed)
        box = reference.make_params([torch.empty(0, height, width)])
        flip = bool(torch.rand(()) < 0.5)
        found = crop.draw(height, width, generator.manual_seed(seed))
        assert found._asdict() == box | {"flip": flip, "turns": 0}
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3))  # and nothing else is drawn
        flips += flip
    assert 70 < flips < 130


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("rot90", [False, True])
def test_crop_without_change_of_scale_has_the_size_of_the_model(height, width, rot90):
    generator = torch.Generator().manual_seed(0)
    crop, tops = RandomCrop(CropOptions("random", rot90=rot90), (24, 40)), set()
    for _ in range(300):
        found = crop.draw(height, width, generator)
        rows, columns = (24, 40) if found.turns % 2 == 0 else (40, 24)
        assert (found.height, found.width) == (min(rows, height), min(columns, width))
        assert 0 <= found.top <= height - found.height and 0 <= found.left <= width - found.width
        tops.add(found.top)
    assert len(tops) > 100 or height < 100


def test_centre_crop_is_the_largest_box_of_the_shape_in_the_middle():
    crop, generator = RandomCrop(CropOptions("center"), (24, 48)), torch.Generator().manual_seed(0)
    assert crop.draw(100, 100, generator)[:4] == (25, 0, 50, 100)
    assert crop.draw(48, 200, generator)[:4] == (0, 52, 48, 96)
    assert crop.draw(1, 1, generator)[:4] == (0, 0, 1, 1)
    assert RandomCrop(CropOptions("none"), (24, 48)).draw(7, 300, generator)[:4] == (0, 0, 7, 300)


def test_flips_and_turns_are_torchvisions_and_have_their_probabilities():
    """Every composition of a turn, a vertical and a horizontal flip, and how often each of the eight occurs."""
    pixels, fill = torch.arange(24.0).view(1, 4, 6), torch.zeros(1, 1, 1)
    options = CropOptions("none", horizontal_flip=0.25, vertical_flip=0.75, rot90=True)
    crop, generator, counts = RandomCrop(options, (4, 6)), torch.Generator(), {}
    for seed in range(2000):
        found = crop.draw(4, 6, generator.manual_seed(seed))
        generator.manual_seed(seed)
        turns = int(torch.randint(4, (), generator=generator))
        horizontal, vertical = torch.rand((), generator=generator) < 0.25, torch.rand((), generator=generator) < 0.75
        expected = torch.rot90(pixels, turns, (1, 2))
        expected = TF.vertical_flip(expected) if vertical else expected
        expected = TF.horizontal_flip(expected) if horizontal else expected
        assert torch.equal(place(pixels, expected.shape[1:], fill, (0, 0), found.turns, found.flip), expected)
        key = bool(horizontal), bool(vertical)
        counts[key] = counts.get(key, 0) + 1
    assert abs(counts[False, True] / 2000 - 0.75 * 0.75) < 0.04 and abs(counts[True, False] / 2000 - 0.0625) < 0.02


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": 0}, {"crop": "center"}])
def test_digest_of_a_crop_without_a_turn_is_the_one_from_before_turns(options):
    generator = torch.Generator().manual_seed(0)
    assert len(RandomCrop(CropOptions(**options), (8, 8)).draw(20, 20, generator).drawn()) == 5
    turned = RandomCrop(CropOptions(rot90=True), (8, 8))
    assert {len(turned.draw(20, 20, generator).drawn()) for _ in range(50)} == {5, 6}
