"""
Model cards: the README.md of a model, which tells what it is, how it was made and how to use it.

The text of the cards is in templates/. A generated card ends with a seal, a line that holds a hash of the rest: a card
that somebody has edited does not match it, and is never overwritten.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from configuration_mae import FILE_FIELDS, MAEConfig, to_pair
from mae.utils.files import CARD_FILE, write_text
from mae.utils.hashing import hash_text
from mae.utils.text import listed
from modeling_mae import (
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEPreTrainedModel,
)


# Stands for the repository's name in a card that has not been pushed.
PLACEHOLDER = "OWNER/NAME"
_SEAL = re.compile(r"\n<!-- Generated, (\w{32}): an edited card is not overwritten\. -->\n\Z")
_TAGS = ["mae", "masked-autoencoder", "vision"]


def seal(text: str) -> str:
    """A card with its seal as the last line."""
    return f"{text.rstrip()}\n\n<!-- Generated, {_hash(text)}: an edited card is not overwritten. -->\n"


def is_generated(text: str) -> bool:
    """Whether a card has an intact seal: it was generated, and nobody has edited it."""
    text = text.replace("\r\n", "\n").rstrip() + "\n"
    found = _SEAL.search(text)
    return found is not None and found[1] == _hash(text[: found.start()])


def _hash(text: str) -> str:
    # Git and editors change the ends of lines and of the file, which is no edit.
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hash_text("\n".join(lines), size=16)


def with_name(text: str, repo_id: str, revision: str | None = None) -> str:
    """
    Replace [`PLACEHOLDER`] by the name of a repository.

    Args:
        revision: A branch other than main, which the code blocks of the card then load.
    """
    generated = is_generated(text)
    pinned = f'"{repo_id}"' + (f', revision="{revision}"' if revision is not None else "")
    text = text.replace(f'"{PLACEHOLDER}"', pinned).replace(PLACEHOLDER, repo_id)
    return seal(_SEAL.sub("", text)) if generated else text


def write_card(folder: Path, text: str) -> None:
    """Write README.md, unless there is one that somebody has written or edited."""
    path = folder / CARD_FILE
    if not path.exists() or is_generated(path.read_text(encoding="utf-8", errors="replace")):
        write_text(path, text)


@dataclass
class RunFacts:
    """
    Facts of a training run for its card.

    Args:
        num_parameters: Of the whole model.
        recipe: The flags of the run.
        environment: The result of `describe_environment`.
        data: A name of the images, in words.
        dataset: Their dataset on the Hub, at the recipe's `dataset_revision`; None for images from elsewhere.
        num_images: Number of training images.
        num_validation_images: Number of validation images; None if training images are evaluated.
        steps, epochs: Length of the whole run.
        batch_size: Images per step, over all devices.
        learning_rate: Its peak.
        warmup_epochs: Epochs until the peak.
        base_model: The model on the Hub that training started from, at the recipe's `model_revision`.
        license: Its identifier on the Hub.
        parts: Name, commit, number of images and weight of each data set of a mixture.
        num_neighbours: The k of k-NN accuracy.
    """

    config: MAEConfig
    num_parameters: int
    recipe: dict[str, Any]
    environment: dict[str, Any]
    data: str
    dataset: str | None
    num_images: int
    num_validation_images: int | None
    steps: int
    epochs: float
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    base_model: str | None
    license: str | None
    num_neighbours: int = 20
    parts: Sequence[dict[str, Any]] = ()


def pretraining_card(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> str:
    """
    The card of a pre-trained model, at the end of training or before.

    Args:
        step: The step of the model.
        metrics, evaluations: The lines of metrics.jsonl and evaluations.jsonl up to this step.
    """
    of_images = " of standardised images" if facts.config.standardize_images else ""
    target = ("pixels normalised within each patch" if facts.config.norm_pix_loss else "pixels") + of_images
    split = "validation" if facts.num_validation_images else "training"
    images = f"{facts.num_validation_images} validation images" if facts.num_validation_images else "training images"
    neighbours_metric = f"Accuracy of {facts.num_neighbours} nearest neighbours, {split} images"
    eval_loss, neighbours = _last(evaluations, "eval_loss"), _last(evaluations, "eval_knn_accuracy")
    probe = _last(evaluations, "eval_probe_accuracy")
    results = {}
    if facts.num_validation_images:  # scores on training images evaluate nothing
        results[f"Mean squared error of masked patches ({target}), {images}"] = "mse", eval_loss
        results[neighbours_metric] = "accuracy", neighbours
        results[f"Accuracy of a linear classifier on features, {split} images"] = "accuracy", probe
    return _render(
        "pretraining.md",
        _run_metadata(facts, "image-feature-extraction", results, ["self-supervised-learning"]),
        **_run_variables(facts, step, metrics, evaluations),
        **_usage_variables(facts.config, MAEForPreTraining),
        target=target,
        split=split,
        evaluated_images=images,
        neighbours=neighbours,
        probe=probe,
        neighbours_metric=neighbours_metric,
    )


def classification_card(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> str:
    """The card of a classifier. The arguments are those of [`pretraining_card`]."""
    config = facts.config
    results = {
        "Accuracy": ("accuracy", _last(evaluations, "eval_accuracy")),
        "Top-5 accuracy": ("accuracy", _last(evaluations, "eval_accuracy_top5")),
        "Mean average precision": ("mean_average_precision", _last(evaluations, "eval_mean_average_precision")),
    }
    labels = [config.id2label[index] for index in range(config.num_labels)]
    return _render(
        "classification.md",
        _run_metadata(facts, "image-classification", results, []),
        **_run_variables(facts, step, metrics, evaluations),
        **_usage_variables(config, MAEForImageClassification),
        scores={name: score for name, (_, score) in results.items() if score is not None},
        labels=labels,
        class_names=listed(labels, 20),
        several_labels=config.problem_type == "multi_label_classification",
    )


def segmentation_card(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> str:
    """The card of a segmenter. The arguments are those of [`pretraining_card`]."""
    config = facts.config
    results = {
        "Mean IoU": ("mean_iou", _last(evaluations, "eval_mean_iou")),
        "Mean Dice": ("dice", _last(evaluations, "eval_mean_dice")),
        "Pixel accuracy": ("accuracy", _last(evaluations, "eval_pixel_accuracy")),
    }
    labels = [config.id2label[index] for index in range(config.num_labels)]
    return _render(
        "segmentation.md",
        _run_metadata(facts, "image-segmentation", results, []),
        **_run_variables(facts, step, metrics, evaluations),
        **_usage_variables(config, MAEForSemanticSegmentation),
        scores={name: score for name, (_, score) in results.items() if score is not None},
        labels=labels,
        class_names=listed(labels, 20),
    )


def converted_card(model: MAEPreTrainedModel, name: str, base_model: str | None, report: str) -> str:
    """
    The card of a converted checkpoint.

    Args:
        name: The name of the original, to be shown.
        base_model: The original on the Hub, if it comes from there.
        report: The report of the conversion.
    """
    usage = _usage_variables(model.config, type(model))
    data = ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag=usage["task"],
        tags=_TAGS,
        base_model=base_model,
    )
    return _render("converted.md", data, **usage, name=name, report=report)


def _run_metadata(
    facts: RunFacts, task: str, results: dict[str, tuple[str, float | None]], tags: list[str]
) -> ModelCardData:
    """
    Args:
        results: Name of a metric -> its type on the Hub, and its value if there is one.
    """
    evaluations = [
        EvalResult(
            task_type=task,
            dataset_type=facts.dataset or "image-folder",
            dataset_name=facts.data,
            dataset_revision=facts.recipe.get("dataset_revision") if facts.dataset else None,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 5),
        )
        for name, (kind, value) in results.items()
        if value is not None
    ]
    datasets = [facts.dataset] if facts.dataset else [part["name"] for part in facts.parts if part["revision"]]
    return ModelCardData(
        license=facts.license or "unknown",
        library_name="transformers",
        pipeline_tag=task,
        tags=[*_TAGS, *tags],
        datasets=datasets or None,
        base_model=facts.base_model,
        model_name=PLACEHOLDER,
        eval_results=evaluations or None,
    )


def _run_variables(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> dict[str, Any]:
    """The variables of run.md."""
    environment = facts.environment
    device, versions = environment["device"], environment["packages"]
    seconds, num_seen = training_time(metrics, facts.batch_size)
    return {
        "facts": facts,
        "recipe": facts.recipe,
        "environment": environment,
        "step": step,
        "epochs": facts.epochs * step / facts.steps,
        "metrics": metrics,
        "loss": _last(metrics, "loss"),
        "eval_loss": _last(evaluations, "eval_loss"),
        "seconds": seconds,
        "num_seen": num_seen,
        "device": device.get("name") or f"{device['type'].upper()} ({environment['cores']} cores)",
        "software": ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions),
    }


def _usage_variables(config: MAEConfig, model_class: type[MAEPreTrainedModel]) -> dict[str, Any]:
    """The variables of encoder.md and usage.md."""
    tasks = {MAEForImageClassification: "image-classification", MAEForSemanticSegmentation: "image-segmentation"}
    height, width = to_pair(config.image_size)
    reads_values = any(getattr(config, name) is not None for name in FILE_FIELDS)
    return {
        "config": config,
        "task": tasks.get(model_class, "image-feature-extraction"),
        "has_decoder": model_class is MAEForPreTraining,
        # Pillow has no images with other numbers of channels, and cannot scale values.
        "mode": None if reads_values else {1: "L", 3: "RGB"}.get(config.num_channels),
        "height": height,
        "width": width,
    }


def training_time(metrics: list[dict], batch_size: int) -> tuple[float, int]:
    """Seconds of training, without saving and evaluation, and number of images, from the lines of metrics.jsonl."""
    seconds, images, last = 0.0, 0, 0
    for line in metrics:
        count = (line["step"] - last) * batch_size
        seconds, images, last = seconds + count / max(line["images_per_second"], 0.1), images + count, line["step"]
    return seconds, images


def _last(lines: list[dict], name: str) -> float | None:
    """The last value of a name in the lines of a log."""
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# Not ModelCard.from_template: its templates cannot include each other, and an unknown variable becomes an empty text.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "duration": _duration,
    "percent": "{:.0%}".format,
    "sides": lambda size: " x ".join(map(str, to_pair(size))),
    "significant": lambda values: ", ".join(f"{value:.4g}" for value in values),
    "thousands": "{:,.0f}".format,
}


def _render(template: str, data: ModelCardData, **variables: Any) -> str:
    text = _TEMPLATES.get_template(template).render(card_data=data.to_yaml(), placeholder=PLACEHOLDER, **variables)
    return seal(ModelCard(text).content)
