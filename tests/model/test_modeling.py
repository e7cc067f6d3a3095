"""Properties of the models: masking, geometry, loss, initialisation, precision, compilation, errors."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from configuration_mae import MAEConfig
from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
    check_pixel_values,
    drop_path,
    mask_from_noise,
    num_visible_patches,
    resample_positions,
    sincos_positions,
)
from tests.support.models import assert_close, tiny_config, tiny_model


def make_images(*size, channels=3, batch_size=2):
    return torch.randn(batch_size, channels, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def make_noise(batch_size=2, num_patches=16):
    return torch.rand(batch_size, num_patches, generator=torch.Generator().manual_seed(2))


# Patches

SHAPES = [  # image size, patch size, channels
    ((32, 32), 8, 3),
    ((32, 32), 16, 1),
    ((24, 40), 8, 4),
    ((24, 40), (8, 4), 13),
    ((8, 16), 8, 3),
    ((6, 35), (2, 7), 2),
]


@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
def test_patchify_orders_patches_by_raster_and_unpatchify_inverts_it(image_size, patch_size, channels):
    model = tiny_model(image_size=image_size, patch_size=patch_size, num_channels=channels, mask_ratio=0.5)
    images = make_images(*image_size, channels=channels)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    expected = [
        # "nchpwq->nhwpqc": rows of patches, patches of a row, rows of a patch, pixels of a row, channels
        [image[:, y + p, x + q] for p in range(height) for q in range(width)]
        for image in images
        for y in range(0, image_size[0], height)
        for x in range(0, image_size[1], width)
    ]
    expected = torch.stack([torch.cat(patch) for patch in expected]).unflatten(0, (2, -1))
    patches = model.patchify(images)
    assert torch.equal(patches, expected)
    assert torch.equal(model.unpatchify(patches), images)
    assert torch.equal(model.unpatchify(patches, image_size), images)


@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
def test_patch_embedding_projects_the_patches_of_patchify(image_size, patch_size, channels):
    model = tiny_model(image_size=image_size, patch_size=patch_size, num_channels=channels, mask_ratio=0.5)
    images = make_images(*image_size, channels=channels)
    projection = model.mae.patch_embed.proj
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)
    assert_close(model.mae.patch_embed(images), model.patchify(images) @ weight.T + projection.bias, 5e-5)


def test_unpatchify_of_another_size_needs_image_size():
    model = tiny_model()
    images = make_images(16, 48)
    patches = model.patchify(images)
    assert torch.equal(model.unpatchify(patches, (16, 48)), images)
    with pytest.raises(ValueError, match=r"16, 192.*\(2, 12, 192\).*image_size="):
        model.unpatchify(patches)


# Masking


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


# Loss and predictions


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("channels, patch_size", [(3, 8), (4, (4, 8))])
def test_loss_equals_closed_form(norm_pix_loss, channels, patch_size):
    model = tiny_model(num_channels=channels, patch_size=patch_size, norm_pix_loss=norm_pix_loss)
    images = make_images(channels=channels)
    outputs = model(images)
    target = model.patchify(images).double().numpy()
    if norm_pix_loss:
        target = (target - target.mean(2, keepdims=True)) / np.sqrt(target.var(2, ddof=1, keepdims=True) + 1e-6)
    error = ((outputs.logits.detach().double().numpy() - target) ** 2)[outputs.mask.bool().numpy()]
    assert outputs.loss.item() == pytest.approx(error.mean(), rel=1e-5)


def test_only_removed_patches_carry_loss():
    model, noise = tiny_model(), make_noise()
    with torch.no_grad():  # the same prediction for every patch, which depends on no pixel
        model.decoder.pred.weight.zero_()
    patches = model.patchify(make_images())
    images = [make_images()]
    for value in (0, 1):
        mask = model(images[0], noise=noise).mask[..., None]
        images.append(model.unpatchify(torch.where(mask == value, torch.randn_like(patches), patches)))
    loss, visible, removed = (model(image, noise=noise).loss for image in images)
    assert loss == visible
    assert abs(loss - removed) > 0.001


def test_removed_pixels_are_unseen():
    model = tiny_model()
    images, noise = make_images(), make_noise()
    outputs = model(images, noise=noise)
    patches = model.patchify(images)
    for value in (0, 1):
        changed = torch.where(outputs.mask[..., None] == value, torch.randn_like(patches), patches)
        logits = model(model.unpatchify(changed), noise=noise).logits
        assert torch.equal(logits, outputs.logits) == (value == 1)


def test_return_loss_false_skips_the_loss():
    outputs = tiny_model()(make_images(), return_loss=False)
    assert outputs.loss is None and outputs.logits.shape == (2, 16, 192)


def test_return_logits_false_skips_the_logits_and_keeps_the_loss():
    model, noise = tiny_model(), make_noise()
    sizes = []
    model.decoder.pred.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    expected, outputs = (model(make_images(), noise=noise, return_logits=value) for value in (True, False))
    assert outputs.logits is None and torch.equal(outputs.mask, expected.mask)
    assert_close(outputs.loss, expected.loss)
    assert sizes == [16, 12]  # without the visible patches


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("image_size", [(32, 32), (16, 48)])
def test_reconstruct_returns_masked_predicted_and_pasted_images(norm_pix_loss, image_size):
    model = tiny_model(norm_pix_loss=norm_pix_loss)
    images = make_images(*image_size)
    num_patches = image_size[0] * image_size[1] // 64
    arguments = {"noise": make_noise(2, num_patches), "interpolate_pos_encoding": True}
    outputs = model.reconstruct(images, **arguments)
    logits, mask = model(images, **arguments)[1:3]
    patches = model.patchify(images)
    if norm_pix_loss:
        variance = patches.double().numpy().var(2, ddof=1, keepdims=True)
        logits = logits * torch.tensor(np.sqrt(variance + 1e-6)).float() + patches.mean(2, keepdim=True)
    removed = mask[..., None].bool()
    assert torch.equal(outputs.mask, mask)
    assert outputs.reconstruction.shape == images.shape
    assert_close(model.patchify(outputs.reconstruction), logits)
    assert torch.equal(model.patchify(outputs.masked), torch.where(removed, 0.0, patches))
    pasted = model.patchify(outputs.pasted)
    assert torch.equal(torch.where(removed, 0.0, pasted), torch.where(removed, 0.0, patches))
    assert_close(torch.where(removed, pasted, 0.0), torch.where(removed, logits, 0.0))
    assert not outputs.pasted.requires_grad


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_output_of_an_image_does_not_depend_on_its_batch(cls):
    model = tiny_model(cls, num_labels=5)
    images, noise = make_images(batch_size=5), make_noise(5)
    arguments = [{} if cls is MAEForImageClassification else {"noise": rows} for rows in (noise, noise[3:4])]
    batch, single = model(images, **arguments[0]), model(images[3:4], **arguments[1])
    key = "last_hidden_state" if cls is MAEModel else "logits"
    assert_close(batch[key][3:4], single[key])


# Geometry


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("image_size, patch_size", [((24, 40), 8), ((32, 32), (4, 8)), ((48, 16), (16, 4))])
def test_rectangles_and_other_channels_give_outputs_of_their_size(image_size, patch_size, channels):
    fields = {"image_size": image_size, "patch_size": patch_size, "num_channels": channels, "num_labels": 5}
    images = make_images(*image_size, channels=channels)
    outputs = tiny_model(**fields)(images)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    num_patches = image_size[0] // height * (image_size[1] // width)
    assert outputs.logits.shape == (2, num_patches, height * width * channels)
    assert outputs.mask.shape == (2, num_patches) and outputs.loss.isfinite()
    assert tiny_model(MAEForImageClassification, **fields)(images).logits.shape == (2, 5)


def cubic_matrix(old, new):
    """Rows of bicubic weights (a = -0.75, align_corners=False, borders clamped) from `old` to `new` samples."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x, a = abs(place - tap), -0.75
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(tap, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize("new_grid", [(7, 9), (2, 3), (4, 12), (4, 6)])
def test_resampled_positions_equal_bicubic_interpolation(new_grid):
    table = torch.randn(1, 25, 8)
    resampled = resample_positions(table, (4, 6), new_grid)
    patches = table[0, 1:].double().view(4, 6, 8)
    rows, columns = cubic_matrix(4, new_grid[0]), cubic_matrix(6, new_grid[1])
    expected = torch.einsum("ya,xb,abd->yxd", rows, columns, patches).flatten(0, 1)
    assert_close(resampled[0, 1:], expected.float())
    assert torch.equal(resampled[0, 0], table[0, 0])


def test_resampled_positions_keep_dtype():
    table = torch.randn(1, 17, 8)
    resampled = resample_positions(table.bfloat16(), (4, 4), (6, 6))
    assert resampled.dtype == torch.bfloat16
    assert_close(resampled, resample_positions(table.bfloat16().float(), (4, 4), (6, 6)).bfloat16(), 0)


@pytest.mark.parametrize("size", [(48, 48), (16, 40)])
def test_interpolated_positions_equal_those_of_a_resized_model(size):
    model = tiny_model(num_labels=5)
    images = make_images(*size)
    num_patches = size[0] * size[1] // 64
    noise = make_noise(2, num_patches)
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} .*32 x 32.*interpolate_pos_encoding=True"):
        model(images, noise=noise)
    outputs = model(images, noise=noise, interpolate_pos_encoding=True)
    assert outputs.logits.shape == (2, num_patches, 192)

    # A model of that size with resampled tables gives the same output.
    other = tiny_model(image_size=size)
    weights = model.state_dict()
    for key in ("mae.pos_embed", "decoder.pos_embed"):
        weights[key] = resample_positions(weights[key], (4, 4), (size[0] // 8, size[1] // 8))
    other.load_state_dict(weights)
    assert_close(other(images, noise=noise).logits, outputs.logits)
    model.resize_positions(size)
    assert model.config.image_size == size and model.config.num_patches == num_patches
    assert_close(model(images, noise=noise).logits, outputs.logits)
    assert not model.mae.pos_embed.requires_grad and not model.decoder.pos_embed.requires_grad


def test_classifier_that_interpolates_equals_a_resized_one():
    model = tiny_model(MAEForImageClassification)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model(make_images(48, 48))
    logits = model(make_images(48, 48), interpolate_pos_encoding=True).logits
    model.resize_positions(48)
    assert_close(model(make_images(48, 48)).logits, logits)
    assert model.mae.pos_embed.requires_grad


# Initialisation


def xavier(fan_in, fan_out):
    return math.sqrt(6 / (fan_in + fan_out))


def check_initialisation(model, skip=()):
    """Check each parameter against the rules of the official code, restated here by parameter name."""
    seen = set()
    for name, parameter in model.named_parameters():
        if name in skip:
            continue
        kind = name.split(".")[-2] if "." in name else ""
        largest = parameter.abs().max().item()
        if name.endswith("pos_embed"):
            assert torch.equal(parameter, sincos_positions(parameter.shape[2], model.config.grid_size)), name
        elif name.endswith(("cls_token", "mask_token")):
            assert 0.015 < parameter.std() < 0.025 and parameter.mean().abs() < 0.01, name
        elif "norm" in kind:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "patch_embed" in name:
            fan_out, fan_in = 64, 3 * 8 * 8
            bound = xavier(fan_in, fan_out) if name.endswith("weight") else 1 / math.sqrt(fan_in)
            assert 0.9 * bound < largest <= bound and parameter.mean().abs() < 0.3 * bound, name
        elif name.endswith("bias"):
            assert largest == 0, name
        elif kind == "head":
            assert 1.8e-5 < parameter.std() < 2.2e-5, name
        else:
            dim = parameter.shape[1]
            bound = math.sqrt(6 / (4 * dim)) if kind == "qkv" else xavier(*parameter.shape)
            assert 0.98 * bound < largest <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        seen.add(name)
    return seen


INIT = {"hidden_size": 64, "intermediate_size": 128, "decoder_hidden_size": 64, "decoder_intermediate_size": 96}
CLASSES = [
    (MAEModel, {}),
    (MAEForPreTraining, {}),
    (MAEForImageClassification, {"num_labels": 10, "pooling": "cls"}),
    (MAEForImageClassification, {"num_labels": 10, "pooling": "mean"}),
]


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_new_model_is_initialised_like_the_official_one(cls, fields):
    torch.manual_seed(0)
    model = cls(tiny_config(**INIT, **fields))
    assert len(check_initialisation(model)) == len(model.state_dict())


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_model_built_on_meta_is_initialised_like_the_official_one(cls, fields):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = cls(tiny_config(**INIT, **fields))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    check_initialisation(model)
    assert model.state_dict().keys() == cls(tiny_config(**INIT, **fields)).state_dict().keys()


@pytest.mark.parametrize("kept", ["weight", "bias", "everything of block 0"])
@pytest.mark.parametrize("cls, fields", CLASSES)
def test_from_pretrained_initialises_missing_tensors_only(cls, fields, kept, tmp_path):
    torch.manual_seed(0)
    cls(tiny_config(**INIT, **fields)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    keep = {name: torch.full_like(value, 7) for name, value in weights.items() if kept.split()[-1] in name}
    keep = {name: value for name, value in keep.items() if kept != "everything of block 0" or "blocks.0." in name}
    save_file(keep, file, metadata={"format": "pt"})
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == weights.keys() - keep.keys()
    for name, value in keep.items():
        assert torch.equal(model.get_parameter(name), value), name
    assert check_initialisation(model, skip=keep) == weights.keys() - keep.keys()


@pytest.mark.parametrize("cls, fields", CLASSES)
def test_positions_are_frozen_except_in_the_classifier(cls, fields):
    model = cls(tiny_config(**fields))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    positions = {name for name in model.state_dict() if name.endswith("pos_embed")}
    assert frozen == (set() if cls is MAEForImageClassification else positions)


# Blocks


def test_drop_path_rate_of_the_configuration_rises_over_the_blocks():
    model = MAEModel(tiny_config(num_hidden_layers=5, drop_path_rate=0.2))
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx(np.linspace(0, 0.2, 5).tolist())
    assert MAEModel(tiny_config(num_hidden_layers=1, drop_path_rate=0.2)).blocks[0].drop_path_rate == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20000, 3, 2), 0.3, training=True)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert (drop_path(torch.ones(2000, 1, 1), 0.3, training=False) == 1).all()
    assert_close(dropped.flatten(1).unique(dim=0), torch.tensor([[0.0] * 6, [1 / 0.7] * 6]))  # whole samples


def test_drop_path_acts_in_training_and_in_the_encoder_only():
    model = tiny_model(MAEModel, drop_path_rate=0.5)
    plain = tiny_model(MAEModel)
    images = make_images(batch_size=8)
    assert_close(model(images).last_hidden_state, plain(images).last_hidden_state, 0)
    trained = model.train()(images).last_hidden_state
    assert not torch.equal(trained, model(images).last_hidden_state)
    decoder = tiny_model(drop_path_rate=0.5).train().decoder
    assert all(block.drop_path_rate == 0 for block in decoder.blocks)


def test_attention_dropout_acts_in_training_only():
    model = tiny_model(MAEModel, attention_probs_dropout_prob=0.5)
    images = make_images()
    assert torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)
    assert not torch.equal(model.train()(images).last_hidden_state, model(images).last_hidden_state)


