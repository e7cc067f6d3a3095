"""examples/segment.py: masks and overlays of folders and of one large file, as a user makes them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mae import MAEForSemanticSegmentation
from tests.support.data import ROOT
from tests.support.masks import draw_discs, write_folders
from tests.support.models import tiny_model
from tests.support.runs import start


SCRIPT = ROOT / "examples" / "segment.py"
NAMES = {0: "background", 1: "disc", 2: "square"}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    tiny_model(MAEForSemanticSegmentation, num_labels=3, id2label=NAMES).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    return write_folders(tmp_path, 4, height=50, width=90)[0]


def segment(segmenter, images, output, *more, code=0):
    done = start("--model", segmenter, "--images", images, "--output", output, *more, script=SCRIPT)
    assert done.returncode == code, done.stderr
    return done


def test_each_image_gets_a_mask_with_the_model_s_classes_and_an_overlay(segmenter, images, tmp_path):
    output = tmp_path / "out"
    segment(segmenter, images, output, "--overlap", 0.5)
    model = MAEForSemanticSegmentation.from_pretrained(segmenter)
    for name in ("000", "deep/001", "deep/003"):
        mask = Image.open(output / f"{name}.png")
        pixels = torch.from_numpy(np.asarray(Image.open(images / f"{name}.png")).copy()).permute(2, 0, 1)
        expected = model.segment(pixels, overlap=0.5).numpy()
        assert mask.mode == "P" and (np.asarray(mask) == expected).mean() > 0.999
        overlay = np.asarray(Image.open(output / f"{name}_overlay.png"))
        original = np.asarray(Image.open(images / f"{name}.png"))
        changed = (overlay != original).any(axis=2)
        assert np.array_equal(changed, changed & (np.asarray(mask) != 0))  # the background stays
    with open(output / "classes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["class"] for line in table] == list(NAMES.values()) and table[0]["color"] == "#000000"
    assert len(list(output.rglob("*.png"))) == 8


def test_same_command_makes_only_the_masks_that_are_missing(segmenter, images, tmp_path):
    output = tmp_path / "out"
    segment(segmenter, images, output, "--no_overlay")
    (output / "000.png").unlink()
    kept = (output / "deep" / "001.png").stat().st_mtime_ns
    done = segment(segmenter, images, output, "--no_overlay")
    assert "3 masks are in" in done.stdout and "1 masks are in" in done.stdout
    assert (output / "000.png").exists() and (output / "deep" / "001.png").stat().st_mtime_ns == kept
    segment(segmenter, images, output, "--no_overlay", "--overwrite")
    assert (output / "deep" / "001.png").stat().st_mtime_ns > kept


def test_colours_of_a_file_are_those_of_the_mask(segmenter, images, tmp_path):
    colours = {str(number): {"name": name, "color": [number, 50, 60]} for number, name in NAMES.items()}
    (tmp_path / "names.json").write_text(json.dumps(colours))
    segment(segmenter, images / "000.png", tmp_path / "out", "--id2label", tmp_path / "names.json")
    mask = Image.open(tmp_path / "out" / "000.png")
    assert np.array_equal(np.asarray(mask.convert("RGB"))[..., 0], np.asarray(mask))


def test_unreadable_image_is_named_and_the_others_are_segmented(segmenter, images, tmp_path):
    (images / "000.png").write_bytes(b"nothing")
    done = segment(segmenter, images, tmp_path / "out")
    assert "000.png" in done.stderr and (tmp_path / "out" / "deep" / "001.png").exists()
    done = segment(segmenter, images / "000.png", tmp_path / "other", code=1)
    assert "None of the 1 images can be read" in done.stderr


def test_file_beyond_pillow_s_limit_is_segmented(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(draw_discs(0, 60, 80)[0]).save(tmp_path / "large.png")
    segment(segmenter, tmp_path / "large.png", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "large.png").size == (80, 60)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "images"], "is in the folder of the images"),
        (["--output", "images/masks"], "is in the folder of the images"),
        (["--images", "nowhere"], "--images nowhere does not exist"),
        (["--overlap", 1], "--overlap 1.0 must be in"),
        (["--id2label", "names.json"], "has no color for background, disc, square"),
    ],
)
def test_mistake_is_one_line(segmenter, images, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"0": "background"}))
    done = segment(segmenter, "images", "out", *more, code=2)
    assert message in done.stderr.splitlines()[-1]


def test_model_without_segmentation_head_is_refused(small_checkpoint, images, tmp_path):
    done = segment(small_checkpoint, images, tmp_path / "out", code=2)
    assert "has no segmentation head: it is a MAEForPreTraining" in done.stderr
