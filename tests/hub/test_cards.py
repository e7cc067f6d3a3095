"""Model cards: their facts are true, their code runs, and an edited card differs from a generated one."""

import re

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from configuration_mae import MAEConfig, to_pair
from mae.data.decoding import decode_image
from mae.hub.cards import (
    PLACEHOLDER,
    RunFacts,
    classification_card,
    converted_card,
    is_generated,
    pretraining_card,
    seal,
    training_time,
    with_name,
    write_card,
)
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
)
from tests.support.data import ROOT


AUGMENTATION = {
    "crop": "random_resized", "min_crop_area": 0.2, "max_crop_area": 1.0, "horizontal_flip": 0.5, "vertical_flip": 0.0,
    "rot90": False, "color_jitter": 0.0, "grayscale_prob": 0.0,
}  # fmt: skip
RECIPE = {"adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.05, "seed": 42} | AUGMENTATION
CLASSIFICATION = RECIPE | {
    "protocol": "finetune", "num_trainable_blocks": 1, "layer_decay": 0.65, "drop_path_rate": 0.1,
    "label_smoothing_factor": 0.0, "augmentation": "randaugment", "randaugment_magnitude": 9.0,
    "random_erasing": 0.25, "mixup_alpha": 0.8, "cutmix_alpha": 0.0,
}  # fmt: skip
ENVIRONMENT = {
    "device": {"type": "cuda", "name": "NVIDIA H100"},
    "cores": 16,
    "processes": 8,
    "mixed_precision": "bf16",
    "packages": {"torch": "2.14.1", "transformers": "5.23.0"},
}
METRICS = [
    {"step": 10, "loss": 0.9, "images_per_second": 64.0},
    {"step": 100, "loss": 0.5, "images_per_second": 640},
]
# A card that version 0.1.0 generated.
GENERATED_BY_0_1_0 = (
    "---\nlicense: mit\n---\n\n# OWNER/NAME\n\nText with an umlaut: ä.\n\n"
    "<!-- Generated, 3872c5d79eafe4038935d0539c15c9e1: an edited card is not overwritten. -->\n"
)


def make_config(**fields):
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    tiny |= {f"decoder_{name}": value for name, value in decoder.items()}
    return MAEConfig(**{**tiny, "image_size": 32, "patch_size": 8, **fields})


def make_facts(**changed):
    facts = {
        "config": make_config(),
        "num_parameters": 12345,
        "recipe": RECIPE,
        "environment": ENVIRONMENT,
        "data": "the images of leaves",
        "dataset": None,
        "num_images": 1000,
        "num_validation_images": 50,
        "steps": 100,
        "epochs": 6.4,
        "batch_size": 64,
        "learning_rate": 1.5e-4,
        "warmup_epochs": 1,
        "base_model": None,
        "license": None,
    }
    return RunFacts(**facts | changed)


def make_pretraining_card(step=100, evaluated=True, neighbours=None, **facts):
    evaluations = [{"step": 100, "eval_loss": 0.4567}] if evaluated else []
    if neighbours is not None:  # logged in a line of its own
        evaluations.append({"step": 100, "eval_knn_accuracy": neighbours})
    return pretraining_card(make_facts(**facts), step, METRICS, evaluations)


def make_classification_card(evaluations=None, recipe=CLASSIFICATION, **fields):
    config = make_config(**{"num_labels": 3, "pooling": "mean", **fields})
    if evaluations is None:
        evaluations = [{"step": 100, "eval_accuracy": 0.9, "eval_accuracy_top5": 1.0, "eval_loss": 0.3}]
    return classification_card(make_facts(config=config, recipe=recipe), 100, METRICS, evaluations)


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def metrics_of(card):
    (result,) = metadata(card)["model-index"][0]["results"]
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


def row(card, name):
    """The value of a row of the card's tables, or None."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", card, re.MULTILINE)
    return found and found[1]


def python_blocks(card):
    return re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)


def validate(card):
    """Send a card to the Hub of the tests. Before version 2 the client always sends it to the real one."""
    if huggingface_hub.__version__ >= "2":
        card.validate()


# The seal


def test_card_with_other_line_endings_is_still_generated():
    card = seal("---\nlicense: mit\n---\n\n# Title\n\ntext \n")
    assert is_generated(card) and is_generated(card.replace("\n", "\r\n")) and is_generated(card.rstrip())


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("mit", "cc-by-4.0"),
        lambda card: card.replace("text", "better text"),
        lambda card: card + "\nMore.\n",
        lambda card: card.replace("Generated", "generated"),
        lambda card: "",
        lambda card: "# Written by hand",
    ],
    ids=["metadata", "text", "more", "seal", "empty", "own"],
)
def test_edited_card_is_not_generated(edit):
    assert not is_generated(edit(seal("---\nlicense: mit\n---\n\n# Title\n\ntext \n")))


def test_seal_is_the_same_as_in_earlier_versions():
    assert is_generated(GENERATED_BY_0_1_0)
    assert not is_generated(GENERATED_BY_0_1_0.replace("ä", "ae"))
    body = GENERATED_BY_0_1_0.split("\n<!--")[0]
    assert seal(body) == GENERATED_BY_0_1_0


def test_written_card_replaces_only_a_generated_one(tmp_path):
    path = tmp_path / "README.md"
    write_card(tmp_path, seal("one"))
    write_card(tmp_path, seal("two"))
    assert path.read_text() == seal("two")
    path.write_text(GENERATED_BY_0_1_0, encoding="utf-8")
    write_card(tmp_path, seal("three"))
    assert path.read_text() == seal("three")
    path.write_bytes(b"mine, in another encoding: \xe4")
    write_card(tmp_path, seal("four"))
    assert path.read_bytes() == b"mine, in another encoding: \xe4"
    assert list(tmp_path.iterdir()) == [path]


# The name of the repository


def test_name_replaces_the_placeholder_and_renews_the_seal():
    card = make_pretraining_card()
    assert is_generated(card) and PLACEHOLDER in card
    pushed = with_name(card, "me/leaves")
    assert is_generated(pushed) and PLACEHOLDER not in pushed
    assert 'from_pretrained("me/leaves", trust' in pushed
    assert metadata(pushed)["model-index"][0]["name"] == "me/leaves"


def test_name_with_a_branch_pins_it_in_the_code():
    pushed = with_name(make_pretraining_card(), "me/leaves", "dev")
    assert 'from_pretrained("me/leaves", revision="dev", trust' in pushed and "# me/leaves\n" in pushed


def test_name_in_an_edited_card_leaves_the_rest_and_adds_no_seal():
    edited = make_pretraining_card().replace("# OWNER", "# My OWNER")
    named = with_name(edited, "me/leaves")
    assert "# My me/leaves" in named and not is_generated(named)


# Metadata


def test_metadata_of_local_images_names_licence_task_and_score():
    card = make_pretraining_card(license="cc-by-4.0")
    found = metadata(card)
    assert found["license"] == "cc-by-4.0" and found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "image-feature-extraction" and "mae" in found["tags"]
    assert "datasets" not in found and "base_model" not in found
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == "the images of leaves"
    assert list(metrics_of(card).values()) == [0.4567]
    validate(ModelCard(card))


def test_metadata_of_a_dataset_and_a_model_of_the_hub_name_both_with_commits():
    recipe = RECIPE | {"dataset_revision": "abc", "model_name_or_path": "me/base", "model_revision": "def"}
    card = make_pretraining_card(dataset="me/leaves", base_model="me/base", recipe=recipe)
    found = metadata(card)
    assert found["license"] == "unknown" and found["datasets"] == ["me/leaves"] and found["base_model"] == "me/base"
    assert found["model-index"][0]["results"][0]["dataset"]["revision"] == "abc"
    assert "`abc`" in row(card, "Data") and "`def`" in row(card, "Initial weights")


def test_metadata_has_no_score_on_training_images():
    assert "model-index" not in metadata(make_pretraining_card(num_validation_images=None, neighbours=0.4))


def test_classification_metadata_has_accuracy_or_mean_average_precision():
    card = make_classification_card()
    assert metrics_of(card) == {"Accuracy": 0.9, "Top-5 accuracy": 1.0}
    assert metadata(card)["pipeline_tag"] == "image-classification"
    validate(ModelCard(card))
    several = make_classification_card(
        [{"step": 100, "eval_mean_average_precision": 0.6, "eval_loss": 0.3}],
        problem_type="multi_label_classification",
    )
    assert metrics_of(several) == {"Mean average precision": 0.6}


def test_converted_metadata_names_the_original_only_if_it_is_on_the_hub():
    model = MAEForImageClassification(make_config(num_labels=3))
    found = metadata(converted_card(model, "me/base", "me/base", "a report"))
    assert found["pipeline_tag"] == "image-classification" and found["base_model"] == "me/base"
    assert "base_model" not in metadata(converted_card(model, "base", None, "a report"))


# Text


def test_run_card_lists_data_hardware_speed_and_losses():
    card = make_pretraining_card()
    assert row(card, "Training images") == "1,000"
    assert row(card, "Parameters") == "12,345"
    assert row(card, "Hardware") == "8 x NVIDIA H100"
    assert row(card, "Precision") == "bfloat16, mixed"
    assert row(card, "Time") == "19 s"  # 10 steps of 64 images at 64/s, 90 at 640/s
    assert row(card, "Throughput") == "337 images/s"
    assert row(card, "Steps") == "100" and row(card, "Epochs") == "6.4"
    assert row(card, "Software") == "torch 2.14.1, transformers 5.23.0"
    assert row(card, "Loss, training, last logged step") == "0.5000"
    assert row(card, "Loss, 50 validation images, fixed masks") == "0.4567"
    assert "](reconstruction.png)" in card and "](loss_curve.png)" in card and "@article{he2021masked" in card


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "random resized crop (0.2 to 1 of the area), horizontal flip"),
        ({"crop": "none", "horizontal_flip": 0}, "whole image"),
        (
            {"crop": "random", "vertical_flip": 0.5, "rot90": True, "color_jitter": 0.5, "grayscale_prob": 0.2},
            "random crop without a change of scale, horizontal flip, vertical flip, turns by 90 degrees, "
            "colour jitter 0.5, grey with probability 0.2",
        ),
    ],
)
def test_card_says_how_images_were_augmented(changes, words):
    assert row(make_pretraining_card(recipe=RECIPE | changes), "Augmentation") == words


def test_run_card_shows_only_the_options_that_were_used():
    assert row(make_pretraining_card(), "Gradient clipping") is None
    card = make_pretraining_card(recipe=RECIPE | {"max_grad_norm": 1.0, "ema_decay": 0.999})
    assert row(card, "Gradient clipping") == "1.0"
    assert row(card, "Decay of the averaged weights (EMA)") == "0.999"


def test_card_of_a_checkpoint_says_which_step_it_is():
    card = make_pretraining_card(step=10)
    assert "step 10 of 100" in card and row(card, "Steps") == "10 of 100" and row(card, "Epochs") == "0.6"
    assert "step 100 of 100" not in make_pretraining_card()


def test_card_before_the_first_evaluation_shows_no_figure():
    assert "reconstruction.png" not in make_pretraining_card(evaluated=False)


def test_card_of_normalised_pixels_explains_the_figures():
    normalised = make_pretraining_card(config=make_config(norm_pix_loss=True)).split("## Limitations")
    assert all("mean and contrast" in part for part in normalised)
    assert "mean and contrast" not in make_pretraining_card()


def test_card_without_validation_images_says_so():
    assert "no validation images" in make_pretraining_card(num_validation_images=None)
    assert "no validation images" not in make_pretraining_card()


def test_card_lists_nearest_neighbours_with_their_number_and_split():
    card = make_pretraining_card(neighbours=0.4321, num_neighbours=7)
    assert row(card, "Accuracy of 7 nearest neighbours, validation images") == "43.2%"
    assert list(metrics_of(card).values()) == [0.4567, 0.4321]
    card = make_pretraining_card(neighbours=0.4321, num_validation_images=None)
    assert row(card, "Accuracy of 20 nearest neighbours, training images") == "43.2%"


def test_classification_card_lists_protocol_augmentation_and_classes():
    card = make_classification_card(num_labels=25)
    assert row(card, "Accuracy") == "90.00%" and row(card, "Loss, validation images") == "0.3000"
    assert row(card, "Layer decay") == "0.65" and row(card, "Drop path") == "0.1"
    assert row(card, "Label smoothing") is None
    assert row(card, "Features") == "mean of the patch tokens"
    for part in ("RandAugment 9 of 10", "erasing 0.25", "mixup 0.8"):
        assert part in row(card, "Augmentation")
    assert "cutmix" not in card
    assert "LABEL_19 and 5 more" in card and "LABEL_20" not in card


@pytest.mark.parametrize(
    "protocol, blocks, optimizer, words",
    [("linear", 1, "LARS", "linear probe"), ("partial", 0.5, "AdamW", "0.5 blocks"), ("finetune", 1, "AdamW", "all")],
)
def test_classification_card_describes_the_protocol(protocol, blocks, optimizer, words):
    recipe = CLASSIFICATION | {"protocol": protocol, "num_trainable_blocks": blocks, "augmentation": "none"}
    card = make_classification_card(recipe=recipe)
    assert words in row(card, "Protocol") and row(card, "Optimizer").startswith(optimizer)
    assert row(card, "Augmentation").startswith("none")


def test_card_of_several_labels_has_no_confusion_matrix():
    several = make_classification_card(
        [{"step": 100, "eval_mean_average_precision": 0.6}], problem_type="multi_label_classification"
    )
    assert row(several, "Mean average precision") == "0.6000" and "confusion_matrix.png" not in several
    assert "confusion_matrix.png" in make_classification_card()


def test_text_of_users_is_no_template():
    """A name with the marks of Jinja stands in the card as it is."""
    assert "{{ 1 + 1 }} {% raw %}" in make_pretraining_card(data="images of {{ 1 + 1 }} {% raw %}")


def test_converted_card_shows_original_and_report():
    card = converted_card(MAEModel(make_config()), "base.pth", None, "one\n  two")
    assert "`base.pth`" in card and "\n    one\n      two\n" in card


@pytest.mark.parametrize("make", [make_pretraining_card, make_classification_card])
def test_card_has_neither_long_gaps_nor_leftovers_of_its_template(make):
    card = make()
    text = re.sub(r"^```.*?^```", "(code)", card, flags=re.DOTALL | re.MULTILINE)
    assert "\n\n\n" not in text and not re.search(r"\{[{%#]|[}%#]\}|None|Undefined", text)
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert {line.count("|") for line in table.splitlines()} == {3}


def test_training_time_adds_up_all_lines():
    lines = [{"step": step, "images_per_second": speed} for step, speed in ((10, 10.0), (20, 20.0), (25, 5.0))]
    assert training_time(lines, 4) == (4 + 2 + 4, 100)
    assert training_time([], 4) == (0, 0)


# Code


@pytest.mark.parametrize(
    "cls, fields, blocks",
    [
        (MAEForPreTraining, {}, 5),
        (MAEForPreTraining, {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}, 4),
        (MAEForPreTraining, {"num_channels": 5, "image_mean": [0.5] * 5, "image_std": [0.5] * 5}, 2),
        (MAEModel, {"num_channels": 5, "image_size": (32, 40)}, 2),
        (MAEForImageClassification, {"num_labels": 3}, 3),
        (MAEForSemanticSegmentation, {"num_labels": 3}, 4),
        (MAEForSemanticSegmentation, {"num_labels": 3, "num_channels": 5, "image_size": (32, 40)}, 1),
        (MAEBackbone, {}, 4),
    ],
)
def test_every_block_of_a_card_runs(cls, fields, blocks, tmp_path, monkeypatch):
    model = cls(make_config(**fields))
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((50, 40), 60).convert("RGB").save("photo.jpg")
    found = python_blocks(converted_card(model, "original", None, "a report").replace(PLACEHOLDER, "model"))
    assert len(found) == blocks
    for block in found:
        names = {}
        exec(block, names)
        if "outputs" in names:
            shapes = {
                MAEForImageClassification: (1, 3),
                MAEForSemanticSegmentation: (1, 3, *to_pair(model.config.image_size)),
            }
            assert names["outputs"][0].shape == shapes.get(cls, (1, 1 + model.config.num_patches, 16))
        if "mask" in names:
            assert names["mask"].shape == (40, 50)
        if "pictures" in names:
            assert names["pictures"].pasted.shape == (1, model.config.num_channels, 32, 32)


def test_blocks_of_run_cards_are_those_of_the_model():
    pretraining = converted_card(MAEForPreTraining(make_config()), "", None, "")
    assert python_blocks(make_pretraining_card()) == python_blocks(pretraining)
    classifier = converted_card(MAEForImageClassification(make_config(num_labels=3)), "", None, "")
    assert python_blocks(make_classification_card()) == python_blocks(classifier)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.effect_noise((48, 40), 60).convert("RGB").save(path, "PNG", exif=exif)


def transparent(path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def sixteen_bits(path):
    Image.fromarray((np.mgrid[:40, :48][1] * 1300).astype(np.uint16)).save(path, "PNG")


@pytest.mark.parametrize("write", [turned, transparent, sixteen_bits])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_image_loaded_as_the_card_says_is_the_image_of_training(write, num_channels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("photo.jpg")
    mean = [0.5] * num_channels
    config = make_config(num_channels=num_channels, image_mean=mean, image_std=mean)
    *_, block = python_blocks(converted_card(MAEModel(config), "", None, ""))
    names = {}
    exec(block, names)
    pixels = torch.from_numpy(np.array(names["image"])).view(names["image"].height, names["image"].width, -1)
    assert torch.equal(pixels.permute(2, 0, 1), decode_image("photo.jpg", num_channels))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_first_block_turns_a_photograph_upright(num_channels, tmp_path, monkeypatch):
    mean = [0.5] * num_channels
    model = MAEModel(make_config(num_channels=num_channels, image_mean=mean, image_std=mean))
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    turned("photo.jpg")
    names = {}
    exec(python_blocks(converted_card(model, "", None, "").replace(PLACEHOLDER, "model"))[0], names)
    assert names["image"].size == (40, 48)


def test_required_version_of_transformers_is_that_of_the_package():
    (version,) = re.findall(r"transformers>=(\S+)", (ROOT / "setup.cfg").read_text())
    assert f"transformers {version} or later" in make_pretraining_card()