def test_qkv_bias_false_leaves_out_the_bias():
    model = tiny_model(qkv_bias=False)
    assert not [name for name in model.state_dict() if name.endswith("qkv.bias")]
    assert model(make_images()).loss.isfinite()


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_hidden_states_are_those_before_and_after_each_block(cls):
    model = tiny_model(cls, num_hidden_layers=3)
    encoder = model if cls is MAEModel else model.mae
    images, noise = make_images(), make_noise()
    mask = {} if cls is MAEForImageClassification else {"noise": noise}
    hidden_states = model(images, output_hidden_states=True, **mask).hidden_states
    assert len(hidden_states) == 4
    assert_close(encoder.norm(hidden_states[-1]), encoder(images, **mask).last_hidden_state)
    tokens = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    if mask:
        ids_keep = noise.argsort(dim=1)[:, :4]
        tokens = torch.stack([tokens[i, ids_keep[i]] for i in range(2)])
    assert_close(hidden_states[0][:, 1:], tokens)
    assert_close(hidden_states[0][:, 0], (encoder.cls_token + encoder.pos_embed[:, :1])[:, 0].expand(2, -1))
    assert_close(encoder.blocks[1](hidden_states[1])[0], hidden_states[2])
    assert model(images, **mask).hidden_states is None


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
def test_attentions_are_the_same_for_sdpa_and_eager(cls):
    sdpa, eager = (tiny_model(cls, attn_implementation=name) for name in ("sdpa", "eager"))
    images = make_images()
    mask = {} if cls is MAEForImageClassification else {"noise": make_noise()}
    length = 5 if mask else 17
    outputs = sdpa(images, output_attentions=True, **mask)
    assert len(outputs.attentions) == 2
    for actual, expected in zip(outputs.attentions, eager(images, output_attentions=True, **mask).attentions):
        assert actual.shape == (2, 4, length, length)
        assert_close(actual.sum(-1), torch.ones(2, 4, length))
        assert_close(actual, expected)
    plain = sdpa(images, **mask)
    assert plain.attentions is None
    assert_close(outputs[0], plain[0])
    assert_close(eager(images, **mask)[0], plain[0])


