"""--preview_augmentation as a user runs it."""

import numpy as np
import pytest
from PIL import Image

from tests.support.data import ROOT
from tests.support.runs import TINY, start
from tests.support.segmentation import SCRIPT, SHORT


CLASSIFY = ROOT / "examples" / "run_image_classification.py"


def test_preview_is_drawn_and_nothing_is_trained(tmp_path, image_folder):
    flags = ["--train_dir", image_folder, *TINY, "--output_dir", tmp_path / "run", "--crop", "random", "--rot90"]
    done = start(*flags, "--preview_augmentation", tmp_path / "new" / "views.png")
    assert done.returncode == 0, done.stderr
    assert "views.png shows an image and eight views of it" in done.stdout
    drawn = np.array(Image.open(tmp_path / "new" / "views.png").convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--preview_augmentation", "views.jpg"], "--preview_augmentation views.jpg must end in .png"),
        (["--preview_augmentation", ROOT / "README.md" / "v.png"], "v.png cannot be written: "),
    ],
)
def test_preview_that_cannot_be_written_is_one_line(tmp_path, image_folder, flags, message):
    done = start("--train_dir", image_folder, *TINY, "--output_dir", tmp_path / "run", *flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_views_of_a_segmenter_are_coloured_by_their_masks(tmp_path, small_checkpoint):
    """The background stays grey, and the right half of the image has the colour of its class."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(9):
        grey = np.repeat(rng.integers(60, 200, (40, 48, 1), dtype=np.uint8), 3, 2)
        Image.fromarray(grey).save(tmp_path / "images" / f"{number}.png")
        mask = np.zeros((40, 48), np.uint8)
        mask[:, 24:] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    folders = ["--train_dir", tmp_path / "images", "--train_mask_dir", tmp_path / "masks", "--train_val_split", 0.2]
    flags = [*folders, "--model_name_or_path", small_checkpoint, *SHORT, "--color_jitter", 0]
    picture = ["--output_dir", tmp_path / "run", "--preview_augmentation", tmp_path / "views.png"]
    done = start(*flags, *picture, script=SCRIPT)
    assert done.returncode == 0 and not (tmp_path / "run").exists(), done.stderr
    drawn = np.array(Image.open(tmp_path / "views.png").convert("RGB")).astype(int)
    is_coloured, is_grey = drawn.max(2) - drawn.min(2) > 60, (np.ptp(drawn, axis=2) == 0) & (drawn.max(2) < 201)
    assert is_coloured.sum() > 100_000 and is_grey.sum() > 100_000
    assert not is_coloured[: drawn.shape[0] // 3, : drawn.shape[1] // 3].any()  # the image itself
