"""Masks as pictures: palettes, PNG files, overlays, and the figure with one image and with forty classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from mae.evaluation.overlays import Example, make_palette, overlay, save_examples, save_mask, shrink, to_picture
from tests.support.masks import draw_discs


NAMES = ["background", "disc", "square"]


@pytest.mark.parametrize("count", [2, 40, 254])
def test_colours_of_classes_differ(count):
    palette = make_palette([f"class {number}" for number in range(count)])
    assert palette.shape == (count, 3) and len(np.unique(palette, axis=0)) > 0.9 * count
    assert len(np.unique(palette[:60], axis=0)) == min(count, 60)


def test_background_is_black_and_own_colours_are_kept():
    assert make_palette(NAMES)[0].tolist() == [0, 0, 0] and make_palette(NAMES)[1].any()
    assert make_palette(["a", "b"], [0x010203, 0xFFFEFD]).tolist() == [[1, 2, 3], [255, 254, 253]]


def test_saved_mask_has_the_class_numbers_and_the_palette(tmp_path):
    mask = draw_discs(0)[1]
    save_mask(mask, make_palette(NAMES), tmp_path / "new" / "mask.png")
    saved = Image.open(tmp_path / "new" / "mask.png")
    assert np.array_equal(np.asarray(saved), mask)
    assert np.array_equal(np.asarray(saved.convert("RGB")), make_palette(NAMES)[mask])


def test_overlay_leaves_the_background_and_colours_the_classes():
    image, mask = draw_discs(0)
    mask = mask.copy()
    mask[:5] = 255
    result = overlay(image, mask, make_palette(NAMES), NAMES)
    assert np.array_equal(result[mask == 0], image[mask == 0])
    expected = 0.4 * image[mask == 1] + 0.6 * make_palette(NAMES)[1]
    assert np.abs(result[mask == 1] - expected).max() <= 1
    assert (result[mask == 255] >= 178).all()  # pale


def test_large_example_is_shrunk_and_masks_stay_masks():
    mask = np.zeros((1000, 600), np.uint8)
    mask[:, 300:] = 200
    pixels = np.stack([mask] * 3, axis=2)
    small = shrink(Example(pixels, mask, mask, "x"))
    assert small.truth.shape == (400, 240) and small.pixels.shape == (400, 240, 3)
    assert set(np.unique(small.truth)) == {0, 200} and (small.truth[:, 120:] == 200).all()


def test_picture_of_other_channels_is_the_first():
    pixels = torch.arange(5 * 4 * 4).reshape(5, 4, 4).float() * 10
    assert to_picture(pixels).shape == (4, 4, 3)
    assert np.array_equal(to_picture(pixels)[..., 2], pixels[0].clamp(max=255).numpy())


@pytest.mark.parametrize(("count", "classes"), [(1, 3), (40, 3), (3, 40)])
def test_figure_holds_all_images_and_classes(tmp_path, count, classes):
    examples = []
    for seed in range(count):
        image, mask = draw_discs(seed)
        if classes > 3:
            mask = (np.arange(mask.size).reshape(mask.shape) // 77 % classes).astype(np.uint8)
        examples.append(Example(image, mask, mask.T.reshape(mask.shape), str(seed)))
    names = NAMES + [f"a class of number {number}" for number in range(classes - 3)]
    save_examples(examples, names, make_palette(names), tmp_path / "figure.png", "Title")
    width, height = Image.open(tmp_path / "figure.png").size
    assert width > 600 and height > 80 * -(-count // 2)