@pytest.mark.parametrize("attention, calls", [("sdpa", 4), ("eager", 0)])
def test_attention_implementation_is_used(attention, calls, monkeypatch):
    model = tiny_model(attn_implementation=attention)
    counted, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: counted.append(1) or sdpa(*a, **k))
    model(make_images())
    assert len(counted) == calls  # blocks of encoder and decoder
    model.mae(make_images(), output_attentions=True)
    assert len(counted) == calls


def test_attention_probabilities_equal_closed_form():
    model = tiny_model(MAEModel)
    outputs = model(make_images(), output_attentions=True, output_hidden_states=True)
    block = model.blocks[0]
    query, key, _ = (x.view(2, 17, 4, 8) for x in block.attn.qkv(block.norm1(outputs.hidden_states[0])).chunk(3, -1))
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(8)
    assert_close(outputs.attentions[0], scores.exp() / scores.exp().sum(-1, keepdim=True))


def test_output_hidden_states_defaults_to_the_configuration():
    model = tiny_model(MAEModel, output_hidden_states=True)
    assert len(model(make_images()).hidden_states) == 3
    assert model(make_images(), output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_selects_cls_token_or_mean(pooling):
    model = tiny_model(MAEModel, pooling=pooling)
    outputs = model(make_images(), output_hidden_states=True)
    last = outputs.hidden_states[-1]
    if pooling == "cls":
        assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    else:
        assert not any(name.startswith("norm.") for name in model.state_dict())
        assert_close(outputs.last_hidden_state, last)
        assert_close(outputs.pooler_output, last[:, 1:].mean(1))
    pretraining = tiny_model(pooling=pooling)
    assert "mae.norm.weight" in pretraining.state_dict()


def test_no_weight_decay_holds_for_cls_token_and_positions_of_the_classifier_only():
    assert tiny_model().no_weight_decay() == tiny_model(MAEModel).no_weight_decay() == set()
    model = tiny_model(MAEForImageClassification)
    assert model.no_weight_decay() == {"mae.cls_token", "mae.pos_embed"} <= model.state_dict().keys()


# Training machinery


def gradients(model, **arguments):
    model.zero_grad()
    model(make_images(), **arguments).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("cls", [MAEForPreTraining, MAEForImageClassification])
def test_gradient_checkpointing_recomputes_and_keeps_the_gradients(cls):
    model = tiny_model(cls).train()
    arguments = {"noise": make_noise()} if cls is MAEForPreTraining else {"labels": torch.tensor([0, 1])}
    expected = gradients(model, **arguments)
    model.gradient_checkpointing_enable()
    calls = []
    model.mae.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for name, gradient in gradients(model, **arguments).items():
        assert_close(gradient, expected[name], 1e-6)
    assert len(calls) == 2  # forward, and once more in the backward


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "cls, arguments",
    [(MAEModel, {}), (MAEModel, {"noise": make_noise()}), (MAEForPreTraining, {"noise": make_noise()})],
)
def test_compiled_model_equals_the_eager_one(cls, arguments, compiled):
    model = tiny_model(cls)
    expected, actual = model(make_images(), **arguments), compiled(model)(make_images(), **arguments)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert_close(actual[key], value)


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_compiled_gradients_equal_the_eager_ones(masking, compiled):
    model = tiny_model(masking=masking).train()
    expected = gradients(model, noise=make_noise())
    for name, gradient in gradients(compiled(model), noise=make_noise()).items():
        assert_close(gradient, expected[name.removeprefix("_orig_mod.")])


