"""examples/run_semantic_segmentation.py: each protocol on small data, whole runs as a user starts them."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score, jaccard_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSemanticSegmentation, pipeline

from mae.hub.cards import PLACEHOLDER
from tests.support.masks import draw_discs, write_folders, write_masked_parquet
from tests.support.runs import exact, metrics, metrics_of, run, start
from tests.support.segmentation import SCRIPT, SHORT, segment


NAMES = ["background", "disc", "square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The flags of two pairs of folders, and of a table of names."""
    root = tmp_path_factory.mktemp("masks")
    images, masks = write_folders(root / "train", 16)
    others, other_masks = write_folders(root / "validation", 5, first=100)
    (root / "names.json").write_text(json.dumps(dict(enumerate(NAMES))))
    flags = ["--train_dir", images, "--train_mask_dir", masks, "--id2label", root / "names.json"]
    return [*flags, "--validation_dir", others, "--validation_mask_dir", other_masks]


@pytest.fixture(scope="module")
def flags(folders, small_checkpoint):
    return [*folders, "--model_name_or_path", small_checkpoint, *SHORT]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, flags):
    output_dir = tmp_path_factory.mktemp("runs") / "finetuned"
    return output_dir, segment(output_dir, *flags, "--save_predictions", "--report_to", "tensorboard")


def evaluations(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_finished_run_holds_model_log_and_tables(finetuned):
    output_dir, done = finetuned
    assert [line["step"] for line in metrics(output_dir)] == list(range(1, 9))
    assert [line["step"] for line in evaluations(output_dir)] == [4, 8]
    config = json.loads((output_dir / "config.json").read_text())
    assert list(config["id2label"].values()) == NAMES and config["segmentation_head"] == "linear"
    recipe = yaml.safe_load((output_dir / "recipe.yaml").read_text())
    wanted = {"layer_decay": 0.65, "drop_path_rate": 0.1, "color_jitter": 1.0, "adam_beta2": 0.999, "min_scale": 0.5}
    assert {name: recipe[name] for name in wanted} == wanted
    count = sum(tensor.numel() for name, tensor in load_file(output_dir / "model.safetensors").items()
                if "running" not in name and "batches" not in name)  # fmt: skip
    assert f"fine-tuning of {count:,} of {count:,} parameters on 16 images of 3 classes, 5 valid" in done.stdout
    assert "3 classes, by their share of the pixels that count: background" in done.stdout
    for name in ("loss_curve.png", "confusion_matrix.png", "segmentation.png"):
        picture = np.array(Image.open(output_dir / name).convert("RGB"))
        assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_reported_scores_are_those_of_the_saved_model_by_scikit_learn(finetuned):
    output_dir, _ = finetuned
    model = AutoModelForSemanticSegmentation.from_pretrained(output_dir)
    truths, guesses = [], []
    for number in range(100, 105):
        image, truth = draw_discs(number)
        name = f"{'deep/' if number % 2 else ''}{number:03}"
        if number % 3 == 2:
            path = [flag for flag in finetuned[1].args if str(flag).endswith("validation/images")][0] / f"{name}.JPG"
            image = np.asarray(Image.open(path))
        guess = model.segment(torch.from_numpy(image.copy()).permute(2, 0, 1)).numpy()
        saved = Image.open(output_dir / "predictions" / f"{name}.png")
        assert saved.mode == "P" and (np.asarray(saved) == guess).mean() > 0.999
        truths.append(truth.ravel())
        guesses.append(np.asarray(saved).ravel())
    truth, guess, last = np.concatenate(truths), np.concatenate(guesses), evaluations(output_dir)[-1]
    assert last["eval_mean_iou"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert last["eval_mean_dice"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert last["eval_pixel_accuracy"] == pytest.approx((truth == guess).mean())
    iou = [float(line["iou"]) for line in table(output_dir / "per_class.csv")]
    assert iou == pytest.approx(jaccard_score(truth, guess, average=None), abs=1e-6)
    results = json.loads((output_dir / "train_results.json").read_text())
    assert results["eval_mean_iou"] == last["eval_mean_iou"]


def test_scores_are_tracked(finetuned):
    events = EventAccumulator(str(finetuned[0] / "logs" / "mae")).Reload().Scalars("eval/mean_iou")
    logged = [line["eval_mean_iou"] for line in evaluations(finetuned[0])]
    assert [event.step for event in events] == [4, 8]
    assert [event.value for event in events] == pytest.approx(logged, abs=1e-6)


def test_card_tells_the_scores_and_its_code_runs(finetuned, tmp_path, monkeypatch):
    output_dir, last = finetuned[0], evaluations(finetuned[0])[-1]
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.pipeline_tag == "image-segmentation"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["Mean IoU"] == pytest.approx(last["eval_mean_iou"], abs=1e-5)
    assert f"| Mean IoU | {last['eval_mean_iou']:.2%} |" in card.text and "segmentation.png" in card.text
    assert "background, disc, square" in card.text and "LARS" not in card.text
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_discs(7, 70, 90)[0]).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    (tiled,) = [block for block in blocks if "model.segment" in block]
    assert len([line for line in tiled.splitlines() if line and "import" not in line and "print" not in line]) <= 5
    for block in blocks:
        exec(block.replace(PLACEHOLDER, str(output_dir)), found := {})
        if block is tiled:
            assert found["mask"].shape == (70, 90)


def test_pipeline_finds_the_classes(finetuned):
    answer = pipeline("image-segmentation", str(finetuned[0]))(Image.fromarray(draw_discs(100)[0]))
    assert {each["label"] for each in answer} <= set(NAMES) and answer[0]["mask"].size == (64, 48)


def changed(output_dir, start_from):
    """Names of the encoder's tensors that are not bit-equal to those of the model that training started from."""
    own, other = load_file(output_dir / "model.safetensors"), load_file(start_from / "model.safetensors")
    return {name for name, tensor in own.items() if name.startswith("mae.") and not torch.equal(tensor, other[name])}


def test_fine_tuning_changes_the_whole_encoder(finetuned, small_checkpoint):
    names = {name for name in load_file(finetuned[0] / "model.safetensors") if name.startswith("mae.")}
    assert changed(finetuned[0], small_checkpoint) == names


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [(["linear"], set()), (["partial", "--num_trainable_blocks", 1], {"mae.blocks.2", "mae.norm"})],
)
def test_other_protocols_change_no_more_than_they_say(flags, small_checkpoint, tmp_path, protocol, expected):
    segment(tmp_path / "run", *flags, "--protocol", *protocol, "--max_steps", 2)
    names = changed(tmp_path / "run", small_checkpoint)
    assert {
        ".".join(name.split(".")[:3]) if "blocks" in name else name.rsplit(".", 1)[0] for name in names
    } == expected


def test_upernet_from_scratch_on_parquet_learns(tmp_path):
    write_masked_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", range(16))
    write_masked_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", range(50, 54))
    sizes = "hidden_size=24,num_hidden_layers=4,num_attention_heads=3,intermediate_size=48,segmentation_hidden_size=16"
    arguments = [
        "--dataset_name",
        tmp_path / "data",
        "--from_scratch",
        "--config_overrides",
        sizes,
        "--image_size",
        32,
    ]
    arguments += ["--patch_size", 8, "--rot90", "--class_weights", "balanced", "--dataloader_num_workers", 1]
    segment(tmp_path / "run", *arguments, *SHORT, "--segmentation_head", "upernet", "--max_steps", 40,
            "--base_learning_rate", 0.4, "--lanes", 4)  # fmt: skip
    lines, config = metrics(tmp_path / "run"), json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["segmentation_head"] == "upernet" and list(config["id2label"].values()) == ["0", "1", "2"]
    assert len(config["class_weights"]) == 3 and min(config["class_weights"]) < 1 < max(config["class_weights"])
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert evaluations(tmp_path / "run")[-1]["eval_mean_iou"] > 0.5


def unfinish(output_dir, copy, step):
    """A copy of a finished run as if it had been killed after the checkpoint of a step."""
    shutil.copytree(output_dir, copy)
    (copy / "train_results.json").unlink()
    for path in copy.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)


