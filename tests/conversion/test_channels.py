"""Weights for other numbers of channels."""

import pytest
import torch

from mae.conversion.loading import load_checkpoint
from mae.conversion.saving import save_checkpoint
from mae.utils.errors import UserError
from tests.support.checkpoints import assert_close, assert_same_state, images_and_noise, make_model_of_kind


def test_other_channels_need_a_choice(tmp_path):
    make_model_of_kind("pretraining").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="3 channels, not 1: .*inflate_channels.* mean or repeat"):
        load_checkpoint(tmp_path, num_channels=1)
    with pytest.raises(UserError, match="not 'max'"):
        load_checkpoint(tmp_path, num_channels=1, inflate_channels="max")
    with pytest.raises(UserError, match="nothing to do"):
        load_checkpoint(tmp_path, inflate_channels="mean")
    with pytest.raises(UserError, match="3 channels, not 1"):
        load_checkpoint(tmp_path, num_channels=1, patch_size=4)
    model, report = load_checkpoint(tmp_path, num_channels=1, patch_size=4, inflate_channels="mean")
    assert model.mae.patch_embed.proj.weight.shape == (24, 1, 4, 4) and not report.new


def test_inflating_to_three_channels_keeps_images_unnormalised(tmp_path):
    """Three channels have ImageNet's mean and std by default; these must not."""
    make_model_of_kind("pretraining", num_channels=1, image_mean=None, image_std=None).save_pretrained(tmp_path)
    model, report = load_checkpoint(tmp_path, num_channels=3, inflate_channels="mean")
    assert (model.config.image_mean, model.config.image_std) == ([0.0] * 3, [1.0] * 3)
    assert "image_mean=[0.0, 0.0, 0.0]" in str(report)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("layout", ["mae", "vit_mae", "timm", "official"])
def test_channels_without_normalisation_survive_saving(layout, channels, tmp_path):
    model = make_model_of_kind("encoder", num_channels=channels, image_mean=None, image_std=None)
    save_checkpoint(model, tmp_path, layout)
    again, _ = load_checkpoint(tmp_path / "checkpoint.pth" if layout == "official" else tmp_path)
    assert_same_state(again, model)
    neutral = ([0.0] * channels, [1.0] * channels) if layout == "timm" else (None, None)
    assert (again.config.image_mean, again.config.image_std) == neutral


def test_mean_of_channels_gives_the_same_for_grey_images(tmp_path):
    """Each new channel is predicted as the mean of the old ones."""
    model = make_model_of_kind("pretraining", norm_pix_loss=False)
    model.save_pretrained(tmp_path)
    images, noise = images_and_noise(channels=1)
    expected = model(images.expand(-1, 3, -1, -1), noise=noise)
    for channels in (1, 2, 5):
        other, report = load_checkpoint(tmp_path, num_channels=channels, inflate_channels="mean")
        assert f"3 channels inflated to {channels} (mean)" in str(report)
        outputs = other(images.expand(-1, channels, -1, -1), noise=noise)
        prediction = expected.logits.unflatten(2, (64, 3)).mean(3, keepdim=True).expand(-1, -1, -1, channels)
        assert_close(outputs.logits.unflatten(2, (64, channels)), prediction)
        assert_close(torch.tensor(other.config.image_mean), torch.full((channels,), 0.2))
        assert_close(torch.tensor(other.config.image_std), torch.full((channels,), 0.5))


def test_repeated_channels_give_the_same_for_repeated_images(tmp_path):
    """Six channels, an image and itself; their order is kept."""
    model = make_model_of_kind("pretraining")
    model.save_pretrained(tmp_path)
    images, noise = images_and_noise()
    expected = model(images, noise=noise)
    other, _ = load_checkpoint(tmp_path, num_channels=6, inflate_channels="repeat")
    outputs = other(torch.cat([images, images], dim=1), noise=noise)
    prediction = expected.logits.unflatten(2, (64, 3))
    assert_close(outputs.logits.unflatten(2, (64, 6)), torch.cat([prediction, prediction], dim=3))
    assert_close(torch.tensor(other.config.image_mean), torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
    four, _ = load_checkpoint(tmp_path, num_channels=4, inflate_channels="repeat", image_mean=0.5, image_std=0.5)
    weight, old = four.mae.patch_embed.proj.weight, model.mae.patch_embed.proj.weight
    assert_close(weight, torch.cat([old, old[:, :1]], dim=1) * 3 / 4)
    assert four.config.image_mean == [0.5] * 4
