"""examples/run_image_classification.py: each protocol on small real data, whole runs as a user starts them."""

import csv
import io
import json
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageClassification, pipeline

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.run import ClassificationArguments
from mae.cli.parser import parse_arguments
from mae.conversion.saving import save_checkpoint
from mae.data.labels import read_labels
from mae.data.opening import open_dataset
from mae.evaluation.inference import EvaluationBatches, map_images
from modeling_mae import MAEForImageClassification, MAEForPreTraining
from tests.support.classification import NAMES, SCRIPT, SHORT, SIZES, classify, write_labelled
from tests.support.data import EMOJI
from tests.support.runs import exact, metrics, metrics_of, run, start


def evaluations(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, labelled_flags):
    output_dir = tmp_path_factory.mktemp("runs") / "finetuned"
    return output_dir, classify(output_dir, *labelled_flags, "--eval_steps", 6, "--ema_decay", 0.9)


def test_finished_run_holds_model_log_and_tables(finetuned):
    output_dir, done = finetuned
    assert [line["step"] for line in metrics(output_dir)] == list(range(1, 13))
    assert [line["step"] for line in evaluations(output_dir)] == [6, 12]
    recipe = yaml.safe_load((output_dir / "recipe.yaml").read_text())
    wanted = {
        "layer_decay": 0.65, "drop_path_rate": 0.1, "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "random_erasing": 0.25,
        "label_smoothing_factor": 0.1, "weight_decay": 0.05, "base_learning_rate": 5e-4, "adam_beta2": 0.999,
        "augmentation": "randaugment", "min_crop_area": 0.08,
    }  # fmt: skip
    assert {name: recipe[name] for name in wanted} == wanted
    config = json.loads((output_dir / "config.json").read_text())
    assert config["pooling"] == "mean" and config["drop_path_rate"] == 0.1
    assert list(config["id2label"].values()) == NAMES and config["label2id"]["Flags"] == 2
    assert config["problem_type"] == "single_label_classification"
    count = sum(tensor.numel() for tensor in load_file(output_dir / "model.safetensors").values())
    assert f"Fine-tuning of {count:,} of {count:,} parameters on 100 images of 9 classes, 37 valid" in done.stdout
    for name in ("loss_curve.png", "confusion_matrix.png"):
        picture = np.array(Image.open(output_dir / name).convert("RGB"))
        assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_reported_scores_are_those_of_the_saved_model(finetuned, labelled):
    """By the saved model, in a pipeline with the saved processor, on the held-out images as files."""
    output_dir, _ = finetuned
    rows = pq.read_table(labelled / "test-00000-of-00001.parquet").to_pylist()
    predictions = {int(line["row"]): line for line in table(output_dir / "predictions.csv")}
    assert sorted(predictions) == list(range(37))
    answer = pipeline("image-classification", str(output_dir), top_k=5)
    hits = top5 = 0
    for number, row in enumerate(rows):
        # Transparent ones as training sees them, on white; a pipeline would put them on black.
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        answers, line = answer(picture), predictions[number]
        assert line["label"] == NAMES[row["label"]]
        assert line["prediction"] == answers[0]["label"]
        assert float(line["probability"]) == pytest.approx(answers[0]["score"], abs=2e-6)
        hits += line["label"] == answers[0]["label"]
        top5 += line["label"] in [each["label"] for each in answers]
    last = evaluations(output_dir)[-1]
    assert last["eval_accuracy"] == hits / 37 and last["eval_accuracy_top5"] == top5 / 37
    results = json.loads((output_dir / "train_results.json").read_text())
    assert results["eval_accuracy"] == last["eval_accuracy"]

    true = Counter(line["label"] for line in predictions.values())
    guessed = Counter(line["prediction"] for line in predictions.values())
    right = Counter(line["label"] for line in predictions.values() if line["label"] == line["prediction"])
    for line in table(output_dir / "per_class.csv"):
        name = line["class"]
        assert int(line["images"]) == true[name]
        for column, whole in (("recall", true[name]), ("precision", guessed[name])):
            expected = right[name] / whole if whole else float("nan")
            assert float(line[column]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def changed(output_dir, start_from):
    """Names of tensors of a classifier that are not bit-equal to the model that it started from."""
    ours, theirs = load_file(output_dir / "model.safetensors"), load_file(start_from / "model.safetensors")
    return {name for name, tensor in ours.items() if name not in theirs or not torch.equal(tensor, theirs[name])}


def norm(name):
    return {f"{name}.weight", f"{name}.bias"}


HEAD = {"head.weight", "head.bias"}
HEAD_NORM = {f"head_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
LAST_MLP = {f"mae.blocks.2.mlp.fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
LAST_MLP |= norm("mae.blocks.2.norm2")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--protocol", "linear"], HEAD | HEAD_NORM),
        (["--protocol", "linear", "--augmentation", "crop"], HEAD | HEAD_NORM),
        (["--protocol", "partial", "--num_trainable_blocks", 0], HEAD | norm("fc_norm")),
        (["--protocol", "partial", "--num_trainable_blocks", 0.5], HEAD | norm("fc_norm") | LAST_MLP),
        (
            ["--protocol", "partial", "--num_trainable_blocks", 0.5, "--config_overrides", "pooling=cls"],
            HEAD | LAST_MLP | norm("mae.norm"),
        ),
    ],
)
def test_frozen_weights_stay_bit_equal(arguments, expected, labelled_flags, small_checkpoint, tmp_path):
    classify(tmp_path / "run", *labelled_flags, *arguments, "--learning_rate", 1, "--ema_decay", 0.5)
    assert changed(tmp_path / "run", small_checkpoint) == expected
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.head_batch_norm == ("linear" in arguments)


def test_partial_protocol_trains_the_last_block(labelled_flags, small_checkpoint, tmp_path):
    classify(
        tmp_path / "run", *labelled_flags, "--protocol", "partial", "--num_trainable_blocks", 1, "--learning_rate", 0.1
    )
    found = changed(tmp_path / "run", small_checkpoint)
    names = {name for name, _ in MAEForPreTraining.from_pretrained(small_checkpoint).mae.blocks[2].named_parameters()}
    assert found == HEAD | norm("fc_norm") | {f"mae.blocks.2.{name}" for name in names}


def test_cached_features_change_no_loss(labelled_flags, tmp_path, monkeypatch):
    """The same as with images through the frozen encoder at every step; the second time read, not computed."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = [*labelled_flags, "--protocol", "linear", "--eval_steps", 6]
    first = classify(tmp_path / "cached", *arguments)
    again = classify(tmp_path / "again", *arguments)
    assert "computed before" not in first.stdout and again.stdout.count("computed before") == 2
    assert exact(metrics(tmp_path / "again")) == exact(metrics(tmp_path / "cached"))

    monkeypatch.setattr("mae.training.classification.uses_frozen_features", lambda recipe: False)
    classify(tmp_path / "images", *arguments)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("cached", "images")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(set(losses[0])) == 12
    found = [(line["eval_loss"], line["eval_accuracy"]) for line in evaluations(tmp_path / "cached")]
    for one, other in zip(found, evaluations(tmp_path / "images"), strict=True):
        assert one == pytest.approx((other["eval_loss"], other["eval_accuracy"]), rel=1e-5)


def test_resume_is_exact(finetuned, labelled_flags, tmp_path):
    """With mixup, cutmix, drop path, erasing and an average; any number of workers."""
    output_dir, _ = finetuned
    again = tmp_path / "again"
    shutil.copytree(output_dir, again)
    (again / "train_results.json").unlink()
    for step in (10, 12):
        shutil.rmtree(again / f"checkpoint-{step}", ignore_errors=True)
    shutil.copytree(output_dir / "checkpoint-10", again / "checkpoint-10")
    arguments = [*labelled_flags, "--eval_steps", 6, "--ema_decay", 0.9, "--dataloader_num_workers", 2]
    done = classify(again, *arguments)
    assert "Resuming after step 10." in done.stdout
    assert exact(metrics(again)) == exact(metrics(output_dir)) and evaluations(again) == evaluations(output_dir)
    weights = [load_file(path / "model.safetensors") for path in (again, output_dir)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    done = classify(again, *arguments)
    assert "already finished" in done.stdout


@pytest.mark.parametrize(
    "more",
    [
        ["--protocol", "linear"],
        ["--protocol", "linear", "--augmentation", "crop"],
        ["--protocol", "partial", "--num_trainable_blocks", 1, "--drop_path_rate", 0],
    ],
)
def test_other_protocols_resume_exactly(more, labelled_flags, tmp_path):
    """With the momentum of LARS and the batch norm's statistics; with mixup that no drop path has seeded."""
    arguments = [*labelled_flags, *more]
    classify(tmp_path / "whole", *arguments)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "train_results.json").unlink()
    shutil.rmtree(tmp_path / "again" / "checkpoint-12")
    assert "Resuming after step 10." in classify(tmp_path / "again", *arguments).stdout
    assert exact(metrics(tmp_path / "again")) == exact(metrics(tmp_path / "whole"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_recipe_of_a_run_repeats_it(finetuned, tmp_path):
    output_dir, _ = finetuned
    classify(tmp_path / "run", "--recipe", output_dir / "recipe.yaml", "--report_to", "tensorboard")
    assert exact(metrics(tmp_path / "run")) == exact(metrics(output_dir))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "mae"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("eval/accuracy")]
    assert logged == [(line["step"], pytest.approx(line["eval_accuracy"])) for line in evaluations(output_dir)]


def test_two_processes_evaluate_as_one(labelled_flags, tmp_path):
    """37 images, none twice: the first step's rate is 0, so that the model is the same."""
    arguments = [*labelled_flags, "--max_steps", 1]
    classify(tmp_path / "one", *arguments)
    arguments[arguments.index("--per_device_train_batch_size") + 1] = 4
    done = run("--output_dir", tmp_path / "two", *arguments, processes=2, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    one, two = evaluations(tmp_path / "one")[-1], evaluations(tmp_path / "two")[-1]
    assert two == one | {"eval_loss": pytest.approx(one["eval_loss"], rel=1e-6)}
    files = [(tmp_path / name / "per_class.csv").read_text() for name in ("one", "two")]
    assert files[0] == files[1]
    predictions = [table(tmp_path / name / "predictions.csv") for name in ("one", "two")]
    assert len(predictions[0]) == 37
    for first, second in zip(*predictions, strict=True):
        assert float(first.pop("probability")) == pytest.approx(float(second.pop("probability")), abs=2e-6)
        assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_two_processes_report_the_saved_probe(augmentation, labelled_flags, labelled, tmp_path):
    """Each has seen other batches; what counts, and is saved, is the first one's statistics of them."""
    arguments = [*labelled_flags, "--protocol", "linear", "--augmentation", augmentation]
    classify(tmp_path / "one", *arguments)
    arguments[arguments.index("--per_device_train_batch_size") + 1] = 4
    done = run("--output_dir", tmp_path / "two", *arguments, processes=2, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    digests = [[line["samples_digest"] for line in metrics(tmp_path / name)] for name in ("one", "two")]
    assert digests[0] == digests[1] and len(set(digests[0])) == 12
    _, source = open_dataset(str(labelled))
    labels = torch.from_numpy(read_labels(source, "WHAT").values)
    for name in ("one", "two"):
        model = MAEForImageClassification.from_pretrained(tmp_path / name).eval()
        mapped = map_images(
            lambda pixel_values, rows, model=model: {"logits": model(pixel_values).logits},
            EvaluationBatches(source, model.config, batch_size=16),
            torch.device("cpu"),
        )
        loss = torch.nn.functional.cross_entropy(mapped.outputs["logits"], labels).item()
        assert evaluations(tmp_path / name)[-1]["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_images_with_several_labels(tmp_path, small_checkpoint, emoji_rows):
    write_labelled(tmp_path / "data" / "train.parquet", emoji_rows[:60], several=True)
    write_labelled(tmp_path / "data" / "test.parquet", emoji_rows[100:120], several=True)
    labelled_flags = ["--dataset_name", tmp_path / "data", "--model_name_or_path", small_checkpoint, *SHORT]
    classify(tmp_path / "run", *labelled_flags)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    lines = table(tmp_path / "run" / "predictions.csv")
    found = []
    for line in table(tmp_path / "run" / "per_class.csv"):
        name = line["class"]
        ranked = sorted(lines, key=lambda each: -float(each[f"score {name}"]))
        has = [name in each["labels"].split(" | ") for each in ranked]
        precisions = [sum(has[: place + 1]) / (place + 1) for place in range(len(has)) if has[place]]
        assert int(line["images"]) == sum(has)
        if precisions:
            found.append(np.mean(precisions))
            assert float(line["average_precision"]) == pytest.approx(found[-1], abs=1e-6)
    assert evaluations(tmp_path / "run")[-1]["eval_mean_average_precision"] == pytest.approx(np.mean(found), abs=1e-6)
    classify(tmp_path / "probe", *labelled_flags, "--protocol", "linear")
    assert not (tmp_path / "run" / "confusion_matrix.png").exists()


def test_class_folders_and_another_resolution(tmp_path, small_checkpoint, emoji_rows):
    """Class folders, split by classes, at a size of their own."""
    for number, row in enumerate(emoji_rows[:80]):
        path = tmp_path / "images" / NAMES[row["label"]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"]["bytes"])
    arguments = ["--train_dir", tmp_path / "images", "--train_val_split", 0.25, "--image_size", 48]
    done = classify(tmp_path / "run", *arguments, "--model_name_or_path", small_checkpoint, *SHORT)
    assert "positions resampled from 4 x 4 to 6 x 6 patches" in done.stdout
    lines = table(tmp_path / "run" / "predictions.csv")
    assert len(lines) == 20 and all(line["file"].split("/")[0] == line["label"] for line in lines)
    held = Counter(line["label"] for line in lines)
    whole = Counter(NAMES[row["label"]] for row in emoji_rows[:80])
    assert all(abs(held[name] - whole[name] / 4) < 1 for name in whole)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 48


@pytest.mark.parametrize("layout", ["official", "timm", "vit_mae"])
def test_checkpoints_of_other_layouts_give_the_same_losses(layout, tmp_path, labelled_flags, small_checkpoint):
    model = MAEForPreTraining.from_pretrained(small_checkpoint)
    save_checkpoint(model.mae if layout == "timm" else model, tmp_path / "theirs", layout)
    path = tmp_path / "theirs" / ("checkpoint.pth" if layout == "official" else "")
    arguments = [*labelled_flags, "--max_steps", 1, "--protocol", "linear"]
    arguments[arguments.index("--model_name_or_path") + 1] = path
    classify(tmp_path / "run", *arguments)
    assert changed(tmp_path / "run", small_checkpoint) == HEAD | HEAD_NORM


def test_classifier_can_be_trained_further(finetuned, labelled_flags, tmp_path):
    """The same classes keep their classifier and pooling; other ones get a new one."""
    output_dir, _ = finetuned
    arguments = [*labelled_flags, "--max_steps", 1]
    arguments[arguments.index("--model_name_or_path") + 1] = output_dir
    classify(tmp_path / "same", *arguments)
    assert not changed(tmp_path / "same", output_dir)
    done = classify(tmp_path / "probe", *arguments, "--protocol", "linear")
    assert changed(tmp_path / "probe", output_dir) == HEAD | HEAD_NORM
    assert "newly initialised: head_norm (3 tensors); head (2 tensors)" in done.stdout


def test_from_scratch_trains_random_weights(labelled_flags, tmp_path):
    arguments = [argument for argument in labelled_flags if argument != "--model_name_or_path"][:2] + SHORT
    sizes = ",".join(f"{name}={value}" for name, value in SIZES.items() if "size" not in name or "hidden" in name)
    arguments += ["--from_scratch", "--config_overrides", f"{sizes},intermediate_size=48", "--image_size", 32]
    classify(tmp_path / "run", *arguments, "--patch_size", 8)
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["base_learning_rate"] == 1e-4 and recipe["weight_decay"] == 0.3 and recipe["ema_decay"] == 0.9999
    assert recipe["layer_decay"] == 1 and recipe["adam_beta2"] == 0.95


def test_fine_tuning_learns(tmp_path, emoji_rows, small_checkpoint):
    """Flags from smileys, in a hundred steps; a model that learns nothing gets as many as there are flags, 61 %."""
    rows = [row for row in pq.read_table(EMOJI / "train-00000-of-00001.parquet").to_pylist() if row["label"] in (2, 6)]
    write_labelled(tmp_path / "data" / "train.parquet", rows)
    write_labelled(tmp_path / "data" / "test.parquet", [row for row in emoji_rows if row["label"] in (2, 6)])
    arguments = ["--dataset_name", tmp_path / "data", "--model_name_or_path", small_checkpoint, *SHORT]
    arguments += ["--max_steps", 100, "--learning_rate", 5e-3, "--mixup_alpha", 0, "--cutmix_alpha", 0]
    arguments += ["--layer_decay", 1, "--drop_path_rate", 0, "--augmentation", "crop"]
    classify(tmp_path / "run", *arguments)
    assert evaluations(tmp_path / "run")[-1]["eval_accuracy"] > 0.8


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--protocol probe", "--protocol probe must be one of finetune, linear, partial"),
        ("--protocol partial", "--protocol partial and --num_trainable_blocks"),
        ("--protocol partial --num_trainable_blocks 4", "must be 0.5, or a whole number up to 3"),
        ("--from_scratch", "--from_scratch and --model_name_or_path"),
        ("--augmentation full", "--augmentation full must be one of none, crop, randaugment"),
        ("--layer_decay 1.5", r"--layer_decay 1\.5 .*\(0, 1\]"),
        ("--mixup_alpha -1", "--mixup_alpha -1"),
        ("--label_column_name class", "--label_column_name class .*Columns: image, label"),
        ("--protocol linear --mixup_alpha 0.5", "--mixup_alpha"),
        ("--protocol linear --per_device_train_batch_size 1", "batch_size must be at least 2"),
        ("--config_overrides num_labels=5", "--config_overrides num_labels"),
        ("--layerdecay 1", "--layerdecay.*--layer_decay"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(labelled_flags, tmp_path, arguments, message):
    refuse(tmp_path / "run", [*labelled_flags, *arguments.split()], message)


def refuse(output_dir, arguments, message):
    done = start("--output_dir", output_dir, *arguments, script=SCRIPT)
    assert done.returncode == 2 and not output_dir.exists(), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line) and done.stderr.splitlines()[-1] == line, line


def test_data_that_cannot_train_a_classifier_is_refused(labelled_flags, labelled, tmp_path, emoji_rows):
    run = tmp_path / "run"
    refuse(run, ["--dataset_name", labelled], "--model_name_or_path.*--from_scratch")
    alone = ["--dataset_name", labelled / "train-00000-of-00001.parquet", *labelled_flags[2:]]
    refuse(run, alone, "no validation images.*--train_val_split 0.1")
    write_labelled(tmp_path / "data" / "train.parquet", emoji_rows[:20])
    write_labelled(tmp_path / "data" / "test.parquet", [row | {"label": -1} for row in emoji_rows[20:30]])
    unlabelled = [*labelled_flags, "--dataset_name", tmp_path / "data"]
    refuse(run, unlabelled, r"10 images have no usable label \(label is -1\).*--train_val_split")
    for name in ("train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "val/bear/4.png"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(emoji_rows[0]["image"]["bytes"])
    folders = [
        "--train_dir",
        tmp_path / "files" / "train",
        "--validation_dir",
        tmp_path / "files" / "val",
        *labelled_flags[2:],
    ]
    refuse(run, folders, "--validation_dir has classes .*: bear")


def test_unreadable_images_are_named_and_too_many_stop_the_run(labelled_flags, labelled, tmp_path, emoji_rows):
    """Left out and named, in training, in evaluation and among cached features."""
    broken = [row | {"image": {"bytes": b"no image", "path": None}} for row in emoji_rows[100:102]]
    write_labelled(tmp_path / "data" / "train.parquet", broken + emoji_rows[:60])
    write_labelled(tmp_path / "data" / "test.parquet", broken + emoji_rows[110:120])
    arguments = ["--dataset_name", tmp_path / "data", *labelled_flags[2:], "--max_bad_fraction", 0.2]
    for name, more in (("run", []), ("probe", ["--protocol", "linear"])):
        classify(tmp_path / name, *arguments, *more)
        line = evaluations(tmp_path / name)[-1]
        hits = line["eval_accuracy"] * 10
        assert line["eval_skipped"] == 2 and hits == pytest.approx(round(hits))
        skipped = metrics_of((tmp_path / name / "skipped.jsonl").read_text().splitlines())
        files = Counter(entry["file"] for entry in skipped)
        assert files["test.parquet"] == 2 and files["train.parquet"] == 2
        assert len(table(tmp_path / name / "predictions.csv")) == 10


def test_split_of_the_training_images_replaces_a_test_split_without_labels(labelled_flags, tmp_path, emoji_rows):
    """Many data sets on the Hub have one."""
    write_labelled(tmp_path / "data" / "train.parquet", emoji_rows[:60])
    write_labelled(tmp_path / "data" / "test.parquet", [row | {"label": -1} for row in emoji_rows[60:70]])
    done = classify(
        tmp_path / "run", "--dataset_name", tmp_path / "data", *labelled_flags[2:], "--train_val_split", 0.2
    )
    assert "no effect" not in done.stdout
    assert {line["file"] for line in table(tmp_path / "run" / "predictions.csv")} == {"train.parquet"}


def test_batch_norm_works_if_one_image_of_a_batch_is_readable(labelled_flags, tmp_path, emoji_rows):
    """Too few to normalise over, or none: it counts by what was seen before."""
    rows = emoji_rows[:60]
    broken = [row if index % 2 else row | {"image": {"bytes": b"", "path": None}} for index, row in enumerate(rows)]
    write_labelled(tmp_path / "data" / "train.parquet", broken)
    write_labelled(tmp_path / "data" / "test.parquet", emoji_rows[60:70])
    arguments = [
        "--dataset_name",
        tmp_path / "data",
        *labelled_flags[2:],
        "--max_bad_fraction",
        1,
        "--protocol",
        "linear",
    ]
    for name, more in (("cached", []), ("crop", ["--augmentation", "crop"])):
        classify(tmp_path / name, *arguments, "--per_device_train_batch_size", 4, *more)
        assert all(line["loss"] is not None for line in metrics(tmp_path / name))
    broken = broken[::2]
    write_labelled(tmp_path / "none" / "train.parquet", broken)
    write_labelled(tmp_path / "none" / "test.parquet", emoji_rows[60:70])
    arguments = ["--output_dir", tmp_path / "nothing", "--dataset_name", tmp_path / "none", *arguments[2:]]
    done = start(*arguments, script=SCRIPT)
    assert done.returncode == 1 and "None of the 30 training images can be read" in done.stderr.splitlines()[-1]


def test_images_of_five_channels(tmp_path):
    """Folders of arrays, of as many channels as the checkpoint has; names that pictures could take for formulas."""
    sizes = SIZES | {"num_channels": 13, "image_mean": [0.5] * 13, "image_std": [0.2] * 13}
    MAEForPreTraining(MAEConfig(**sizes)).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "images" / ("$a$b_$" if number % 2 else "caf\udce9") / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.random((32, 40, 13), dtype=np.float32) * (0.5 + number % 2 / 2))
    arguments = ["--train_dir", tmp_path / "images", "--train_val_split", 0.25, *SHORT]
    classify(tmp_path / "run", *arguments, "--model_name_or_path", tmp_path / "model", "--augmentation", "crop")
    assert {line["label"] for line in table(tmp_path / "run" / "predictions.csv")} == {"$a$b_$", "caf\\udce9"}
    assert "caf\\udce9" in (tmp_path / "run" / "README.md").read_text()
    classify(tmp_path / "probe", *arguments, "--model_name_or_path", tmp_path / "model", "--protocol", "linear")
    done = start(
        "--output_dir", tmp_path / "no", *arguments, "--model_name_or_path", tmp_path / "model", script=SCRIPT
    )
    assert done.returncode == 2 and "RandAugment is for images of 1 or 3 channels, not 13" in done.stderr


def test_cached_features_are_of_one_encoder(labelled_flags, tmp_path, small_checkpoint):
    """Other weights compute other features, and so do the same weights with other heads."""
    config = json.loads((small_checkpoint / "config.json").read_text())
    shutil.copytree(small_checkpoint, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    arguments = [*labelled_flags, "--protocol", "linear", "--max_steps", 2]
    classify(tmp_path / "one", *arguments)
    arguments[arguments.index("--model_name_or_path") + 1] = tmp_path / "other"
    classify(tmp_path / "two", *arguments)
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    weights = load_file(small_checkpoint / "model.safetensors")
    weights["mae.cls_token"] = weights["mae.cls_token"].flip(2) * 9
    save_file(weights, tmp_path / "other" / "model.safetensors")
    classify(tmp_path / "three", *arguments)
    assert len({metrics(tmp_path / name)[-1]["loss"] for name in ("one", "two", "three")}) == 3


def test_short_run_has_a_short_warm_up(labelled_flags):
    for more, expected in (
        ([], {"warmup_ratio": 0.05, "warmup_epochs": 5}),  # by --max_steps
        (["--max_steps", -1], {"warmup_ratio": None, "warmup_epochs": 5}),
        (["--max_steps", -1, "--num_train_epochs", 20], {"warmup_ratio": None, "warmup_epochs": 1}),
        (["--warmup_epochs", 2], {"warmup_ratio": None, "warmup_epochs": 2}),
    ):
        argv = [str(flag) for flag in [*labelled_flags, *more]]
        if "--warmup_epochs" not in more:
            place = argv.index("--warmup_epochs")
            del argv[place : place + 2]
        flags_, _ = parse_arguments(ClassificationFlags, ClassificationArguments, description="", argv=argv)
        recipe = flags_.resolve(MAEConfig())
        assert {name: getattr(recipe, name) for name in expected} == expected


# The Hub


def test_classifier_is_pushed_with_its_card(labelled_flags, tmp_path, hub):
    done = classify(
        tmp_path / "run", *labelled_flags, "--push_to_hub", "--hub_model_id", "me/classifier", "--hub_license", "mit"
    )
    assert "Pushed step 12" in done.stdout
    files = set(HfApi().list_repo_files("me/classifier"))
    assert {"per_class.csv", "confusion_matrix.png", "loss_curve.png", "README.md", "model.safetensors"} <= files
    assert "predictions.csv" not in files  # with names of files
    copy = snapshot_download("me/classifier")
    card = ModelCard.load(f"{copy}/README.md")
    card.validate()
    (result,) = card.data.eval_results[:1]
    assert card.data.pipeline_tag == "image-classification" and result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(evaluations(tmp_path / "run")[-1]["eval_accuracy"], abs=1e-5)
    for text in ("all weights trained", "mixup 0.8", "9 classes (Activities, Animals", "| Layer decay | 0.65 |"):
        assert text in card.text, text
    answers = pipeline("image-classification", "me/classifier")(Image.new("RGB", (40, 40)))
    assert {answer["label"] for answer in answers} <= set(NAMES)


def test_evaluator_gives_the_saved_model_the_logged_scores(finetuned, labelled):
    """Run alone, as the script does at its end."""
    output_dir, _ = finetuned
    _, source = open_dataset(str(labelled))
    model = MAEForImageClassification.from_pretrained(output_dir).eval()
    images = EvaluationBatches(source, model.config, batch_size=5)
    mapped = map_images(lambda pixel_values, rows: {"logits": model(pixel_values).logits}, images, torch.device("cpu"))
    assert mapped.rows.tolist() == list(range(37)) and mapped.outputs["logits"].shape == (37, 9)
    answers = mapped.outputs["logits"].argmax(dim=1)
    assert [NAMES[answer] for answer in answers] == [
        line["prediction"] for line in table(output_dir / "predictions.csv")
    ]