@pytest.mark.parametrize("cls, masked", [(MAEModel, False), (MAEForPreTraining, True)])
def test_exported_model_takes_other_batch_sizes(cls, masked):
    model = tiny_model(cls)
    batch = torch.export.Dim("batch", min=2)
    inputs = {"pixel_values": make_images(batch_size=3)}
    if masked:
        inputs["noise"] = make_noise(3)
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    other = {"pixel_values": make_images(batch_size=5)}
    if masked:
        other["noise"] = make_noise(5)
    expected, actual = model(**other), program.module()(**other)
    for key, value in expected.items():
        assert_close(actual[key], value)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_has_a_float32_loss(dtype, norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss)
    images, noise = make_images(), make_noise()
    expected = model(images, noise=noise).loss
    model.to(dtype)
    outputs = model(images.to(dtype), noise=noise)
    assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=0.02)
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.reconstruct(images.to(dtype), noise=noise).pasted.dtype == dtype


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_of_half_precision_is_computed_in_float32(norm_pix_loss):
    model = tiny_model(norm_pix_loss=norm_pix_loss)
    patches, predictions = torch.randn(2, 2, 12, 192).bfloat16()
    assert model.loss(patches, predictions) == model.loss(patches.float(), predictions.float())


def test_bfloat16_autocast_keeps_the_mask_and_a_float32_loss():
    model = tiny_model()
    images, noise = make_images(), make_noise()
    expected = model(images, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, noise=noise)
    assert outputs.loss.dtype == torch.float32 and outputs.logits.dtype == torch.bfloat16
    assert torch.equal(outputs.mask, expected.mask)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)


