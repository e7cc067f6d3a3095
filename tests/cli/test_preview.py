"""--preview_augmentation as a user runs it."""

import numpy as np
import pytest
from PIL import Image

from tests.support.data import ROOT
from tests.support.runs import TINY, start


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
