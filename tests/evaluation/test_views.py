"""Pictures of eight views."""

import numpy as np
import pytest
from PIL import Image

from configuration_mae import MAEConfig
from mae.data.bands import Bands
from mae.data.transforms import PreTrainingTransform
from mae.evaluation import views
from mae.utils.errors import UserError
from tests.support.samples import BrokenSource, encode, picture


def source_of(image):
    source = BrokenSource([b"no image", image])
    source.starts = [0]
    return source


@pytest.mark.parametrize("size, mode", [((400, 20), "RGB"), ((20, 400), "RGB"), ((1, 1), "RGB"), ((40, 24), "L")])
def test_views_are_drawn_for_images_of_any_shape(size, mode, tmp_path):
    config = MAEConfig(image_size=32, patch_size=8, num_channels=len(Image.new(mode, (1, 1)).getbands()))
    image = encode(picture(mode, size), "PNG")
    views.save_views(source_of(image), PreTrainingTransform(config), Bands(config.num_channels), 1, tmp_path / "a.png")
    drawn = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    assert min(drawn.shape[:2]) > 300 and (size == (1, 1) or len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50)


def test_views_are_those_of_eight_epochs(tmp_path, monkeypatch):
    """The samples that are drawn have the keys that the place has in eight epochs, so that no two are alike."""
    keys, transform = [], PreTrainingTransform(MAEConfig(image_size=32, patch_size=8))

    def observed(sample):
        keys.append(sample.seed)
        return transform(sample)

    image = encode(picture(), "PNG")
    for _ in range(2):
        views.save_views(source_of(image), observed, Bands(3), 5, tmp_path / "a.png")
    assert len(set(keys[:8])) == 8 and keys[:8] == keys[8:]


def test_five_channels_are_drawn_and_unreadable_images_are_an_error(tmp_path):
    config = MAEConfig(image_size=32, patch_size=8, num_channels=5, image_mean=[0.5] * 5, image_std=[0.5] * 5)
    np.save(tmp_path / "0.npy", np.random.default_rng(0).integers(0, 3000, (40, 50, 5)).astype(np.uint16))
    data = (tmp_path / "0.npy").read_bytes()
    views.save_views(source_of(data), PreTrainingTransform(config), Bands(5), 1, tmp_path / "a.png")
    # Stretched, so that values of 12 bits are not black.
    assert np.array(Image.open(tmp_path / "a.png").convert("L"))[50:200, 50:200].std() > 40
    with pytest.raises(UserError, match="--preview_augmentation: none of the first images .*no image"):
        views.save_views(BrokenSource([b"no", b"no"]), PreTrainingTransform(config), Bands(3), 1, tmp_path / "a.png")
