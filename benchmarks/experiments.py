"""The runs of benchmarks/ablations.py: data, models, recipes and studies."""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


def _sizes(width: int, blocks: int, prefix: str = "") -> dict[str, int]:
    """Fields of an encoder or a decoder with heads of 32 channels."""
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": width // 32}
    return {prefix + name: value for name, value in (sizes | {"intermediate_size": 4 * width}).items()}


_BF16 = {"bf16": True, "logging_steps": 50, "eval_steps": 1_000_000, "save_minutes": 5}
_PRETRAINING = _BF16 | {"weight_decay": 0.05, "norm_pix_loss": True}


@dataclass(frozen=True)
class Dataset:
    """
    A dataset and its recipes.

    Args:
        folder: Folder of its parquet files.
        encoder: Fields of the configuration: the sizes of the encoder, small enough for two CPU cores.
        decoder: The same of the decoder.
        model: Flags of the model, for runs that start from nothing.
        pretraining: Flags of pre-training.
        script: Script of the transfer.
        score: Column of the score in the results of a transfer.
        transfer: Flags of all transfers.
        protocols: Flags of each protocol. "random" is the linear protocol on an encoder without training.
        labels: Flags of each number of labelled images. A flag of a protocol has precedence.
    """

    folder: str
    encoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    model: Mapping[str, Any]
    pretraining: Mapping[str, Any]
    script: str
    score: str
    transfer: Mapping[str, Any]
    protocols: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, Mapping[str, Any]]


_CLASSIFICATION = {
    "finetune": {"augmentation": "crop", "min_crop_area": 0.4, "mixup_alpha": 0, "cutmix_alpha": 0}
    | {"random_erasing": 0, "learning_rate": 1e-3, "per_device_train_batch_size": 64},
    "linear": {"protocol": "linear", "per_device_train_batch_size": 100, "config_overrides": {"pooling": "mean"}},
}
_CLASSIFICATION["scratch"] = _CLASSIFICATION["finetune"] | {"from_scratch": True, "ema_decay": 0.99}
_CLASSIFICATION["scratch_long"] = _CLASSIFICATION["scratch"] | {"max_steps": 3200}
_CLASSIFICATION["random"] = _CLASSIFICATION["linear"]
_SEGMENTATION = {
    "finetune": {"learning_rate": 1e-3, "layer_decay": 0.85},
    "scratch": {"learning_rate": 1e-3, "from_scratch": True},
    "linear": {"protocol": "linear", "learning_rate": 1e-2},
    "random": {"protocol": "linear", "learning_rate": 1e-2},
}

DATASETS = {
    "cifar10": Dataset(
        folder="cifar10",
        encoder=_sizes(128, 4),
        decoder=_sizes(64, 1, "decoder_"),
        model={"image_size": 32, "patch_size": 4, "image_mean": 0.5, "image_std": 0.5},
        pretraining={"per_device_train_batch_size": 128, "learning_rate": 2e-3}
        | {"num_train_epochs": 5, "warmup_epochs": 0.5},
        script="run_image_classification.py",
        score="eval_accuracy",
        transfer={},
        protocols=_CLASSIFICATION,
        labels={"1000": {"max_train_samples": 1000, "max_steps": 800}},
    ),
    "nuclei": Dataset(
        folder="nuclei",
        encoder=_sizes(192, 6) | {"num_attention_heads": 3},
        decoder=_sizes(96, 1, "decoder_"),
        model={"image_size": 64, "patch_size": 4, "image_mean": "auto"},
        # Raw pixels and crops of the files' own scale: the best of four recipes that were tried (results.md).
        pretraining={"image_column_name": "image", "per_device_train_batch_size": 64, "views_per_image": 4}
        | {"norm_pix_loss": False, "crop": "random", "vertical_flip": 0.5, "rot90": True, "learning_rate": 5e-4}
        | {"num_train_epochs": 600, "warmup_epochs": 20},
        script="run_semantic_segmentation.py",
        score="iou_1",
        transfer={"segmentation_head": "linear", "rot90": True, "per_device_train_batch_size": 16},
        protocols=_SEGMENTATION,
        labels={
            "16": {"max_train_samples": 16, "max_steps": 400},
            "64": {"max_train_samples": 64, "max_steps": 800},
            "all": {"max_steps": 1600},
        },
    ),
}


