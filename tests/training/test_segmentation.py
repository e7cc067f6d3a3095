"""Segmentation as a task: the loss, learning rates and identity."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mae.arguments.segmentation import SegmentationFlags
from mae.data.batch import Batch
from mae.data.mask_rows import MaskFiles
from mae.data.masks import MaskCoding
from mae.training.segmentation import Segmentation
from mae.utils.errors import UserError
from modeling_mae import MAEForSemanticSegmentation
from patches_mae import normalize
from tests.support.models import tiny_model


CODING = MaskCoding((0, 1, 2), ("a", "b", "c"), (255,))
UPERNET = {"segmentation_head": "upernet", "num_hidden_layers": 4, "segmentation_hidden_size": 16}


class Arguments:
    per_device_train_batch_size = 4


def make_task(flags=None, arguments=Arguments, **fields):
    model = tiny_model(MAEForSemanticSegmentation, num_labels=3, **fields)
    recipe = SegmentationFlags(dataset_name="x", drop_path_rate=0.0, **(flags or {})).resolve(model.config)
    return Segmentation(model, None, MaskFiles(np.array(["m"]), "masks"), CODING, recipe, arguments)


def make_batch(count=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count, 32, 32), generator=generator).to(torch.uint8)
    labels[:, :8] = 255
    return Batch(pixels, 1.0, count, bytes(24 * count), [], list(range(count)), labels=labels.numpy())


def test_loss_is_the_mean_cross_entropy_of_the_pixels_that_count():
    task, batch = make_task(), make_batch()
    task.model.train()
    loss = task.loss(task.model, batch)
    logits = task.model(normalize(batch.pixel_values, task.model.config)).logits
    labels = torch.from_numpy(batch.labels).long()
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, ignore_index=255))


def test_class_weights_count_in_the_loss():
    task, batch = make_task(class_weights=[1.0, 5.0, 0.5]), make_batch()
    task.model.train()
    loss = task.loss(task.model, batch)
    logits = task.model(normalize(batch.pixel_values, task.model.config)).logits
    labels = torch.from_numpy(batch.labels).long()
    expected = F.cross_entropy(logits, labels, torch.tensor([1.0, 5.0, 0.5]), ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_upernet_takes_a_batch_of_which_one_image_is_left():
    task = make_task(**UPERNET)
    task.model.train()
    assert task.loss(task.model, make_batch(1)).isfinite()

    class OneImage:
        per_device_train_batch_size = 1

    with pytest.raises(UserError, match="--per_device_train_batch_size must be at least 2"):
        make_task(arguments=OneImage, **UPERNET)


def test_layer_decay_reaches_the_optimizer():
    task = make_task({"layer_decay": 0.5})
    scales = sorted({group["lr_scale"] for group in task.optimizer().param_groups})
    depth = len(task.model.mae.blocks)
    assert scales == [0.5**power for power in range(depth + 1, -1, -1)]


def test_masks_classes_and_head_are_in_the_identity():
    identity = make_task().identity()
    assert identity["data"] == {"masks": "masks", "classes": CODING.fingerprint}
    assert identity["model"]["segmentation_head"] == "linear" and identity["model"]["num_labels"] == 3
    other = MaskCoding((0, 2, 1), ("a", "b", "c"), (255,))
    assert other.fingerprint != CODING.fingerprint