def test_half_precision_classifier_has_a_float32_loss():
    model = tiny_model(MAEForImageClassification, num_labels=5)
    labels = torch.tensor([1, 4])
    expected = model(make_images(), labels=labels).loss.item()
    loss = model.bfloat16()(make_images().bfloat16(), labels=labels).loss
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.05)


def test_return_dict_false_returns_tuples():
    model = tiny_model(return_dict=True)
    images, noise = make_images(), make_noise()
    outputs = model(images, noise=noise)
    tuple_ = model(images, noise=noise, return_dict=False)
    assert isinstance(tuple_, tuple) and len(tuple_) == 4
    for value, key in zip(tuple_, ("loss", "logits", "mask", "ids_restore")):
        assert torch.equal(value, outputs[key])
    last_hidden_state, pooler_output = model.mae(images, return_dict=False)
    assert last_hidden_state.shape == (2, 17, 32) and pooler_output.shape == (2, 32)
    by_configuration = tiny_model(return_dict=False)(images, noise=noise)
    assert isinstance(by_configuration, tuple) and torch.equal(by_configuration[1], outputs.logits)
    loss, logits = tiny_model(MAEForImageClassification)(images, labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.ndim == 0 and logits.shape == (2, 2)


def test_trainer_evaluates_without_labels(tmp_path):
    model = tiny_model()
    nn.init.zeros_(model.decoder.pred.weight)
    nn.init.zeros_(model.decoder.pred.bias)
    images = make_images(batch_size=6).sign() * 3  # predicting zero costs 9 everywhere
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=4, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments, eval_dataset=[{"pixel_values": image} for image in images])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(9)


