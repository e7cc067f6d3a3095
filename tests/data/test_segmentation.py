"""Augmentation of images with their masks: both stay together, values stay values, and the key decides."""

import numpy as np
import pytest
import torch
from PIL import Image

from configuration_mae import MAEConfig
from mae.data.dataset import SampleDataset
from mae.data.folders import open_folder
from mae.data.mask_rows import match_folder
from mae.data.masks import IGNORED, MaskCoding
from mae.data.segmentation import Augmentation, MaskedImageTransform, SegmentationTransform, cut_mask
from mae.data.stream import Sample
from mae.utils.errors import UserError
from tests.support.masks import draw_discs, write_folders


CODING = MaskCoding((0, 1, 2), ("ground", "disc", "square"), (255,))


def config(size=32, channels=3):
    return MAEConfig(image_size=size, patch_size=8, num_channels=channels)


@pytest.fixture
def pairs(tmp_path):
    """A folder whose masks are images of the same numbers: the red channel is the class times 50."""

    def make(mask):
        for folder, array in (("images", np.stack([mask * 50, mask * 0, mask * 0], 2)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / folder / "0.png")
        source = open_folder(str(tmp_path / "images"), "--train_dir")
        return source, match_folder(source, str(tmp_path / "masks"), "--train_mask_dir", "--train_dir")

    return make


def sample(source, seed=0, row=0):
    return Sample(0, seed, source.origin(row, 0), seed, source.paths[row], row)


def blocks(height, width, size=16):
    """A mask of large blocks of the classes 0, 1 and 2."""
    y, x = np.mgrid[:height, :width]
    return ((y // size + x // size) % 3).astype(np.uint8)


def augment(pairs, mask, seed, size=32, **options):
    source, masks = pairs(mask)
    transform = SegmentationTransform(config(size), masks, CODING, Augmentation(color_jitter=0, **options))
    return transform(sample(source, seed))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("shape", [(96, 128), (20, 90), (10, 12)])
def test_image_and_mask_are_cut_scaled_flipped_and_turned_together(pairs, shape, size, seed):
    tensors, _ = augment(pairs, blocks(*shape), seed, size, rot90=True)
    red, labels = tensors["pixel_values"][0].float(), tensors["labels"]
    assert labels.shape == red.shape == ((32, 32) if size == 32 else size) and labels.dtype == torch.uint8
    counts = labels != IGNORED
    assert counts.any()
    # Interpolation differs only beside the edges of blocks.
    agree = ((red - 50.0 * labels).abs() < 20)[counts].float().mean()
    assert agree > 0.75
    mean = round(255 * config().image_mean[0])
    assert (red[~counts] == mean).all()


def test_mask_is_resized_to_the_nearest_pixel_of_the_same_grid(pairs):
    """At twice the size each pixel becomes four; at half the size each pixel is one of its four."""
    mask = np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint8)
    source, masks = pairs(mask)
    for factor in (2.0, 0.5):
        options = Augmentation(factor, factor, horizontal_flip=0, color_jitter=0)
        transform = SegmentationTransform(config(int(16 * factor)), masks, CODING, options)
        crop = transform.draw(mask)
        assert (crop.top, crop.left, crop.height, crop.width) == (0, 0, 16, 16)
        actual = cut_mask(mask, crop).numpy()
        if factor == 2:
            assert np.array_equal(actual, mask.repeat(2, 0).repeat(2, 1))
        else:
            candidates = np.stack([mask[y::2, x::2] for y in (0, 1) for x in (0, 1)])
            assert (candidates == actual).any(0).all()


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_values_of_the_mask_and_nothing_between(pairs, seed):
    mask = np.where(np.random.default_rng(0).random((64, 64)) < 0.5, 0, 2).astype(np.uint8)
    tensors, _ = augment(pairs, mask, seed)
    assert set(tensors["labels"].unique().tolist()) <= {0, 2, IGNORED}


def test_result_is_a_function_of_the_key_alone(pairs):
    source, masks = pairs(blocks(96, 128))
    transform = SegmentationTransform(config(), masks, CODING, Augmentation(rot90=True))
    first = [transform(sample(source, seed)) for seed in range(8)]
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = [transform(sample(source, seed)) for seed in reversed(range(8))][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first, again):
        assert all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and one[1] == other[1]
    assert len({drawn for _, drawn in first}) == 8  # the digest tells them apart


def test_scales_turns_and_flips_cover_their_range(pairs):
    source, masks = pairs(blocks(200, 200))
    transform = SegmentationTransform(config(), masks, CODING, Augmentation(rot90=True))
    crops = []
    for seed in range(300):
        torch.manual_seed(seed)
        crops.append(transform._draw_once(200, 200))
    scales = np.array([32 / crop.height for crop in crops])
    assert 0.49 < scales.min() < 0.55 and 1.9 < scales.max() < 2.1
    assert {crop.turns for crop in crops} == {0, 1, 2, 3} and {crop.flip for crop in crops} == {True, False}
    assert all(crop.top + crop.height <= 200 and crop.left + crop.width <= 200 for crop in crops)
    assert min(crop.top for crop in crops) < 3 and max(crop.top + crop.height for crop in crops) > 197


def test_crops_of_one_class_are_drawn_again(pairs):
    mask = np.zeros((256, 256), np.uint8)
    mask[:40, :40] = 1
    source, masks = pairs(mask)
    transform = SegmentationTransform(config(64), masks, CODING, Augmentation(1.0, 1.0, color_jitter=0))
    mixed = [len(transform(sample(source, seed))[0]["labels"].unique()) > 1 for seed in range(100)]
    torch.manual_seed(0)
    one = [transform._draw_once(256, 256) for _ in range(100)]
    chance = np.mean([crop.top < 40 and crop.left < 40 for crop in one])
    assert np.mean(mixed) > 1.5 * chance


def test_colours_of_half_of_the_images_change_and_masks_do_not(pairs):
    source, masks = pairs(blocks(96, 128))
    plain, jittered = (
        SegmentationTransform(config(), masks, CODING, Augmentation(color_jitter=strength)) for strength in (0, 1)
    )
    changed = 0
    for seed in range(40):
        one, other = plain(sample(source, seed))[0], jittered(sample(source, seed))[0]
        assert torch.equal(one["labels"], other["labels"])
        changed += not torch.equal(one["pixel_values"], other["pixel_values"])
    assert 8 < changed < 32


def test_colour_jitter_of_other_images_is_an_error(pairs):
    _, masks = pairs(blocks(32, 32))
    with pytest.raises(UserError, match="not 5. Use --color_jitter 0"):
        SegmentationTransform(config(channels=5), masks, CODING, Augmentation())


def test_mask_of_another_size_is_an_error_that_names_both(pairs, tmp_path):
    source, masks = pairs(blocks(32, 32))
    Image.fromarray(blocks(16, 32)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(UserError, match=r"masks/0.png has 32 x 16 pixels, but its image 0.png has 32 x 32"):
        MaskedImageTransform(config(), masks, CODING)(sample(source))


def test_whole_image_and_mask_are_as_in_the_files(tmp_path):
    images, masks = write_folders(tmp_path, 1)
    source = open_folder(str(images), "--train_dir")
    rows = match_folder(source, str(masks), "--train_mask_dir", "--train_dir")
    tensors, _ = MaskedImageTransform(config(), rows, CODING)(sample(source))
    image, mask = draw_discs(0)
    assert np.array_equal(tensors["pixel_values"].permute(1, 2, 0), image) and np.array_equal(tensors["labels"], mask)


def test_damaged_mask_is_skipped_in_a_batch(tmp_path):
    images, masks = write_folders(tmp_path, 3)
    source = open_folder(str(images), "--train_dir")
    rows = match_folder(source, str(masks), "--train_mask_dir", "--train_dir")
    (masks / "000.png").write_bytes(b"nothing")
    dataset = SampleDataset(SegmentationTransform(config(), rows, CODING, Augmentation()))
    batch = dataset.collate([dataset[sample(source, row, row)] for row in range(3)])
    assert batch.labels.shape == (2, 32, 32) and batch.weight == pytest.approx(2 / 3)
    assert "mask" in batch.skipped[0][1]
    assert dataset.collate([]).labels.shape == (1, 32, 32)
