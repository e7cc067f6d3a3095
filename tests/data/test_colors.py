"""Random changes of colours."""

import pytest
import torch
from torchvision.transforms import v2

from mae.data.colors import ColorChanges, make_color_changes
from mae.utils.errors import UserError


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colors_are_torchvisions(dtype):
    """Half of the images, by its ColorJitter from the same random numbers; a share is grey."""
    pixels = (255 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    jitter = v2.ColorJitter(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.05)
    changes, drawn = ColorChanges(1.0, 0.3, 3), []
    for seed in range(40):
        torch.manual_seed(seed)
        expected = pixels
        if torch.rand(()) < 0.5:
            expected = jitter(pixels) if dtype == torch.uint8 else 255 * jitter(pixels / 255)
        torch.manual_seed(seed)
        found, (is_jittered, is_grey) = changes(pixels)
        torch.testing.assert_close(found, v2.functional.rgb_to_grayscale(expected, 3) if is_grey else expected)
        assert is_jittered == (not torch.equal(expected, pixels))
        drawn.append((is_jittered, is_grey))
    assert len(set(drawn)) == 4


def test_no_changes_draw_nothing():
    changes, pixels = ColorChanges(0, 0, 5), torch.rand(5, 4, 4)
    torch.manual_seed(3)
    assert make_color_changes(0, 0, 5) is None and changes(pixels) == (pixels, (False,))
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("options, flag", [((1, 0, 5), "color_jitter"), ((0, 0.1, 1), "grayscale_prob")])
def test_images_without_colours_are_refused(options, flag):
    with pytest.raises(UserError, match=f"--{flag} needs images of .* not {options[2]}. Use --{flag} 0"):
        ColorChanges(*options)
