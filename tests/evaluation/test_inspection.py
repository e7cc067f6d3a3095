"""What a model makes of single images, against the model's own outputs and numpy."""

import numpy as np
import pytest
import torch

from mae.data.normalization import normalize_images
from mae.evaluation.inspection import (
    draw_mask,
    fit_to_patches,
    nearest,
    patch_features,
    principal_colours,
    reconstruct,
    to_picture,
)
from modeling_mae import MAEModel
from tests.support.models import tiny_config, tiny_model


def image_of(height, width, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (32, 32)), ((64, 16), (64, 16)), ((100, 300), (16, 56)), ((1, 900), (8, 960))]
)
def test_images_keep_their_shape_and_get_the_pixels_of_the_model(size, expected):
    fitted = fit_to_patches(image_of(*size), tiny_config())
    assert tuple(fitted.shape[1:]) == expected and fitted.dtype == torch.uint8
    grid = fit_to_patches(image_of(*size), tiny_config(masking="grid"))
    assert not any(side % 16 for side in grid.shape[1:])


@pytest.mark.parametrize("paste", [True, False])
def test_reconstruction_is_the_model_s(paste):
    model, image = tiny_model(norm_pix_loss=True), image_of(48, 24)
    found, again, other = (
        reconstruct(model, image, draw_mask(model.config, (48, 24), 0.5, key), paste)
        for key in ((3, 4), (3, 4), (3, 5))
    )
    assert np.array_equal(found.masked, again.masked) and not np.array_equal(found.masked, other.masked)
    assert found.masked.shape == found.reconstruction.shape == (48, 24, 3)
    # The mask as it is drawn, patch by patch.
    blocks = found.masked.reshape(6, 8, 3, 8, 3).swapaxes(1, 2).reshape(18, -1)
    removed = (blocks == 0.5).all(axis=1)
    assert removed.sum() == 9
    pixels = image.permute(1, 2, 0).numpy() / 255
    originals = pixels.reshape(6, 8, 3, 8, 3).swapaxes(1, 2).reshape(18, -1)
    assert blocks[~removed] == pytest.approx(originals[~removed], abs=1e-6)
    mask = torch.from_numpy(removed)[None]
    outputs = model.reconstruct(
        normalize_images(image[None], model.config), bool_masked_pos=mask, interpolate_pos_encoding=True
    )
    expected = (outputs.pasted if paste else outputs.reconstruction)[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    expected = (expected * std + mean).clamp(0, 1).permute(1, 2, 0)
    assert found.reconstruction == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.error == pytest.approx(np.abs(found.reconstruction - pixels).mean(axis=2), abs=1e-5)
    assert (found.error.reshape(6, 8, 3, 8).swapaxes(1, 2).reshape(18, -1)[~removed].max() < 1e-5) == paste


def test_larger_mask_removes_what_a_smaller_one_removes():
    small, large = (draw_mask(tiny_config(), (48, 48), ratio, (0,)) for ratio in (0.5, 0.75))
    assert (large | ~small).all() and (small.sum(), large.sum()) == (18, 27)


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_mask_is_of_the_model_s_kind(masking):
    """The mask that the model draws from the same noise, and for grid all but the first of 2 x 2 patches."""
    removed = draw_mask(tiny_config(masking=masking), (32, 64), 0.75, (1, 2))
    assert removed.shape == (4, 8) and removed.sum() == 24
    if masking == "grid":
        assert not removed[::2, ::2].any()


def test_mask_that_keeps_nothing_is_refused():
    assert draw_mask(tiny_config(), (32, 32), 0.01, (0,)).sum() == 1  # rounded as in the official code
    with pytest.raises(ValueError, match="99%"):
        draw_mask(tiny_config(), (32, 32), 0.99, (0,))


def test_attention_is_the_share_of_each_patch_and_tokens_those_of_the_encoder():
    encoder, image = tiny_model(MAEModel), image_of(16, 48)
    found = patch_features(encoder, image)
    assert found.attention.shape == (2, 6) and found.tokens.shape == (2, 6, 32)
    assert found.attention.sum().item() == pytest.approx(1, abs=1e-6)
    encoder.set_attn_implementation("eager")
    pixel_values = normalize_images(image[None], encoder.config)
    outputs = encoder(pixel_values, interpolate_pos_encoding=True, output_attentions=True)
    heads = outputs.attentions[-1][0, :, 0].mean(dim=0).detach()
    assert found.attention.flatten().numpy() == pytest.approx((heads[1:] / (1 - heads[0])).numpy(), abs=1e-6)
    assert found.tokens.flatten(0, 1).numpy() == pytest.approx(
        outputs.last_hidden_state[0, 1:].detach().numpy(), abs=1e-5
    )


def test_colours_are_the_principal_components_of_all_images():
    generator = torch.Generator().manual_seed(0)
    tokens = [
        torch.randn(rows, 4, 7, generator=generator) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1]) for rows in (30, 20)
    ]
    colours = principal_colours(tokens)
    assert [colour.shape for colour in colours] == [(30, 4, 3), (20, 4, 3)]
    everything = torch.cat([each.flatten(0, 1) for each in tokens]).double().numpy()
    _, vectors = np.linalg.eigh(np.cov(everything.T))
    flat = np.concatenate([colour.reshape(-1, 3) for colour in colours])
    for number in range(3):
        values = (everything - everything.mean(0)) @ vectors[:, -1 - number]
        inside = (flat[:, number] > 0) & (flat[:, number] < 1)
        assert inside.mean() > 0.95
        assert abs(np.corrcoef(values[inside], flat[inside, number])[0, 1]) == pytest.approx(1, abs=1e-9)
    assert all(np.array_equal(a, b) for a, b in zip(colours, principal_colours(tokens)))


def test_colours_of_fewer_directions_than_three():
    (colours,) = principal_colours([torch.ones(1, 2, 5)])
    assert colours.shape == (1, 2, 3) and np.isfinite(colours).all()


def test_nearest_images_are_those_of_a_loop_without_the_image_itself():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) + 10
    numbers, cosines = nearest(features, [2, 7], 3)
    centred = (features - features.mean(0)).numpy()
    for row, query in enumerate([2, 7]):
        values = {
            number: centred[number] @ centred[query] / np.linalg.norm(centred[number]) / np.linalg.norm(centred[query])
            for number in range(9) if number != query
        }  # fmt: skip
        expected = sorted(values, key=values.get, reverse=True)[:3]
        assert numbers[row].tolist() == expected
        assert cosines[row] == pytest.approx([values[number] for number in expected], abs=1e-5)
    assert nearest(features[:2], [0], 3)[0].tolist() == [[1]]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_of_any_number_of_channels_are_rgb(channels):
    pixels = torch.rand(channels, 4, 6)
    picture = to_picture(pixels)
    assert picture.shape == (4, 6, 3) and np.array_equal(picture[..., 0], pixels[0].numpy())