def test_learns_a_toy_task():
    """Gradients between two random colours, which the visible quarter of an image determines."""
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=256,
        decoder_hidden_size=32,
        decoder_intermediate_size=128,
    )
    model = MAEForPreTraining(config).train()
    ramp = torch.linspace(0, 1, 32)

    def batch(size):
        start, end = torch.randn(2, size, 3, 1, 1)
        vertical = torch.rand(size, 1, 1, 1) < 0.5
        weight = torch.where(vertical, ramp[:, None], ramp[None, :])
        return start + (end - start) * weight

    mean_prediction = ((1 - ramp) ** 2 + ramp**2).mean().item()  # variance of a pixel, 0.68
    assert batch(4000).square().mean().item() == pytest.approx(mean_prediction, rel=0.05)
    assert model.eval()(batch(64)).loss > 0.9 * mean_prediction
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=300)
    for _ in range(300):
        model(batch(64)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        assert model.eval()(batch(512)).loss < 0.2 * mean_prediction


# Classification


@pytest.mark.parametrize(
    "fields, labels, closed_form",
    [
        ({"num_labels": 5}, torch.tensor([1, 4]), lambda x, y: -x.log_softmax(1)[range(2), y].mean()),
        (
            {"num_labels": 3},
            torch.tensor([[0.2, 0.3, 0.5], [0, 0.9, 0.1]]),
            lambda x, y: -(x.log_softmax(1) * y).sum(1).mean(),
        ),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1, 0, 1], [0, 0, 1]]),
            lambda x, y: -torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid()).log().mean(),
        ),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0]), lambda x, y: ((x[:, 0] - y) ** 2).mean()),
        ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]]), lambda x, y: ((x - y) ** 2).mean()),
        (
            {"num_labels": 3, "problem_type": "regression"},
            torch.tensor([[1.0, 0, 1], [0, -3, 1]]),
            lambda x, y: ((x - y) ** 2).mean(),
        ),
    ],
    ids=["classes", "soft", "multi-label", "regression", "regression-column", "regression-3"],
)
def test_classification_loss_equals_closed_form(fields, labels, closed_form):
    outputs = tiny_model(MAEForImageClassification, **fields)(make_images(), labels=labels)
    assert_close(outputs.loss, closed_form(outputs.logits, labels))


