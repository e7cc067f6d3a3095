"""Masks: which patches the encoder sees, and the kinds of masks."""

import math

import pytest
import torch

from modeling_mae import (
    MAEModel,
    mask_from_noise,
    num_visible_patches,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_model


@pytest.mark.parametrize("num_patches, ratio, expected", [(100, 0.9, 9), (400, 0.8, 79), (196, 0.75, 49), (16, 0, 16)])
def test_num_visible_patches_rounds_like_the_official_code(num_patches, ratio, expected):
    assert num_visible_patches(num_patches, ratio) == expected  # float error and all, as in the official code


@pytest.mark.parametrize("training", [False, True])
def test_encoder_without_mask_arguments_does_not_mask(training):
    model = tiny_model(MAEModel).train(training)
    outputs = model(make_images())
    assert outputs.mask is None and outputs.ids_restore is None
    assert outputs.last_hidden_state.shape == (2, 17, 32)
    assert torch.equal(outputs.last_hidden_state, model(make_images()).last_hidden_state)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "mask, visible",
    [
        ({"mask_ratio": 0.5}, 8),
        ({"noise": make_noise()}, 4),
        ({"bool_masked_pos": torch.arange(16).expand(2, 16) < 10}, 6),
    ],
)
def test_encoder_with_any_mask_argument_masks(mask, visible, training):
    outputs = tiny_model(MAEModel).train(training)(make_images(), **mask)
    assert outputs.last_hidden_state.shape == (2, 1 + visible, 32)
    assert outputs.mask.sum(1).tolist() == [16 - visible] * 2


def test_mask_ratio_zero_equals_no_mask_up_to_order():
    model = tiny_model(MAEModel)
    images = make_images()
    masked = model(images, noise=make_noise(), mask_ratio=0)
    order = masked.ids_restore[..., None].expand(-1, -1, 32)
    plain = model(images).last_hidden_state
    assert masked.mask.sum() == 0 and not torch.equal(masked.ids_restore[0], torch.arange(16))
    assert_close(masked.last_hidden_state[:, 1:].gather(1, order), plain[:, 1:])
    assert_close(masked.last_hidden_state[:, 0], plain[:, 0])


def test_mask_keeps_smallest_noise():
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3]])
    ids_keep, mask, ids_restore = mask_from_noise(noise, (2, 2), 2)
    assert ids_keep.tolist() == [[1, 3]]
    assert mask.tolist() == [[1, 0, 1, 0]]
    assert ids_restore.tolist() == [[2, 0, 3, 1]]


def test_equal_noise_keeps_raster_order():
    ids_keep, _, _ = mask_from_noise(torch.zeros(1, 1024), (32, 32), 256)
    assert torch.equal(ids_keep[0], torch.arange(256))


def test_permuted_noise_permutes_the_mask():
    model, noise = tiny_model(), make_noise()
    permutation = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    mask = model(make_images(), noise=noise).mask
    permuted = model(make_images(), noise=noise[:, permutation]).mask
    assert torch.equal(permuted, mask[:, permutation]) and not torch.equal(permuted, mask)


def test_bool_masked_pos_wins_over_noise_and_keeps_raster_order():
    model = tiny_model()
    removed = torch.zeros(2, 16, dtype=torch.bool)
    removed[0, [0, 3, 8, 15]] = removed[1, [1, 2, 5, 6]] = True
    outputs = model(make_images(), bool_masked_pos=removed, noise=make_noise())
    assert torch.equal(outputs.mask, removed.float())
    ids_keep = torch.stack([torch.arange(16)[~row] for row in removed])  # raster order
    assert torch.equal(outputs.ids_restore.gather(1, ids_keep), torch.arange(12).expand(2, 12))
    assert_close(model(make_images(), bool_masked_pos=removed.int()).logits, outputs.logits, 0)
    # The same mask from noise keeps the patches in another order, with the same predictions.
    noise = removed + make_noise()
    by_noise = model(make_images(), noise=noise, mask_ratio=0.25)
    assert torch.equal(by_noise.mask, outputs.mask) and not torch.equal(by_noise.ids_restore, outputs.ids_restore)
    assert_close(by_noise.logits, outputs.logits)


