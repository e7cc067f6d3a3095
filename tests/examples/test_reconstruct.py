"""examples/reconstruct.py as a user starts it: each kind of picture, other checkpoints, and mistakes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from configuration_mae import MAEConfig
from modeling_mae import MAEForImageClassification, MAEForPreTraining
from tests.support.classification import SIZES
from tests.support.data import ROOT
from tests.support.runs import run_here


SCRIPT = ROOT / "examples" / "reconstruct.py"


def draw(tmp_path, *arguments):
    return run_here(SCRIPT, *arguments, "--output", tmp_path / "new" / "picture.png")


def picture(tmp_path):
    return np.array(Image.open(tmp_path / "new" / "picture.png").convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--mask_ratio", 0.5, 0.9, "--num_draws", 2, "--no_paste"],
        ["--masking", "block", "--num_images", 1],
        ["--masking", "grid"],
        ["--pictures", "features"],
        ["--pictures", "neighbours", "--max_images", 9],
    ],
    ids=str,
)
def test_each_kind_of_picture_is_drawn(flags, small_checkpoint, image_folder, tmp_path):
    done = draw(tmp_path, "--model", small_checkpoint, "--images", image_folder, "--num_images", 3, *flags)
    assert done.returncode == 0, done.stderr
    assert "picture.png is written." in done.stdout
    drawn = picture(tmp_path)
    assert min(drawn.shape[:2]) > 150 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_seed_decides_and_without_images_the_emoji_are_drawn(small_checkpoint, tmp_path):
    pictures = []
    for seed in (0, 0, 1):
        assert draw(tmp_path, "--model", small_checkpoint, "--num_images", 2, "--seed", seed).returncode == 0
        pictures.append(picture(tmp_path))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_files_of_other_shapes_and_a_checkpoint_of_another_code(emoji_bytes, tmp_path):
    """ViTMAE's files, and images of three shapes; of a broken one the others are drawn."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    names += tuple(name for name in SIZES if name.startswith("decoder_"))
    ViTMAEForPreTraining(ViTMAEConfig(**{name: SIZES[name] for name in names})).save_pretrained(tmp_path / "vit_mae")
    files = []
    for number, size in enumerate([(90, 30), (30, 90), (50, 50)]):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, (200, 40 * number, 30)).save(files[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = draw(tmp_path, "--model", tmp_path / "vit_mae", "--images", *files, tmp_path / "broken.png")
    assert done.returncode == 0, done.stderr
    drawn = picture(tmp_path).reshape(-1, 3)
    assert all((np.abs(drawn - (200, 40 * number, 30)).max(axis=1) < 4).sum() > 500 for number in range(3))


def test_five_channels(tmp_path):
    config = MAEConfig(**SIZES, num_channels=5, image_mean=[0.5] * 5, image_std=[0.2] * 5)
    MAEForPreTraining(config).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(3):
        np.save(
            tmp_path / "images" / f"{number}.npy", np.random.default_rng(number).random((40, 60, 5), dtype=np.float32)
        )
    for kind in ("reconstruction", "features", "neighbours"):
        done = draw(tmp_path, "--model", tmp_path / "model", "--images", tmp_path / "images", "--pictures", kind)
        assert done.returncode == 0, done.stderr


def test_mistakes_are_one_line(small_checkpoint, tmp_path):
    torch.manual_seed(0)
    MAEForImageClassification(MAEConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path / "classifier")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    model = ["--model", small_checkpoint]
    for flags, code, message in [
        (
            ["--model", tmp_path / "classifier"],
            2,
            "has no decoder, and cannot reconstruct images. .*--pictures features",
        ),
        ([*model, "--mask_ratio", 1.5], 2, "--mask_ratio 1.5 must be between 0 and 1"),
        ([*model, "--mask_ratio", 0.99], 2, "--mask_ratio 0.99: .*keeps 0 of 16"),
        ([*model, "--masking", "grid", "--mask_ratio", 0.5], 2, "--masking grid keeps 1 patch of 4"),
        ([*model, "--images", tmp_path / "empty"], 2, "--images .*empty holds no image files"),
        ([*model, "--images", tmp_path / "text.png", tmp_path / "nothing.png"], 2, "nothing.png does not exist"),
        ([*model, "--images", tmp_path / "text.png"], 1, "None of the first 1 images of --images can be read"),
        ([*model, "--pictures", "all"], 2, "--pictures all must be one of reconstruction, features, neighbours"),
    ]:
        done = draw(tmp_path, *flags)
        assert done.returncode == code and "Traceback" not in done.stderr, (flags, done.stderr)
        assert re.search(message, done.stderr), (message, done.stderr)
    done = run_here(SCRIPT, *model, "--output", tmp_path / "picture.jpg")
    assert done.returncode == 2 and "must end in .png" in done.stderr