def test_one_hot_labels_equal_classes():
    model = tiny_model(MAEForImageClassification, num_labels=5)
    classes = torch.tensor([3, 0])
    assert_close(
        model(make_images(), labels=F.one_hot(classes, 5).float()).loss, model(make_images(), labels=classes).loss
    )


@pytest.mark.parametrize(
    "fields, labels, message",
    [
        ({}, torch.tensor([[1], [4]]), r"int64.*\(2,\).*\(2, 1\)"),
        ({}, torch.tensor([1, 2, 3]), r"int64.*\(2,\).*\(3,\)"),
        ({}, torch.rand(2, 4), r"float32.*\(2, 5\).*\(2, 4\)"),
        ({}, torch.tensor([1.0, 2.0]), r"float32.*\(2, 5\).*\(2,\)"),
        ({}, torch.tensor([[1, 0, 0, 0, 1]] * 2), r"multi_label_classification"),
        ({"problem_type": "multi_label_classification"}, torch.tensor([1, 2]), r"\(2, 5\).*\(2,\)"),
        ({"problem_type": "regression"}, torch.rand(2), r"\(2, 5\).*\(2,\)"),
    ],
)
def test_labels_of_the_wrong_shape_are_refused(fields, labels, message):
    model = tiny_model(MAEForImageClassification, num_labels=5, **fields)
    with pytest.raises(ValueError, match=message):
        model(make_images(), labels=labels)


def test_classifier_without_labels_returns_the_pooled_output():
    model = tiny_model(MAEForImageClassification, num_labels=0)
    assert torch.equal(model(make_images()).logits, model.mae(make_images()).pooler_output)


# Errors


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining, MAEForImageClassification])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((3, 32, 32), r"pixel_values.*\(3, 32, 32\)"),
        ((2, 1, 32, 32), "pixel_values.* 1 .* 3"),
        ((2, 3, 30, 32), "30 x 32 .* 8 x 8"),
        ((2, 3, 32, 30), "32 x 30 .* 8 x 8"),
        ((2, 3, 64, 32), "64 x 32 .* 32 x 32.*interpolate_pos_encoding=True"),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(cls, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(cls)(torch.randn(shape))


def test_check_pixel_values_returns_the_grid_of_any_size_that_patches_divide():
    config = tiny_config(image_size=(24, 40), patch_size=(8, 4))
    assert check_pixel_values(torch.empty(2, 3, 24, 40), config) == (3, 10)
    assert check_pixel_values(torch.empty(2, 3, 8, 60), config, any_size=True) == (1, 15)
    with pytest.raises(ValueError, match="8 x 60 .* 24 x 40"):
        check_pixel_values(torch.empty(2, 3, 8, 60), config)


@pytest.mark.parametrize("cls", [MAEModel, MAEForPreTraining])
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise": torch.rand(2, 15)}, r"noise.*\(2, 16\).*\(2, 15\)"),
        ({"noise": torch.rand(16)}, r"noise.*\(2, 16\).*\(16,\)"),
        ({"bool_masked_pos": torch.ones(1, 16)}, r"bool_masked_pos.*\(2, 16\).*\(1, 16\)"),
        ({"bool_masked_pos": torch.eye(16)[[0, 1]].cumsum(1)}, r"bool_masked_pos.*\[16, 15\]"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 .*\[0, 1\)"),
        ({"mask_ratio": -0.1}, r"mask_ratio=-0.1 .*\[0, 1\)"),
    ],
)
def test_invalid_mask_arguments_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(cls)(make_images(), **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask_ratio": 0}, "16 of 16.*mask_ratio"),
        ({"mask_ratio": 0.97}, " 0 of 16.*mask_ratio"),
        ({"bool_masked_pos": torch.zeros(2, 16)}, "16 of 16.*mask_ratio"),
        ({"bool_masked_pos": torch.ones(2, 16)}, " 0 of 16.*mask_ratio"),
    ],
)
def test_pretraining_mask_without_visible_or_removed_patches_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(make_images(), **arguments)


