"""What PipelineTesterMixin checks: images of several modes, lists and batches, half precision."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_mae import MAEForImageClassification, MAEForSemanticSegmentation, MAEModel
from tests.support.models import tiny_model


TASKS = {
    "image-feature-extraction": MAEModel,
    "image-classification": MAEForImageClassification,
    "image-segmentation": MAEForSemanticSegmentation,
}
MODES = ("RGB", "RGBA", "L", "LA", "P")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for task, cls in TASKS.items():
        tiny_model(cls, num_labels=3, id2label={0: "ant", 1: "bee", 2: "cat"}).save_pretrained(folder / task)
    return folder


def picture(mode="RGB", size=(50, 40)):
    noise = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).convert(mode)


def check(task, found, size=(50, 40)):
    if task == "image-feature-extraction":
        assert torch.tensor(found).shape == (1, 17, 32)
    elif task == "image-classification":
        assert sorted(each["label"] for each in found) == ["ant", "bee", "cat"]
        assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-2)
    else:
        assert found and {each["label"] for each in found} <= {"ant", "bee", "cat"}
        assert all(each["mask"].size == size and each["mask"].mode == "L" for each in found)


@pytest.mark.parametrize("task", TASKS)
def test_pipeline_takes_every_mode_and_lists_of_images(task, saved):
    run = pipeline(task, str(saved / task))
    for mode in MODES:
        check(task, run(picture(mode)))
    images = [picture(), picture("L"), picture(size=(64, 64))]
    one_by_one = [run(image) for image in images]
    for found, alone, size in zip(run(images, batch_size=2), one_by_one, ((50, 40), (50, 40), (64, 64)), strict=True):
        check(task, found, size)
        if task == "image-feature-extraction":
            assert torch.allclose(torch.tensor(found), torch.tensor(alone), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
def test_pipeline_works_in_half_precision(task, dtype, saved):
    run = pipeline(task, str(saved / task), dtype=dtype)
    assert run.model.dtype == dtype
    check(task, run(picture()))


def test_message_without_the_package_names_the_argument(saved):
    """In a process that has not imported the package, as a new user's."""
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(saved / 'image-classification')!r})"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr.splitlines()[-1]
