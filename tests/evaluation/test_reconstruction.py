"""Validation loss and pictures during a run and of its final model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor, ViTMAEForPreTraining

from configuration_mae import MAEConfig
from mae.conversion.saving import save_checkpoint
from mae.data.normalization import normalize
from mae.data.opening import open_dataset
from mae.data.subsets import hold_out
from mae.evaluation.reconstruction import load_images
from modeling_mae import MAEForPreTraining
from tests.support.data import write_parquet
from tests.support.runs import exact, metrics, metrics_of, start, train
from tests.support.samples import CONFIG, BrokenSource, encode


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data):
    output_dir = tmp_path_factory.mktemp("runs") / "plain"
    train(output_dir, *data)
    return output_dir


@pytest.fixture(scope="module")
def watched(tmp_path_factory, data):
    """The same run, evaluated at every eighth step, with averaged weights."""
    output_dir = tmp_path_factory.mktemp("runs") / "watched"
    train(output_dir, *data, "--eval_steps", 8, "--ema_decay", 0.8)
    return output_dir


def evaluations(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def test_evaluation_changes_nothing_in_training(plain, watched):
    assert exact(metrics(watched)) == exact(metrics(plain))
    assert [line["step"] for line in evaluations(watched)] == [8, 16, 24]
    assert [line["step"] for line in evaluations(plain)] == [24]
    for line in evaluations(watched):
        picture = np.array(Image.open(watched / line["reconstruction"]).convert("RGB"))
        assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert (watched / "reconstruction.png").read_bytes() == (watched / line["reconstruction"]).read_bytes()
    losses = [line["eval_loss"] for line in evaluations(watched)]
    assert (
        losses[-1] < losses[0] and json.loads((watched / "train_results.json").read_text())["eval_loss"] == losses[-1]
    )


@pytest.mark.parametrize("name", ["plain", "watched"])
def test_validation_loss_is_that_of_the_saved_model_in_transformers(request, parquet_folder, tmp_path, name):
    """Of the averaged weights if there are any; by transformers' ViTMAE, with images and masks as documented."""
    output_dir = request.getfixturevalue(name)
    model = MAEForPreTraining.from_pretrained(output_dir)
    _, held_out = open_dataset(str(parquet_folder))
    images = load_images(held_out, model.config, 256)
    assert len(images) == 12
    noise = torch.rand(12, model.config.num_patches, generator=torch.Generator().manual_seed(0))
    save_checkpoint(model, tmp_path / "theirs", "vit_mae")
    other = ViTMAEForPreTraining.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        loss = other(normalize(images, model.config), noise=noise).loss.item()
    assert evaluations(output_dir)[-1]["eval_loss"] == pytest.approx(loss, rel=1e-5)
    # The last checkpoint is what was trained, with or without an average.
    last = MAEForPreTraining.from_pretrained(output_dir / "checkpoint-24").mae.cls_token
    assert torch.equal(last, model.mae.cls_token) == (name == "plain")


def test_evaluation_that_a_stop_left_out_runs_after_the_resume(watched, data, tmp_path):
    """A request to stop at a step with an evaluation saves first; the next start evaluates."""
    run = tmp_path / "run"
    shutil.copytree(watched, run)
    (run / "train_results.json").unlink()
    lines = [line for line in evaluations(run) if line["step"] < 24]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(run, *data, "--eval_steps", 8, "--ema_decay", 0.8)
    assert evaluations(run) == evaluations(watched)


def test_train_val_split_is_the_validation_data_of_a_run(emoji_bytes, data, tmp_path):
    folder = write_parquet(tmp_path / "data" / "train.parquet", emoji_bytes[:90], 16).parent
    run = tmp_path / "run"
    done = start("--output_dir", run, "--dataset_name", folder, *data[2:], "--train_val_split", 0.2)
    assert done.returncode == 0, done.stderr
    others, held_out = hold_out(open_dataset(str(folder))[0], 0.2, 42)
    assert f"on {sum(others.group_sizes)} images" in done.stdout and 14 <= sum(held_out.group_sizes) <= 22
    model = MAEForPreTraining.from_pretrained(run)
    images = load_images(held_out, model.config, 256)
    noise = torch.rand(len(images), model.config.num_patches, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(normalize(images, model.config), noise=noise).loss.item()
    assert evaluations(run)[-1]["eval_loss"] == pytest.approx(loss, rel=1e-5)
    # Data with a validation split keeps it; with a test split alone, training images are held out.
    one_step = ["--dataset_name", folder, *data[2:], "--train_val_split", 0.2, "--max_steps", 1]
    write_parquet(folder / "test.parquet", emoji_bytes[90:96], 6)
    done = start("--output_dir", tmp_path / "test", *one_step)
    assert "no effect" not in done.stdout and f"on {len(others)} images" in done.stdout
    write_parquet(folder / "validation.parquet", emoji_bytes[90:96], 6)
    done = start("--output_dir", tmp_path / "validation", *one_step)
    assert "--train_val_split has no effect" in done.stdout and "on 90 images" in done.stdout


def test_images_are_of_the_model_s_size_and_repeat(parquet_folder):
    _, held_out = open_dataset(str(parquet_folder))
    images = load_images(held_out, CONFIG, count=8)
    assert images.shape == (8, 3, 32, 32) and torch.equal(images, load_images(held_out, CONFIG, count=8))
    assert len(load_images(held_out, CONFIG, count=100)) == 12
    wide = MAEConfig(image_size=(16, 48), patch_size=8)
    assert load_images(held_out, wide, count=2).shape == (2, 3, 16, 48)


def test_images_come_from_many_groups(parquet_folder):
    source = open_dataset(str(parquet_folder))[0]
    read = []
    original = source.read
    source.read = lambda group, row: read.append(group) or original(group, row)
    config = MAEForPreTraining.config_class(image_size=32, patch_size=8)
    images = load_images(source, config, count=14)
    assert sorted(read) == list(range(7))  # two of each
    assert len({bytes(image.numpy()) for image in images}) >= 13  # some emoji are alike


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40)])
def test_images_are_prepared_by_the_saved_image_processor(size, tmp_path):
    """A checkerboard of single pixels, which each way of resizing turns into other pixels."""
    width, height = size
    board = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = Image.fromarray(np.stack([board, 255 - board, board // 2], axis=2))
    MAEForPreTraining(CONFIG).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = processor(picture, return_tensors="pt").pixel_values
    found = load_images(BrokenSource([encode(picture, "PNG")]), CONFIG, count=1)
    torch.testing.assert_close(normalize(found, CONFIG), expected, rtol=0, atol=1e-6)
    resized = v2.functional.resize(torch.from_numpy(np.array(picture)).permute(2, 0, 1), [32, 32], antialias=True)
    assert not torch.equal(found[0], resized)  # the whole image, squeezed, is what evaluation had before