@pytest.mark.parametrize("masking, ratio", [("random", 0.75), ("block", 0.75), ("block", 0.5), ("grid", 0.75)])
def test_mask_of_a_sample_depends_on_its_noise_only(masking, ratio):
    noise = make_noise(6, 196)
    torch.manual_seed(0)
    visible = num_visible_patches(196, ratio)
    ids_keep, mask, ids_restore = mask_from_noise(noise, (14, 14), visible, masking)
    torch.manual_seed(1)
    again = mask_from_noise(noise[2:3], (14, 14), visible, masking)
    assert torch.equal(again[0][0], ids_keep[2]) and torch.equal(again[1][0], mask[2])
    assert (mask.sum(1) == 196 - visible).all() and set(mask.unique().tolist()) == {0, 1}
    assert torch.equal(ids_restore.sort(1).values, torch.arange(196).expand(6, 196))
    assert torch.equal(ids_restore.gather(1, ids_keep), torch.arange(visible).expand(6, visible))
    assert mask.gather(1, ids_keep).sum() == 0


@pytest.mark.parametrize("grid_size", [(14, 14), (4, 4), (2, 9), (1, 8), (1, 3), (24, 6)])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75, 0.95])
def test_block_mask_removes_the_exact_count(grid_size, ratio):
    num_patches = math.prod(grid_size)
    visible = num_visible_patches(num_patches, ratio)
    for noise in (make_noise(50, num_patches), torch.zeros(1, num_patches), torch.ones(1, num_patches)):
        _, mask, _ = mask_from_noise(noise, grid_size, visible, "block")
        assert (mask.sum(1) == num_patches - visible).all()


def equal_neighbours(mask, height, width):
    image = mask.view(-1, height, width)
    return ((image[:, 1:] == image[:, :-1]).float().mean() + (image[..., 1:] == image[..., :-1]).float().mean()) / 2


@pytest.mark.parametrize("ratio, chance", [(0.5, 0.5), (0.75, 0.625)])
def test_block_masks_are_more_contiguous_than_random_ones(ratio, chance):
    noise = make_noise(200, 196)
    visible = num_visible_patches(196, ratio)
    random, block = (mask_from_noise(noise, (14, 14), visible, kind)[1] for kind in ("random", "block"))
    assert abs(equal_neighbours(random, 14, 14) - chance) < 0.02
    assert equal_neighbours(block, 14, 14) > chance + 0.2
    # Every position is removed in some sample, and all masks differ.
    assert block.mean(0).min() > 0.02
    assert len(block.unique(dim=0)) == 200


def test_grid_mask_keeps_one_patch_of_2_x_2_for_any_noise():
    _, mask, _ = mask_from_noise(make_noise(3, 24), (4, 6), 6, "grid")
    expected = torch.tensor([[0, 1, 0, 1, 0, 1], [1] * 6] * 2).flatten()
    assert torch.equal(mask, expected.float().expand(3, 24))
    model = tiny_model(masking="grid")
    assert torch.equal(model(make_images()).mask, model(make_images(), noise=make_noise()).mask)


@pytest.mark.parametrize("grid_size, visible", [((4, 4), 8), ((3, 4), 3), ((4, 3), 3)])
def test_grid_mask_with_odd_grid_or_other_ratio_is_refused(grid_size, visible):
    with pytest.raises(ValueError, match=f"grid.* {visible} of {grid_size[0]} x {grid_size[1]}.*mask_ratio=0.75"):
        mask_from_noise(torch.rand(1, math.prod(grid_size)), grid_size, visible, "grid")


def test_model_masks_as_its_configuration_says():
    model = tiny_model(image_size=112, masking="block", mask_ratio=0.5)
    noise = make_noise(4, 196)
    outputs = model(make_images(112, 112, batch_size=4), noise=noise)
    assert torch.equal(outputs.mask, mask_from_noise(noise, (14, 14), 98, "block")[1])