def test_resume_is_exact(finetuned, flags, tmp_path):
    unfinish(finetuned[0], tmp_path / "run", step=6)
    done = segment(tmp_path / "run", *flags, "--save_predictions", "--report_to", "tensorboard")
    assert "Resuming after step 6." in done.stdout
    assert exact(metrics(tmp_path / "run")) == exact(metrics(finetuned[0]))
    assert evaluations(tmp_path / "run") == evaluations(finetuned[0])
    models = [load_file(path / "model.safetensors") for path in (tmp_path / "run", finetuned[0])]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def test_other_masks_are_another_run(finetuned, flags, tmp_path):
    unfinish(finetuned[0], tmp_path / "run", step=6)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"0": "background", "1": "circle", "2": "square"}))
    done = start("--output_dir", tmp_path / "run", *flags, "--id2label", names, script=SCRIPT)
    assert done.returncode == 2 and "data.classes was" in done.stderr


def test_two_processes_evaluate_as_one(finetuned, flags, tmp_path):
    """The same model: a run that was killed in its last evaluation resumes with it."""
    again = tmp_path / "again"
    unfinish(finetuned[0], again, step=8)
    lines = (again / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (again / "evaluations.jsonl").write_text(lines[0])
    (again / "per_class.csv").unlink()
    shutil.rmtree(again / "predictions")
    arguments = ["--output_dir", again, *flags, "--save_predictions", "--per_device_train_batch_size", 2]
    done = run(*arguments, processes=2, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    one, two = evaluations(finetuned[0])[-1], evaluations(again)[-1]
    assert two == one | {"eval_loss": pytest.approx(one["eval_loss"], rel=1e-6)}
    assert (again / "per_class.csv").read_text() == (finetuned[0] / "per_class.csv").read_text()
    for path in (finetuned[0] / "predictions").rglob("*.png"):
        assert (again / path.relative_to(finetuned[0])).read_bytes() == path.read_bytes()


def test_recipe_of_a_run_repeats_it(finetuned, tmp_path):
    segment(tmp_path / "again", "--recipe", finetuned[0] / "recipe.yaml", "--logging_steps", 1)
    assert exact(metrics(tmp_path / "again")) == exact(metrics(finetuned[0]))


def test_segmenter_can_be_trained_further(finetuned, folders, tmp_path):
    done = segment(tmp_path / "run", *folders, "--model_name_or_path", finetuned[0], *SHORT, "--max_steps", 1)
    assert "newly initialised" not in done.stdout


def test_split_of_the_training_images_is_held_out_with_its_masks(folders, small_checkpoint, tmp_path):
    arguments = [*folders[:6], "--train_val_split", 0.25, "--model_name_or_path", small_checkpoint, *SHORT]
    done = segment(tmp_path / "run", *arguments, "--max_steps", 1, "--save_predictions", "--max_train_samples", 8)
    assert "on 8 images of 3 classes, 4 validation images" in done.stdout
    truth = np.concatenate([draw_discs(int(path.stem))[1].ravel() for path in
                            (tmp_path / "run" / "predictions").rglob("*.png")])  # fmt: skip
    lines = table(tmp_path / "run" / "per_class.csv")
    assert [int(line["pixels"]) for line in lines] == np.bincount(truth, minlength=3).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_mask_dir", "nowhere"], "--train_mask_dir nowhere does not exist"),
        (["--min_scale", 3], "--min_scale 3 must not exceed --max_scale 2"),
        (["--ignore_value", -2], "--ignore_value -2"),
        (["--id2label", "nowhere.json"], "--id2label nowhere.json cannot be read"),
        (["--class_weights", 1, 2], "--class_weights 1 2 must be balanced, or 3 numbers"),
        (["--segmentation_head", "unet"], "--segmentation_head unet must be one of linear, upernet"),
        (["--segmentation_head", "upernet"], "--segmentation_head upernet: .* at least 4 blocks instead of 3"),
        (["--config_overrides", "feature_pyramid=True"], "feature_pyramid cannot be set"),
        (["--mask_column_name", "label"], "--mask_column_name label is for --dataset_name"),
        (["--num_trainable_blocks", 2], "--protocol partial"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(flags, tmp_path, arguments, message):
    done = start("--output_dir", tmp_path / "run", *flags, *arguments, script=SCRIPT)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    *_, line = done.stderr.strip().splitlines()  # after a progress bar
    assert line.startswith("error: ") and re.search(message, line), line


def test_mask_that_changes_during_a_run_is_one_line(folders, small_checkpoint, tmp_path):
    """Masks are checked before training, and again when they are used."""
    images, masks = write_folders(tmp_path / "data", 8)
    arguments = ["--train_dir", images, "--train_mask_dir", masks, "--train_val_split", 0.25]
    segment(tmp_path / "run", *arguments, "--model_name_or_path", small_checkpoint, *SHORT, "--max_steps", 1)
    for path in masks.rglob("*.png"):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    done = start("--output_dir", tmp_path / "other", *arguments, "--model_name_or_path", small_checkpoint, *SHORT,
                 script=SCRIPT)  # fmt: skip
    assert done.returncode == 2 and "8 masks differ in size" in done.stderr


def test_segmenter_is_pushed_and_segments_from_the_hub(flags, tmp_path, hub):
    done = segment(tmp_path / "run", *flags, "--push_to_hub", "--hub_model_id", "me/discs", "--max_steps", 2)
    assert "Pushed step 2" in done.stdout
    files = set(HfApi().list_repo_files("me/discs"))
    assert {"per_class.csv", "confusion_matrix.png", "segmentation.png", "README.md", "dense_mae.py"} <= files
    model = AutoModelForSemanticSegmentation.from_pretrained("me/discs", trust_remote_code=True)
    own = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    pixels = torch.rand(1, 3, *[model.config.image_size] * 2)
    assert torch.equal(model.eval()(pixels).logits, own.eval()(pixels).logits)
    answer = pipeline("image-segmentation", "me/discs")(Image.fromarray(draw_discs(100)[0]))
    assert {each["label"] for each in answer} <= set(NAMES) and answer[0]["mask"].size == (64, 48)
