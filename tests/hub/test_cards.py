"""Model cards: what they say, that it is true, and that an edited one is known from a generated one."""

import re

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from test_loading import make_config, make_model

from mae.hub.cards import (
    PLACEHOLDER,
    RunFacts,
    converted_card,
    is_generated,
    pretraining_card,
    seal,
    training_time,
    usage,
    with_name,
    write_card,
)
from modeling_mae import MAEForImageClassification, MAEForPreTraining


RECIPE = {"adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.05, "seed": 42}
ENVIRONMENT = {
    "device": {"type": "cuda", "name": "NVIDIA H100"},
    "cores": 16,
    "processes": 8,
    "mixed_precision": "bf16",
    "packages": {"torch": "2.14.1", "transformers": "5.23.0"},
}


def make_card(step=100, evaluated=True, recipe=RECIPE, config=None, neighbours=None, **facts):
    values = {
        "config": config or make_config(),
        "num_parameters": 12345,
        "recipe": recipe,
        "environment": ENVIRONMENT,
        "data": "the images of leaves",
        "dataset": None,
        "num_images": 1000,
        "num_held_out": 50,
        "steps": 100,
        "epochs": 6.4,
        "batch_size": 64,
        "learning_rate": 1.5e-4,
        "warmup_epochs": 1,
        "base_model": None,
        "license": None,
    }
    metrics = [
        {"step": 10, "loss": 0.9, "images_per_second": 64.0},
        {"step": 100, "loss": 0.5, "images_per_second": 640},
    ]
    evaluations = [{"step": 100, "eval_loss": 0.4567}] if evaluated else []
    if neighbours is not None:  # a turn of their own
        evaluations.append({"step": 100, "eval_knn_accuracy": neighbours})
    return pretraining_card(RunFacts(**values | facts), step, metrics, evaluations)


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def validate(card):
    """By the Hub of the tests; before 2.0 the client sends cards to the real one wherever it is."""
    if huggingface_hub.__version__ >= "2":
        card.validate()


def test_an_edited_card_is_known():
    card = seal("---\nlicense: mit\n---\n\n# Title\n\ntext \n")
    assert is_generated(card) and is_generated(card.replace("\n", "\r\n")) and is_generated(card.rstrip())
    for edited in (
        card.replace("mit", "cc-by-4.0"),
        card.replace("text", "better text"),
        card + "\nMore.\n",
        card.replace("Generated", "generated"),
        "",
        "# Written by hand",
    ):
        assert not is_generated(edited)


def test_the_name_is_put_in():
    card = make_card()
    assert is_generated(card) and PLACEHOLDER in card
    pushed = with_name(card, "me/leaves")
    assert is_generated(pushed) and PLACEHOLDER not in pushed and 'from_pretrained("me/leaves", trust' in pushed
    assert metadata(pushed)["model-index"][0]["name"] == "me/leaves"
    assert 'from_pretrained("me/leaves", revision="dev", trust' in with_name(card, "me/leaves", "dev")
    edited = card.replace("# ", "# My ")
    assert not is_generated(with_name(edited, "me/leaves")) and "# My me/leaves" in with_name(edited, "me/leaves")


def test_a_card_of_ones_own_stays(tmp_path):
    write_card(tmp_path, seal("one"))
    write_card(tmp_path, seal("two"))
    assert (tmp_path / "README.md").read_text() == seal("two")
    (tmp_path / "README.md").write_text("mine")
    write_card(tmp_path, seal("three"))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_metadata():
    card = make_card(license="cc-by-4.0")
    found = metadata(card)
    assert found["license"] == "cc-by-4.0" and found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "image-feature-extraction" and "mae" in found["tags"]
    assert "datasets" not in found and "base_model" not in found
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.4567 and result["dataset"]["name"] == "the images of leaves"
    validate(ModelCard(card))

    recipe = RECIPE | {"dataset_revision": "abc", "model_name_or_path": "me/base", "model_revision": "def"}
    found = metadata(make_card(dataset="me/leaves", base_model="me/base", recipe=recipe))
    assert found["license"] == "unknown" and found["datasets"] == ["me/leaves"] and found["base_model"] == "me/base"
    assert found["model-index"][0]["results"][0]["dataset"]["revision"] == "abc"
    # What was trained on evaluates nothing.
    assert "model-index" not in metadata(make_card(num_held_out=None))


def test_what_it_says():
    card = make_card()
    for text in (
        "| Training images | 1,000 |",
        "| Hardware | 8 x NVIDIA H100 |",
        "| Precision | bfloat16, mixed |",
        "| Time | 19 s |",  # 10 steps of 64 images at 64/s, 90 at 640/s
        "| Throughput | 337 images/s |",
        "| Training, last logged step | 0.5000 |",
        "| 50 held-out images, masks drawn once | 0.4567 |",
        "](reconstruction.png)",
        "](loss_curve.png)",
        "@article{he2021masked",
    ):
        assert text in card, text
    assert "under way" not in card and "normalised" not in card.split("## Training")[1]
    assert "this is step 10 of 100" in make_card(step=10)
    normalised = make_card(config=make_config(norm_pix_loss=True))
    assert "It was trained on normalised pixels, and so predicts no patch's mean and contrast" in normalised
    assert "mean and contrast of each removed patch are the true ones" in normalised
    assert "No images were held out" in make_card(num_held_out=None)
    assert "reconstruction.png" not in make_card(evaluated=False)


def test_neighbours_are_told():
    card = make_card(neighbours=0.4321)
    assert "| Accuracy of 20 nearest neighbours, held-out images | 43.2% |" in card and "| 0.4567 |" in card
    (result,) = metadata(card)["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.4567, 0.4321]
    card = make_card(neighbours=0.4321, num_held_out=None)
    assert "nearest neighbours, training images" in card and "model-index" not in metadata(card)


def test_training_time_is_that_of_all_starts():
    lines = [{"step": step, "images_per_second": speed} for step, speed in ((10, 10.0), (20, 20.0), (25, 5.0))]
    assert training_time(lines, 4) == (4 + 2 + 4, 100)
    assert training_time([], 4) == (0, 0)


@pytest.mark.parametrize(
    "kind, fields, blocks",
    [
        ("pretraining", {}, 4),
        ("pretraining", {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}, 3),
        ("pretraining", {"num_channels": 5, "image_mean": [0.5] * 5, "image_std": [0.5] * 5}, 2),
        ("encoder", {"num_channels": 5, "image_mean": None, "image_std": None}, 2),
        ("classification_cls", {}, 2),
    ],
)
def test_every_block_runs(kind, fields, blocks, tmp_path, monkeypatch):
    model = make_model(kind, **fields)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((50, 40), 60).convert("RGB").save("photo.jpg")
    is_classifier = isinstance(model, MAEForImageClassification)
    text = usage(model.config, is_classifier, isinstance(model, MAEForPreTraining)).replace(PLACEHOLDER, "model")
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == blocks
    for block in found:
        names = {}
        exec(block, names)
        if "outputs" in names:
            assert names["outputs"][0].shape == ((1, 3) if is_classifier else (1, 17, 16))
        if "pictures" in names:
            assert names["pictures"].pasted.shape == (1, model.config.num_channels, 32, 32)


def test_converted():
    model = make_model("classification_mean")
    found = metadata(converted_card(model, "me/base", "me/base", "a report"))
    assert found["pipeline_tag"] == "image-classification" and found["base_model"] == "me/base"
    assert "base_model" not in metadata(converted_card(model, "base", None, "a report"))