@dataclass(frozen=True)
class Run:
    """
    A run of a script.

    Args:
        name: Name of its directory, unique.
        script: File in examples/, or None for a copy of `start` with new random weights.
        flags: Its flags.
        facts: Columns of its line in the results.
        start: Name of the run whose model it starts from.
    """

    name: str
    script: str | None
    flags: Mapping[str, Any]
    facts: Mapping[str, Any]
    start: str | None = None


@dataclass(frozen=True)
class Study:
    """
    Pre-training runs that differ in one value, and the transfers that judge them.

    Args:
        values: Names of what is compared, and its flags of pre-training beside those of the dataset.
        protocols: Protocols of the transfers.
        baselines: Protocols that do not depend on the value: "random", and those whose names start with "scratch".
    """

    values: Mapping[str, Mapping[str, Any]]
    protocols: tuple[str, ...] = ("finetune", "linear")
    baselines: tuple[str, ...] = ()


_EFFICIENT = {"decoder_type": "cross_attention"}
# "default" is the recipe of the dataset. It is one run, which the studies share.
_DEFAULT: dict[str, Mapping[str, Any]] = {"default": {}}


def _decoders(*sizes: tuple[int, int]) -> dict[str, Mapping[str, Any]]:
    return {f"decoder {w} x {n}": {"config_overrides": _sizes(w, n, "decoder_")} for w, n in sizes}


STUDIES = {
    "pretraining": Study(_DEFAULT, baselines=("scratch", "scratch_long", "random")),
    "mask_ratio": Study(_DEFAULT | {f"mask ratio {ratio}": {"mask_ratio": ratio} for ratio in (0.25, 0.5, 0.9)}),
    "target": Study(_DEFAULT | {"raw pixels": {"norm_pix_loss": False}}),
    "masking": Study(_DEFAULT | {name: {"config_overrides": {"masking": name}} for name in ("block", "grid")}),
    "decoder": Study(_DEFAULT | _decoders((32, 1), (128, 1), (64, 4))),
    "efficient_decoder": Study(
        _DEFAULT
        | {
            f"cross-attention, {share:.0%} predicted": {"config_overrides": _EFFICIENT | {"prediction_ratio": share}}
            for share in (0.75, 0.25)
        }
    ),
    "length": Study(_DEFAULT | {"20 epochs": {"num_train_epochs": 20}}),
    "long": Study({"80 epochs": {"num_train_epochs": 80}}),
}


def runs_of(study: str, dataset: str, seeds: list[int], labels: Container[str] | None = None) -> Iterator[Run]:
    """
    The runs of a study, each after the one that it starts from. Two studies may share runs.

    Args:
        study: A name of STUDIES.
        dataset: A name of DATASETS.
        seeds: Seeds of the pre-training, the labelled images and the new weights.
        labels: Numbers of labelled images. None is all.
    """
    plan, data = STUDIES[study], DATASETS[dataset]
    model = dict(data.model) | {"config_overrides": data.encoder}
    baselines = tuple(protocol for protocol in plan.baselines if protocol in data.protocols)
    for seed, (value, changes) in product(seeds, plan.values.items()):
        slug = re.sub(r"[^\w.-]+", "_", value)
        name = f"{dataset}/{slug}/seed{seed}"
        facts = {"dataset": dataset, "pretraining": value, "seed": seed}
        changes = {**changes}
        overrides = {**data.encoder, **data.decoder} | changes.pop("config_overrides", {})
        flags = _PRETRAINING | data.model | data.pretraining | changes | {"config_overrides": overrides, "seed": seed}
        yield Run(f"{name}/pretraining", "run_mae.py", flags, facts | {"protocol": "pretraining"})
        if "random" in baselines:
            yield Run(f"{dataset}/random/seed{seed}/model", None, {"seed": seed}, {}, f"{name}/pretraining")
        for count, protocol in product(data.labels, plan.protocols + baselines):
            if labels is not None and count not in labels:
                continue
            flags = _BF16 | data.transfer | data.labels[count] | data.protocols[protocol] | {"seed": seed}
            is_scratch, is_random = protocol.startswith("scratch"), protocol == "random"
            if is_scratch:
                flags |= model
            owner = f"{dataset}/{protocol}/seed{seed}" if is_scratch or is_random else name
            start = None if is_scratch else f"{owner}/model" if is_random else f"{name}/pretraining"
            facts_here = facts | {"protocol": protocol, "labels": count}
            if is_scratch or is_random:
                facts_here |= {"pretraining": "none"}
            yield Run(f"{owner}/{protocol}_{count}", data.script, flags, facts_here, start)
