"""What is seen of a run while it trains and when it has: held-out loss and pictures, trackers, recipe, environment."""

import json
import platform
import shutil
import socket
from importlib import metadata

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import ViTMAEForPreTraining

from mae.conversion.saving import save_checkpoint
from mae.data.folders import open_folder
from mae.data.normalization import normalize
from mae.data.opening import open_dataset
from mae.data.subsets import hold_out
from mae.evaluation.reconstruction import load_images
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining
from tests.support.data import write_parquet
from tests.support.runs import exact, metrics, metrics_of, start, train


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data):
    output_dir = tmp_path_factory.mktemp("runs") / "plain"
    train(output_dir, *data)
    return output_dir


@pytest.fixture(scope="module")
def watched(tmp_path_factory, data):
    """The same run, looked at every eighth step, with an average and a tracker."""
    output_dir = tmp_path_factory.mktemp("runs") / "watched"
    train(output_dir, *data, "--eval_steps", 8, "--ema_decay", 0.8, "--report_to", "tensorboard")
    return output_dir


def evaluations(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def test_looking_changes_nothing(plain, watched):
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
def test_held_out_loss_of_the_saved_model(request, parquet_folder, tmp_path, name):
    """Of the average where there is one; by another implementation, with images and masks as documented."""
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


def read_events(output_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output_dir / "logs" / "mae"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard(watched, data, tmp_path):
    events = read_events(watched)
    lines = metrics(watched)
    for name in ("loss", "learning_rate", "images_per_second", "data_wait"):
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert logged == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    found = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    assert found == [(line["step"], pytest.approx(line["eval_loss"])) for line in evaluations(watched)]
    assert [event.step for event in events.Images("eval/reconstruction")] == [8, 16, 24]
    # Steps that a resume trains again are there once.
    again = tmp_path / "again"
    shutil.copytree(watched, again)
    (again / "train_results.json").unlink()
    shutil.rmtree(again / "checkpoint-24")
    arguments = [*data, "--eval_steps", 8, "--ema_decay", 0.8, "--report_to", "tensorboard"]
    assert exact(train(again, *arguments)) == exact(lines)
    assert evaluations(again) == evaluations(watched)
    assert [event.step for event in read_events(again).Scalars("train/loss")] == list(range(1, 25))


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_other_trackers(data, tmp_path, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(tracker)
    train(tmp_path / "run", *data, "--max_steps", 4, "--report_to", tracker)
    folder = tmp_path / ("run/logs/wandb" if tracker == "wandb" else "trackio")
    assert any(path.stat().st_size > 1000 for path in folder.rglob("*") if path.is_file())


def test_the_recipe_makes_the_run_again(watched, tmp_path):
    recipe = yaml.safe_load((watched / "recipe.yaml").read_text())
    assert recipe["max_steps"] == 24 and recipe["seed"] == 42 and "output_dir" not in recipe
    recipe["report_to"] = ["none"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert exact(train(tmp_path / "run", "--recipe", tmp_path / "recipe.yaml")) == exact(metrics(watched))
    again = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert again == recipe


def test_the_environment_is_recorded(plain):
    text = (plain / "environment.json").read_text()
    found = json.loads(text)
    assert found["python"] == platform.python_version() and found["processes"] == 1
    for name in ("torch", "transformers", "accelerate", "datasets"):
        assert found["packages"][name] == metadata.version(name)
    assert found["device"] == {"type": "cpu"} and found["mixed_precision"] == "no"
    assert socket.gethostname() not in text.replace(platform.platform(), "")


def test_a_stop_before_looking_is_made_up_for(watched, data, tmp_path):
    """A request to stop that comes at a step with images to look at saves first; the next start looks at them."""
    run = tmp_path / "run"
    shutil.copytree(watched, run)
    (run / "train_results.json").unlink()
    lines = [line for line in evaluations(run) if line["step"] < 24]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(run, *data, "--eval_steps", 8, "--ema_decay", 0.8)
    assert evaluations(run) == evaluations(watched)


# Holding out


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_held_out_rows(parquet_folder, image_folder, share):
    """Every row is in one part, in its place; both parts are drawn from everywhere, and by the seed."""
    for source in (open_dataset(str(parquet_folder))[0], open_folder(str(image_folder), "--train_dir")):
        rows = {}
        parts = hold_out(source, share, seed=1)
        for number, part in enumerate(parts):
            for group, size in enumerate(part.group_sizes):
                read = list(part.read(group, 0)) if size else []
                assert len(read) == size
                for row, image in enumerate(read):
                    assert part.origin(group, row) not in rows
                    rows[part.origin(group, row)] = number, image
                    assert row % 5 or list(part.read(group, row)) == read[row:]
        whole = {
            source.origin(group, row): image
            for group in range(len(source.group_sizes))
            for row, image in enumerate(source.read(group, 0))
        }
        assert {origin: image for origin, (_, image) in rows.items()} == whole
        held = sum(parts[1].group_sizes)
        assert held == pytest.approx(share * len(whole), abs=3)
        assert parts[0].fingerprint != parts[1].fingerprint != source.fingerprint
        assert hold_out(source, share, seed=1)[0].group_sizes == parts[0].group_sizes
        assert hold_out(source, share, seed=2)[0].fingerprint != parts[0].fingerprint
    with pytest.raises(UserError, match="--train_val_split 0.001 of 60 images leaves 60 .* and 0"):
        hold_out(source, 0.001, seed=1)


def test_train_val_split(emoji_bytes, data, tmp_path):
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


def test_load_images_takes_from_many_groups(parquet_folder):
    source = open_dataset(str(parquet_folder))[0]
    read = []
    original = source.read
    source.read = lambda group, row: read.append(group) or original(group, row)
    config = MAEForPreTraining.config_class(image_size=32, patch_size=8)
    images = load_images(source, config, count=14)
    assert sorted(read) == list(range(7))  # two of each
    assert len({bytes(image.numpy()) for image in images}) >= 13  # some emoji are alike
