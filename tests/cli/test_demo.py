"""The models, images and pictures of the demo page, without the page."""

import numpy as np
import pytest
import torch
from PIL import Image

from mae.cli.demo import MASKINGS, Demo, OpenImage
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining, MAEModel
from tests.support.models import tiny_model


@pytest.fixture
def demo(tmp_path):
    for number in range(3):
        tiny_model(MAEForPreTraining, norm_pix_loss=number == 1).save_pretrained(tmp_path / f"model{number}")
    return Demo([str(tmp_path / f"model{number}") for number in range(3)], torch.device("cpu"))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_image_keeps_its_shape_and_fits_every_mask(demo, photo):
    image = demo.open(demo.names[0], photo)
    assert image.pixels.shape == (3, 16, 48) and image.grid == (2, 6) and image.scale == 8
    assert image.picture.shape == (128, 384, 3) and image.picture.dtype == np.uint8
    assert np.array_equal(image.picture[::8, ::8], image.pixels.permute(1, 2, 0).numpy().round())
    for masking in MASKINGS:
        found = demo.show(demo.names[0], image, masking, 0.75, 0)
        assert "9 of 12 patches" in found.note
        assert {picture.shape for picture in (found.masked, found.reconstruction, found.error)} == {(128, 384, 3)}
        removed = (found.masked == 128).all(axis=2).reshape(2, 64, 6, 64).all(axis=(1, 3))
        assert removed.sum() == 9 and (masking != "grid" or not removed[0, ::2].any())
    assert demo.load(demo.names[0]).config.masking == "random"  # the model is as it was


def test_painted_patches_are_those_under_the_paint():
    image = OpenImage(torch.zeros(3, 16, 32), (8, 8))
    paint = np.zeros((64, 128), dtype=np.uint8)
    paint[3:30, 5:30] = 255  # most of the first patch, at four times the size
    paint[40:43, 100:110] = 255  # 3 % of the last one
    assert image.painted_patches(paint).tolist() == [[True, False, False, False], [False] * 4]
    assert not image.painted_patches(None).any()


def test_pictures_of_a_painted_mask_are_the_model_s(demo, photo):
    name = demo.names[0]
    image = demo.open(name, photo)
    paint = np.zeros(image.picture.shape[:2], dtype=np.uint8)
    paint[:64, :128] = 255  # two patches
    found = demo.show(name, image, "painted", 0.75, 0, paint)
    assert "2 of 12 patches" in found.note and "normalised" not in found.note
    grey = (found.masked == 128).all(axis=2)
    assert grey[:64, :128].all() and not grey[64:].any()
    assert np.array_equal(found.reconstruction[64:], image.picture[64:])
    assert not found.error[64:].max(axis=2).astype(int).max() > 4  # the darkest colour of the map
    difference = np.abs(found.reconstruction[:64, :128].astype(int) - image.picture[:64, :128]).mean()
    assert float(found.note.split("error is ")[1].split(" of")[0]) == pytest.approx(difference, abs=0.6)


@pytest.mark.parametrize("covered", [0, 1])
def test_paint_that_leaves_nothing_to_do_is_refused(covered, demo, photo):
    image = demo.open(demo.names[0], photo)
    paint = np.full(image.picture.shape[:2], 255 * covered)
    with pytest.raises(UserError, match="Paint some"):
        demo.show(demo.names[0], image, "painted", 0.75, 0, paint)


def test_normalised_patches_are_mentioned(demo, photo):
    name = demo.names[1]
    assert "normalised patches" in demo.show(name, demo.open(name, photo), "random", 0.5, 0).note


def test_two_models_stay_in_memory(demo):
    loaded = [demo.load(name) for name in demo.names]
    assert demo.load(demo.names[2]) is loaded[2] and demo.load(demo.names[0]) is not loaded[0]


def test_visitor_cannot_name_files_of_the_machine(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(MAEForPreTraining).save_pretrained("secret/model")
    for name in ("secret/model", str(tmp_path / "secret" / "model"), "../x", "a"):
        assert "owner/name" in demo.problem_of(name)


def test_broken_file_and_model_without_decoder_are_one_sentence(demo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    with pytest.raises(UserError, match="cannot be read as an image with 3 channels"):
        demo.open(demo.names[0], str(tmp_path / "broken.png"))
    tiny_model(MAEModel).save_pretrained(tmp_path / "encoder")
    assert "no decoder" in Demo([str(tmp_path / "encoder")], torch.device("cpu")).problem_of(str(tmp_path / "encoder"))