@pytest.mark.parametrize(
    "fields, message", [({"mask_ratio": 0.0}, "16 of 16.*mask_ratio"), ({"mask_ratio": 0.97}, " 0 of 16.*mask_ratio")]
)
def test_pretraining_model_with_such_a_mask_ratio_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MAEForPreTraining(tiny_config(**fields))
    MAEModel(tiny_config(**fields))  # the encoder allows it


def test_resize_to_a_size_that_does_not_fit_changes_nothing():
    model = tiny_model()
    with pytest.raises(Exception, match="image_size=33.*patch_size=8"):
        model.resize_positions(33)
    assert model.config.image_size == 32 and model.mae.pos_embed.shape[1] == 17


# A batch norm before the classifier, as in the official linear probe


def test_head_batch_norm_normalises_the_pooled_output_without_scale_and_shift():
    model = tiny_model(MAEForImageClassification, head_batch_norm=True, num_labels=5).train()
    assert not list(model.head_norm.parameters())
    images = make_images(batch_size=16)
    logits = model(images).logits
    features = model.mae(images).pooler_output
    centred = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(logits, centred @ model.head.weight.T + model.head.bias)
    torch.testing.assert_close(model.head_norm.running_mean, 0.1 * features.mean(0))


def test_head_batch_norm_statistics_survive_saving(tmp_path):
    model = tiny_model(MAEForImageClassification, head_batch_norm=True, num_labels=5)
    images = make_images(batch_size=16)
    model.train()(images)
    model.eval().save_pretrained(tmp_path)
    loaded, info = MAEForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(images).logits, model(images).logits)
    _, info = MAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_head_batch_norm_that_the_checkpoint_lacks_is_initialised(tmp_path):
    tiny_model(MAEForImageClassification, num_labels=5).save_pretrained(tmp_path)
    loaded = MAEForImageClassification.from_pretrained(tmp_path, head_batch_norm=True)
    assert not loaded.head_norm.running_mean.any() and (loaded.head_norm.running_var == 1).all()
    assert loaded.head_norm.num_batches_tracked == 0


def test_head_of_a_linear_probe_has_the_official_standard_deviation():
    config = MAEConfig.from_size("base", num_hidden_layers=1, num_labels=1000, head_batch_norm=True)
    assert MAEForImageClassification(config).head.weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_encoder_outputs_give_the_same_result_as_images():
    model = tiny_model(MAEForImageClassification, num_labels=5, pooling="mean").eval()
    images = make_images(32, 32)
    labels = torch.tensor([1, 4])
    whole, parts = model(images, labels), model(encoder_outputs=model.mae(images), labels=labels)
    assert torch.equal(whole.logits, parts.logits) and torch.equal(whole.loss, parts.loss)
    for arguments in ({}, {"pixel_values": images, "encoder_outputs": model.mae(images)}):
        with pytest.raises(ValueError, match="pixel_values.*encoder_outputs"):
            model(**arguments)


def test_set_drop_path_rate_changes_blocks_and_configuration():
    model = tiny_model(MAEModel, num_hidden_layers=5, drop_path_rate=0.4)
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    model.set_drop_path_rate(0.2)
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert model.config.drop_path_rate == 0.2
