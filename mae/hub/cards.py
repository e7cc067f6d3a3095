"""
Model cards: what a model is, how it was made and how to use it, as README.md of its directory.

A card that was written here ends with a line that holds a hash of the rest, so that one that somebody has edited is
told from it and left alone. The name of the repository is put in where it is pushed.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from configuration_mae import MAEConfig, to_pair
from mae.utils.files import CARD_FILE
from mae.utils.hashing import hash_text
from modeling_mae import MAEForImageClassification, MAEModel, MAEPreTrainedModel


# Stands for the repository in a card that has not been pushed.
PLACEHOLDER = "OWNER/NAME"
_SEAL = re.compile(r"\n<!-- Generated, (\w{32}): an edited card is not overwritten\. -->\n\Z")
_PAPER = "[He et al. 2021](https://arxiv.org/abs/2111.06377)"
_CITATION = """\
```bibtex
@article{he2021masked,
  title   = {Masked Autoencoders Are Scalable Vision Learners},
  author  = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  journal = {arXiv:2111.06377},
  year    = {2021}
}
```"""


def _hash(text: str) -> str:
    # Git and editors change ends of lines and of the file, which is no edit.
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hash_text("\n".join(lines), size=16)


def seal(text: str) -> str:
    """A card with the line that tells it from an edited one."""
    return f"{text.rstrip()}\n\n<!-- Generated, {_hash(text)}: an edited card is not overwritten. -->\n"


def is_generated(text: str) -> bool:
    """Whether a card is as it was written here."""
    text = text.replace("\r\n", "\n").rstrip() + "\n"
    found = _SEAL.search(text)
    return found is not None and found[1] == _hash(text[: found.start()])


def with_name(text: str, repo_id: str, revision: str | None = None) -> str:
    """
    A card with the repository's name in the place of [`PLACEHOLDER`], and in what loads the model its branch, if that
    is another than main.
    """
    generated = is_generated(text)
    pinned = f'"{repo_id}"' + (f', revision="{revision}"' if revision is not None else "")
    text = text.replace(f'"{PLACEHOLDER}"', pinned).replace(PLACEHOLDER, repo_id)
    return seal(_SEAL.sub("", text)) if generated else text


def write_card(folder: Path, text: str) -> None:
    """Writes README.md, unless there is one that somebody has written or edited."""
    path = folder / CARD_FILE
    if not path.exists() or is_generated(path.read_text(encoding="utf-8", errors="replace")):
        path.write_text(text, encoding="utf-8")


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    rows = [(name, str(value)) for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _sides(value: Any) -> str:
    return " x ".join(map(str, to_pair(value)))


def describe_encoder(config: MAEConfig) -> str:
    """Its sizes, in words."""
    channels = "" if config.num_channels == 3 else f", {config.num_channels} channel{'s' * (config.num_channels > 1)}"
    return (
        f"{config.num_hidden_layers} blocks of width {config.hidden_size} with {config.num_attention_heads} heads, "
        f"images of {_sides(config.image_size)} pixels{channels} in patches of {_sides(config.patch_size)}"
    )


def usage(config: MAEConfig, is_classifier: bool = False, has_decoder: bool = False) -> str:
    """How a model is loaded; each block runs by itself, beside a file photo.jpg."""
    mode = {1: "L", 3: "RGB"}.get(config.num_channels)
    auto_class = "AutoModelForImageClassification" if is_classifier else "AutoModel"
    result = "logits" if is_classifier else "last_hidden_state"
    if mode is None:  # no picture has as many channels
        height, width = to_pair(config.image_size)
        inputs = f"torch.rand(1, {config.num_channels}, {height}, {width})  # your image in [0, 1]"
        if config.image_mean is not None:
            inputs += f", less {config.image_mean}, divided by {config.image_std}"
        load = f"import torch\nfrom transformers import {auto_class}"
        image, name = f"pixel_values = {inputs}\n", "pixel_values"
    else:
        load = f"from PIL import Image\nfrom transformers import AutoImageProcessor, {auto_class}"
        image = f'processor = AutoImageProcessor.from_pretrained("{PLACEHOLDER}")\n'
        image += f'image = Image.open("photo.jpg").convert("{mode}")\n'
        name = '**processor(image, return_tensors="pt")'
    what = "scores of the classes" if is_classifier else "(1, 1 + patches, width): the cls token, then the patches"
    blocks = [
        f'{load}\n\nmodel = {auto_class}.from_pretrained("{PLACEHOLDER}", trust_remote_code=True)\n'
        f"{image}outputs = model({name})\nprint(outputs.{result}.shape)  # {what}"
    ]
    if mode == "RGB":  # which pipelines make of every image
        task = "image-classification" if is_classifier else "image-feature-extraction"
        argument = "" if is_classifier else ", pool=True"
        blocks.append(
            "from transformers import pipeline\n\n"
            f'answer = pipeline("{task}", model="{PLACEHOLDER}", trust_remote_code=True{argument})\n'
            'print(answer("photo.jpg"))' + ("" if is_classifier else "  # one vector")
        )
    parts = [f"```python\n{block}\n```" for block in blocks]
    if not is_classifier:
        parts.append(
            "To fine-tune it, with a new classifier on top:\n\n```python\n"
            "from transformers import AutoModelForImageClassification\n\n"
            "model = AutoModelForImageClassification.from_pretrained(\n"
            f'    "{PLACEHOLDER}", num_labels=10, trust_remote_code=True\n)\n```'
        )
    if has_decoder and mode is not None:
        parts.append(
            "To fill gaps, with the decoder that it was trained with:\n\n```python\n"
            "from PIL import Image\nfrom transformers import AutoImageProcessor, AutoModelForPreTraining\n\n"
            f'model = AutoModelForPreTraining.from_pretrained("{PLACEHOLDER}", trust_remote_code=True)\n'
            f'processor = AutoImageProcessor.from_pretrained("{PLACEHOLDER}")\n'
            f'image = processor(Image.open("photo.jpg").convert("{mode}"), return_tensors="pt").pixel_values\n'
            "pictures = model.reconstruct(image)  # .masked, .reconstruction, .pasted; normalised as the input is\n"
            "```"
        )
    parts.append(
        "The model's code is in this repository, which is why `trust_remote_code=True` is needed: look at it before, "
        'and pin what you have looked at with `revision="COMMIT"`. It needs torch, torchvision and transformers 5.17 '
        "or later. Images of another size: `interpolate_pos_encoding=True` in a call, or `image_size=(height, width)` "
        "in `from_pretrained`."
    )
    return "\n\n".join(parts)


def _card(data: ModelCardData, *parts: str) -> str:
    return seal(ModelCard("\n".join(["---", data.to_yaml(), "---", "", "\n\n".join(parts)])).content)


def _tags(*more: str) -> list[str]:
    return ["mae", "masked-autoencoder", "vision", *more]


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def training_time(metrics: list[dict], batch_size: int) -> tuple[float, float]:
    """Seconds of training, saving and looking at images left out, and images, of the lines of metrics.jsonl."""
    seconds, images, last = 0.0, 0, 0
    for line in metrics:
        count = (line["step"] - last) * batch_size
        seconds, images, last = seconds + count / max(line["images_per_second"], 0.1), images + count, line["step"]
    return seconds, images


@dataclass
class RunFacts:
    """
    What a card tells of a training run.

    Args:
        num_parameters: Of the whole model.
        recipe: The flags of the run.
        environment: What it runs on, `describe_environment`'s.
        data: What the images are called.
        dataset: The data set on the Hub that they are of, at the recipe's `dataset_revision`; None for one elsewhere.
        num_images: To train on.
        num_held_out: How many others are looked at; None where training images are.
        steps, epochs: Of the whole run.
        batch_size: Images of a step.
        learning_rate: At its peak.
        warmup_epochs: Before it.
        base_model: What it goes on from, on the Hub, at the recipe's `model_revision`.
        license: Its identifier on the Hub.
    """

    config: MAEConfig
    num_parameters: int
    recipe: dict[str, Any]
    environment: dict[str, Any]
    data: str
    dataset: str | None
    num_images: int
    num_held_out: int | None
    steps: int
    epochs: float
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    base_model: str | None
    license: str | None


_FILES = (
    "All flags are in [recipe.yaml](recipe.yaml), versions in [environment.json](environment.json), the log in "
    "[metrics.jsonl](metrics.jsonl)."
)


def _last(lines: list[dict], name: str) -> float | None:
    """The last value of a name in the lines of a log."""
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def _metadata(facts: RunFacts, task: str, scores: dict[str, tuple[str, float]], *tags: str) -> ModelCardData:
    """
    Args:
        scores: Name of a metric -> its type on the Hub, and its value.
    """
    results = [
        EvalResult(
            task_type=task,
            dataset_type=facts.dataset or "image-folder",
            dataset_name=facts.data,
            dataset_revision=facts.recipe.get("dataset_revision") if facts.dataset else None,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 5),
        )
        for name, (kind, value) in scores.items()
    ]
    return ModelCardData(
        license=facts.license or "unknown",
        library_name="transformers",
        pipeline_tag=task,
        tags=_tags(*tags),
        datasets=[facts.dataset] if facts.dataset else None,
        base_model=facts.base_model,
        model_name=PLACEHOLDER,
        eval_results=results or None,
    )


def _under_way(facts: RunFacts, step: int) -> list[str]:
    return [f"**Training is under way: this is step {step} of {facts.steps}.**"] if step < facts.steps else []


def _training_table(facts: RunFacts, step: int, metrics: list[dict], own: list[tuple[str, Any]]) -> str:
    """
    How a model was trained.

    Args:
        own: Rows of the task.
    """
    config, recipe, environment = facts.config, facts.recipe, facts.environment
    device = (
        environment["device"].get("name") or f"{environment['device']['type'].upper()} ({environment['cores']} cores)"
    )
    seconds, images = training_time(metrics, facts.batch_size)
    versions = environment["packages"]
    precision = {"bf16": "bfloat16, mixed", "fp16": "float16, mixed"}.get(environment["mixed_precision"], "float32")
    data = facts.data[0].upper() + facts.data[1:]
    if facts.dataset:
        data = f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset}) at `{recipe['dataset_revision']}`"
    base = "those of another model" if "model_name_or_path" in recipe else "random"
    if facts.base_model:
        base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model}) at `{recipe['model_revision']}`"
    optimizer = f"AdamW, betas {recipe['adam_beta1']:g} and {recipe['adam_beta2']:g}"
    if recipe.get("protocol") == "linear":
        optimizer = f"LARS, momentum {recipe['adam_beta1']:g}"
    return _table(
        [
            ("Data", data),
            ("Training images", f"{facts.num_images:,}"),
            ("Weights at the start", base),
            ("Parameters", f"{facts.num_parameters:,}"),
            ("Steps", f"{step:,}" if step == facts.steps else f"{step:,} of {facts.steps:,}"),
            ("Epochs", f"{facts.epochs * step / facts.steps:.1f}"),
            ("Batch", f"{facts.batch_size} images"),
            ("Optimizer", optimizer),
            ("Learning rate", f"{facts.learning_rate:.3g} at its peak, then half a cosine"),
            ("Warm-up", f"{facts.warmup_epochs:.3g} epochs"),
            ("Weight decay", f"{recipe['weight_decay']:g}"),
            ("Gradients clipped to", recipe.get("max_grad_norm")),
            ("Decay of the averaged weights", recipe.get("ema_decay") or None),
            *own,
            ("Mean, deviation of the channels", _statistics(config)),
            ("Seed", recipe["seed"]),
            ("Precision", precision),
            ("Hardware", f"{environment['processes']} x {device}"),
            ("Time", _hours(seconds) if images else None),
            ("Throughput", f"{images / seconds:,.0f} images/s" if images else None),
            (
                "Software",
                ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions),
            ),
        ]
    )


def pretraining_card(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> str:
    """
    The card of a pre-trained model, finished or on the way.

    Args:
        step: What the model is of.
        metrics, evaluations: The lines of the logs, up to it.
    """
    config = facts.config
    loss, eval_loss = _last(metrics, "loss"), _last(evaluations, "eval_loss")
    neighbours = _last(evaluations, "eval_knn_accuracy")
    pixels = "pixels normalised within each patch" if config.norm_pix_loss else "pixels"
    held_out = facts.num_held_out

    task, scores = "image-feature-extraction", {}
    if held_out and eval_loss is not None:
        name = f"Mean squared error of removed patches ({pixels}), {held_out} held-out images"
        scores[name] = "mse", eval_loss
    # Of training images where none are held out, which evaluates nothing.
    whose = "held-out" if held_out else "training"
    by_neighbours = f"Accuracy of 20 nearest neighbours, {whose} images"
    if held_out and neighbours is not None:
        scores[by_neighbours] = "accuracy", neighbours
    metadata = _metadata(facts, task, scores, "self-supervised-learning")
    encoder = describe_encoder(config)
    masked = f"{config.mask_ratio:.0%}"
    epochs = facts.epochs * step / facts.steps
    shown = (
        f"*Of the {whose} images after {epochs:.1f} epochs: {masked} of the patches removed, what the model makes of "
        "the rest, and the original.*"
    )
    if config.norm_pix_loss:
        shown = shown[:-1] + " The mean and contrast of each removed patch are the true ones, see Limitations.*"
    summary = (
        f"A Vision Transformer, pre-trained without labels as a Masked Autoencoder ({_PAPER}) on {facts.data}. "
        f"{encoder[0].upper()}{encoder[1:]}. In training it saw {100 * (1 - config.mask_ratio):.0f} % of the patches "
        f"of an image, and predicted the {pixels} of the others through a light decoder. What it is for is its "
        "features: fine-tune it, train a probe on it, or look for neighbours."
    )
    training = _training_table(
        facts,
        step,
        metrics,
        [
            ("Mask", f"{masked} of the patches, {config.masking}"),
            ("Target", pixels),
            ("Augmentation", "random resized crop (0.2 to 1 of the area), horizontal flip"),
        ],
    )
    outcome = [("Training, last logged step", f"{loss:.4f}" if loss is not None else None)]
    if eval_loss is not None:
        kind = f"{held_out} held-out images" if held_out else "training images"
        outcome.append((f"{kind}, masks drawn once", f"{eval_loss:.4f}"))
    if neighbours is not None:
        outcome.append((by_neighbours, f"{neighbours:.1%}"))
    limitations = [
        f"The model has seen {facts.data} and nothing else"
        + (f", after {facts.base_model}" if facts.base_model else "")
        + ". How good its features are for your images no loss says: measure a probe on them.",
        "The loss is a mean squared error. Values for another mask ratio, patch size or target are not comparable.",
    ]
    if config.norm_pix_loss:
        limitations.insert(
            0,
            "It was trained on normalised pixels, and so predicts no patch's mean and contrast. In its pictures these "
            "are the true patch's own, so that they look better than what the model knows.",
        )
    if not held_out:
        limitations.append(
            "No images were held out: the pictures and the loss above are of images that it was trained on."
        )
    return _card(
        metadata,
        f"# {PLACEHOLDER}",
        summary,
        *_under_way(facts, step),
        *(
            ["![removed patches, reconstructions, originals](reconstruction.png)", shown]
            if eval_loss is not None
            else []
        ),
        "## Use",
        usage(config, has_decoder=True),
        "## Training",
        training,
        _FILES,
        "## Loss on the removed patches",
        _table(outcome),
        *(["![loss over the steps](loss_curve.png)"] if metrics else []),
        "## Limitations",
        "\n".join(f"- {limitation}" for limitation in limitations),
        "## Citation",
        _CITATION,
    )


_PROTOCOLS = {
    "finetune": "all weights trained",
    "linear": "linear probe: a classifier on the frozen encoder",
    "partial": "partial fine-tuning: classifier and last blocks trained",
}


def classification_card(facts: RunFacts, step: int, metrics: list[dict], evaluations: list[dict]) -> str:
    """The card of a classifier; arguments as in [`pretraining_card`]."""
    config, recipe = facts.config, facts.recipe
    several = config.problem_type == "multi_label_classification"
    held_out = f"{facts.num_held_out:,} held-out images"
    names = {
        "eval_accuracy": ("Accuracy", "accuracy"),
        "eval_accuracy_top5": ("Top-5 accuracy", "accuracy"),
        "eval_mean_average_precision": ("Mean average precision", "mean_average_precision"),
    }
    found = {name: (kind, _last(evaluations, key)) for key, (name, kind) in names.items()}
    found = {name: score for name, score in found.items() if score[1] is not None}
    labels = [config.id2label[index] for index in range(config.num_labels)]
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    encoder = describe_encoder(config)
    summary = (
        f"A classifier of images into {len(labels)} classes{', several for an image' if several else ''} ({shown}): a "
        f"Vision Transformer as in Masked Autoencoders ({_PAPER}), trained on {facts.data}. "
        f"{encoder[0].upper()}{encoder[1:]}."
    )
    augmentation = {"none": "none", "crop": "random resized crop, flip"}.get(recipe["augmentation"])
    augmentation = augmentation or f"random resized crop, flip, RandAugment {recipe['randaugment_magnitude']:g} of 10"
    for name, key in (("erasing", "random_erasing"), ("mixup", "mixup_alpha"), ("cutmix", "cutmix_alpha")):
        augmentation += f", {name} {recipe[key]:g}" if recipe[key] else ""
    protocol = _PROTOCOLS[recipe["protocol"]]
    if recipe["protocol"] == "partial":
        protocol += f" ({recipe['num_trainable_blocks']:g})"
    training = _training_table(
        facts,
        step,
        metrics,
        [
            ("Protocol", protocol),
            ("Features", "mean of the patch tokens" if config.pooling == "mean" else "cls token"),
            ("Layer decay", recipe["layer_decay"] if recipe["layer_decay"] != 1 else None),
            ("Drop path", recipe["drop_path_rate"] or None),
            ("Label smoothing", recipe["label_smoothing_factor"] or None),
            ("Augmentation", augmentation),
        ],
    )
    outcome = [(name, f"{value:.4f}" if several else f"{value:.2%}") for name, (_, value) in found.items()]
    loss, eval_loss = _last(metrics, "loss"), _last(evaluations, "eval_loss")
    outcome.append(("Loss, held-out images", f"{eval_loss:.4f}" if eval_loss is not None else None))
    outcome.append(("Loss, training, last logged step", f"{loss:.4f}" if loss is not None else None))
    return _card(
        _metadata(facts, "image-classification", found),
        f"# {PLACEHOLDER}",
        summary,
        *_under_way(facts, step),
        "## Use",
        usage(config, is_classifier=True),
        "## Evaluation",
        f"On {held_out}, each resized and cropped as the processor of this repository does it:",
        _table(outcome),
        *(["![which classes are taken for which](confusion_matrix.png)"] if found and not several else []),
        *(["Each class: [per_class.csv](per_class.csv)."] if found else []),
        "## Training",
        training,
        _FILES,
        *(["![loss and accuracy over the steps](loss_curve.png)"] if metrics else []),
        "## Limitations",
        "- It knows the classes above and no others, and gives one of them to any image.\n"
        f"- It has seen {facts.data}: how it does on other images these numbers do not say.",
        "## Citation",
        _CITATION,
    )


def _statistics(config: MAEConfig) -> str | None:
    if config.image_mean is None:
        return None
    return "; ".join(", ".join(f"{value:.4g}" for value in values) for values in (config.image_mean, config.image_std))


def converted_card(model: MAEPreTrainedModel, name: str, base_model: str | None, report: str) -> str:
    """
    The card of a converted checkpoint.

    Args:
        name: What was converted, to be shown.
        base_model: The same on the Hub, if it comes from there.
        report: What was found in it.
    """
    is_classifier = isinstance(model, MAEForImageClassification)
    has_decoder = not isinstance(model, (MAEForImageClassification, MAEModel))
    data = ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=_tags(),
        base_model=base_model,
    )
    encoder = describe_encoder(model.config)
    return _card(
        data,
        f"# {PLACEHOLDER}",
        f"A Masked Autoencoder ({_PAPER}), converted from `{name}`. {encoder[0].upper()}{encoder[1:]}.",
        textwrap.indent(report, "    "),
        "The licence is that of the original weights: say it in the first lines of this file.",
        "## Use",
        usage(model.config, is_classifier, has_decoder),
        "## Citation",
        _CITATION,
    )
