"""Patch tokens of a frozen encoder: against plain loops, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from mae.data.folders import open_folder
from mae.data.mask_rows import match_folder
from mae.data.masks import IGNORED, MaskCoding
from mae.evaluation.dense_features import (
    LabelledPatches,
    PatchSegmenter,
    collect_patches,
    knn_scorer,
    logistic_scorer,
    patch_classes,
)
from mae.utils.errors import DataError, UserError
from modeling_mae import MAEModel
from tests.support.features import plain_knn
from tests.support.masks import draw_discs, write_folders
from tests.support.models import tiny_model


CODING = MaskCoding((0, 1, 2), ("ground", "disc", "square"), (255,))
WINDOW, PATCH = 32, 8


def make_encoder() -> MAEModel:
    return tiny_model(MAEModel, image_size=WINDOW, patch_size=PATCH).eval()


def open_masked(root, count=3, **size):
    images, masks = write_folders(root, count, **size)
    source = open_folder(str(images), "--train_dir")
    return source, match_folder(source, str(masks), "--train_mask_dir", "--train_dir")


def random_patches(num_classes, count=120, width=6):
    generator = np.random.default_rng(num_classes)
    classes = generator.integers(0, num_classes, count)
    features = generator.normal(size=(count, width)) + classes[:, None] * np.arange(width)
    return LabelledPatches(torch.from_numpy(features).float(), torch.from_numpy(classes))


def test_class_of_a_patch_is_that_of_most_of_its_pixels():
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, IGNORED], (24, 32), p=[0.2, 0.2, 0.3, 0.3])
    labels[:8, :4] = IGNORED
    found = patch_classes(labels, (8, 4), 3).reshape(3, 8)
    for row in range(3):
        for column in range(8):
            pixels = labels[8 * row : 8 * row + 8, 4 * column : 4 * column + 4]
            counts = [(pixels == number).sum() for number in range(3)]
            assert found[row, column] == (int(np.argmax(counts)) if any(counts) else IGNORED)
    assert found[0, 0] == IGNORED


def test_patches_are_tokens_of_windows_with_their_classes(tmp_path):
    """All patches of images of 48 x 64 pixels, one at a time. Windows start at rows 0 and 16, columns 0 and 32."""
    encoder = make_encoder()
    source, masks = open_masked(tmp_path)
    patches = collect_patches(encoder, source, masks, CODING, max_patches=10**6, batch_size=3)
    mean, std = (np.array(values, np.float32) for values in (encoder.config.image_mean, encoder.config.image_std))
    tokens, classes = [], []
    for file in sorted(tmp_path.glob("images/**/*.*"), key=lambda path: path.relative_to(tmp_path / "images")):
        number = int(file.stem)
        image, mask = np.asarray(Image.open(file)), draw_discs(number)[1]
        for top in (0, 16):
            for left in (0, 32):
                window = (image[top : top + WINDOW, left : left + WINDOW] / np.float32(255) - mean) / std
                with torch.no_grad():
                    pixels = torch.from_numpy(window).permute(2, 0, 1)[None].float()
                    tokens.append(encoder(pixels).last_hidden_state[0, 1:])
                classes.append(patch_classes(mask[top : top + WINDOW, left : left + WINDOW], (PATCH, PATCH), 3))
    assert np.array_equal(patches.classes, np.concatenate(classes))
    assert torch.allclose(patches.features, torch.cat(tokens), atol=2e-2)  # a JPEG differs by a rounding


def test_each_image_gives_its_share_of_patches_and_seeds_draw_others(tmp_path):
    encoder = make_encoder()
    source, masks = open_masked(tmp_path)
    every = collect_patches(encoder, source, masks, CODING, max_patches=10**6)
    some, again, others = (
        collect_patches(encoder, source, masks, CODING, max_patches=31, seed=seed) for seed in (0, 0, 1)
    )
    assert len(some.classes) == 30 and torch.equal(some.features, again.features)
    assert not torch.equal(some.features, others.features)
    known = {vector.numpy().round(4).tobytes(): int(number) for vector, number in zip(every.features, every.classes)}
    for vector, number in zip(some.features, some.classes):
        assert known[vector.numpy().round(4).tobytes()] == number


def test_images_smaller_than_a_window_are_filled_up(tmp_path):
    source, masks = open_masked(tmp_path, height=20, width=24)
    patches = collect_patches(make_encoder(), source, masks, CODING, max_patches=10**6)
    assert len(patches.classes) == 3 * 3 * 3  # patches beyond row 24 and column 24 have no pixel


def test_images_without_a_pixel_that_counts_are_refused(tmp_path):
    source, masks = open_masked(tmp_path)
    for path in (tmp_path / "masks").glob("**/*.png"):
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="No patch of the 3 training images has a class: 3 images could be read"):
        collect_patches(make_encoder(), source, masks, CODING)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logistic_scores_are_the_logits_of_scikit_learn(num_classes):
    patches = random_patches(num_classes)
    queries = torch.randn(40, 6)
    features = patches.features.numpy()
    mean, std = features.mean(0), features.std(0)
    regression = LogisticRegression(C=0.5, max_iter=1000).fit((features - mean) / std, patches.classes.numpy())
    expected = regression.predict_proba((queries.numpy() - mean) / std)
    found = logistic_scorer(patches, num_classes, c=0.5)(queries).softmax(dim=1)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_class_without_a_training_patch_is_never_predicted():
    patches = random_patches(2)
    patches.classes[patches.classes == 1] = 2
    scores = logistic_scorer(patches, 4)(torch.randn(50, 6) * 10)
    assert set(scores.argmax(dim=1).tolist()) == {0, 2}


def test_regression_of_one_class_is_refused():
    patches = random_patches(2)
    patches.classes[:] = 1
    with pytest.raises(UserError, match="All 120 training patches have class 1, .*--methods knn"):
        logistic_scorer(patches, 2)


def test_votes_are_those_of_a_plain_loop():
    patches, queries = random_patches(3), torch.randn(10, 6)
    found = knn_scorer(patches, 3, k=7, temperature=0.1)(queries)
    expected = plain_knn(patches.features.numpy(), patches.classes.numpy(), queries.numpy(), 3, 7, 0.1)
    assert found.numpy() == pytest.approx(expected / expected.sum(axis=1, keepdims=True), rel=1e-4)


def test_scores_of_patches_are_interpolated_to_pixels():
    """Scores that rise by 1 a patch rise by 1 / 8 a pixel, between the centres of the outer patches."""
    encoder = make_encoder()
    grid = WINDOW // PATCH

    def score(tokens):
        columns = torch.arange(len(tokens)) % grid
        rows = torch.arange(len(tokens)) // grid % grid
        return torch.stack([columns, rows], dim=1).float()

    logits = PatchSegmenter(encoder, score, 2)(torch.zeros(2, 3, WINDOW, WINDOW)).logits
    ramp = ((torch.arange(WINDOW) + 0.5) / PATCH - 0.5).clamp(0, grid - 1)
    assert torch.allclose(logits[:, 0], ramp.expand(2, WINDOW, WINDOW), atol=1e-6)
    assert torch.allclose(logits[:, 1], ramp[:, None].expand(2, WINDOW, WINDOW), atol=1e-6)


def test_segmenter_does_not_change_the_encoder():
    encoder = make_encoder()
    labels = encoder.config.num_labels
    assert PatchSegmenter(encoder, lambda tokens: tokens, 7).config.num_labels == 7
    assert encoder.config.num_labels == labels
