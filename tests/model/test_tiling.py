"""Segmentation in overlapping windows, against a plain loop over the whole image."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dense_mae import window_starts
from modeling_mae import MAEForSemanticSegmentation
from patches_mae import normalize
from tests.support.models import assert_close, tiny_model


def segmenter(**fields):
    return tiny_model(MAEForSemanticSegmentation, **{"num_labels": 3, **fields})


def image(height, width, channels=3):
    generator = torch.Generator().manual_seed(height + width)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


def plain_scores(model, pixels, overlap):
    """The weighted mean of the scores of all windows, each pixel's own way."""
    window, (height, width) = 32, pixels.shape[1:]
    padded = F.pad(pixels, (0, max(window - width, 0), 0, max(window - height, 0)))
    total, weight = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    fall = np.array([min(place + 1, window - place) / 16 for place in range(window)])
    for top in window_starts(height, window, overlap):
        for left in window_starts(width, window, overlap):
            logits = model(padded[None, :, top : top + window, left : left + window]).logits[0].numpy()
            for y in range(window):
                for x in range(window):
                    total[:, top + y, left + x] += logits[:, y, x] * fall[y] * fall[x]
                    weight[top + y, left + x] += fall[y] * fall[x]
    return torch.from_numpy(total / weight)[:, :height, :width].float()


@pytest.mark.parametrize("size", [(32, 32), (45, 83), (100, 40), (20, 50), (9, 9)])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.7])
@torch.no_grad()
def test_scores_are_the_weighted_mean_of_all_windows(size, overlap):
    model = segmenter()
    pixels = image(*size)
    bands = list(model.score_bands(pixels, overlap, batch_size=3))
    assert [top for top, _ in bands] == np.cumsum([0, *(band.shape[1] for _, band in bands)])[:-1].tolist()
    scores = torch.cat([band for _, band in bands], dim=1)
    expected = plain_scores(model, normalize(pixels, model.config), overlap)
    assert_close(scores, expected)
    assert torch.equal(model.segment(pixels, overlap), scores.argmax(dim=0))


@torch.no_grad()
def test_image_of_the_size_of_a_window_has_the_scores_of_the_model():
    model = segmenter()
    pixels = normalize(image(32, 32), model.config)
    ((top, scores),) = model.score_bands(pixels)
    assert top == 0
    assert_close(scores, model(pixels[None]).logits[0])


@torch.no_grad()
def test_windows_are_rectangles_of_any_number_of_channels():
    model = segmenter(image_size=(16, 40), num_channels=5)
    assert model.segment(image(33, 90, channels=5)).shape == (33, 90)


def test_memory_does_not_grow_with_the_height_of_the_image():
    model = segmenter()
    sizes = {max(band.shape[1] for _, band in model.score_bands(image(height, 40))) for height in (64, 320)}
    assert max(sizes) <= 32


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 1000])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_windows_cover_a_side_and_overlap(length, overlap):
    starts = window_starts(length, 32, overlap)
    assert starts[0] == 0 and (starts[-1] + 32 == length or length <= 32)
    assert all(one < other <= one + 32 - int(32 * overlap) for one, other in zip(starts, starts[1:]))


@pytest.mark.parametrize("overlap", [1, -0.1])
def test_impossible_overlap_is_an_error(overlap):
    with pytest.raises(ValueError, match="overlap"):
        list(segmenter().score_bands(image(40, 40), overlap))
