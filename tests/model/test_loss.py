"""Loss and predictions of pre-training, and reconstructed images."""

import numpy as np
import pytest
import torch

from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEModel,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_model


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
