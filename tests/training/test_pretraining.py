"""Masked pre-training as a task."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEForPreTraining

from mae.arguments.recipes import PreTrainingRecipe
from mae.conversion.saving import save_checkpoint
from mae.data.batch import Batch
from mae.data.folders import open_folder
from mae.training.flops import training_flops
from mae.training.pretraining import PreTraining
from patches_mae import normalize
from tests.support.models import tiny_model
from tests.support.samples import sample


@pytest.fixture
def task(image_folder):
    recipe = PreTrainingRecipe(weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.7)
    return PreTraining(tiny_model(), open_folder(str(image_folder), "--train_dir"), recipe)


@pytest.fixture
def batch(task, emoji_bytes) -> Batch:
    dataset = task.dataset(lambda: False)
    samples = [sample(data, position) for position, data in enumerate(emoji_bytes[:4])]
    return dataset.collate([dataset[each] for each in samples])


def test_loss_is_that_of_transformers_for_the_same_noise(task, batch, tmp_path):
    save_checkpoint(task.model, tmp_path / "model", "vit_mae")
    other = ViTMAEForPreTraining.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        found = task.loss(task.model, batch)
        pixels = normalize(batch.pixel_values, task.model.config)
        expected = other(pixels, noise=torch.as_tensor(batch.noise)).loss
    assert found.shape == () and found.item() == pytest.approx(expected.item(), rel=1e-5)
    other_noise = np.roll(batch.noise, 3, axis=1)
    with torch.no_grad():
        assert other(pixels, noise=torch.as_tensor(other_noise)).loss.item() != pytest.approx(found.item(), rel=1e-4)


def test_optimizer_has_the_recipe_s_values(task):
    groups = task.optimizer().param_groups
    assert {group["betas"] for group in groups} == {(0.8, 0.7)}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert trained == sum(p.numel() for p in task.model.parameters() if p.requires_grad)


def test_task_adds_nothing_to_the_identity_and_knows_its_cost(task):
    assert task.identity() == {} and task.min_learning_rate == 0
    assert task.flops_per_image == training_flops(task.model.config) > 0
