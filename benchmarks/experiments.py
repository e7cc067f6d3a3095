"""The runs of benchmarks/ablations.py: data, models, recipes and studies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


# Shared by all datasets: small enough for two CPU cores.
ENCODER = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
DECODER = {"decoder_hidden_size": 96, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3}
DECODER |= {"decoder_intermediate_size": 384}
_BF16 = {"bf16": True, "logging_steps": 50, "eval_steps": 1_000_000, "save_minutes": 5}
_PRETRAINING = _BF16 | {"learning_rate": 5e-4, "weight_decay": 0.05, "norm_pix_loss": True}


@dataclass(frozen=True)
class Dataset:
    """
    A dataset and its recipes.

    Args:
        folder: Folder of its parquet files.
        model: Flags of the model, for runs that start from nothing.
        pretraining: Flags of pre-training.
        script: Script of the transfer.
        score: Column of the score in the results of a transfer.
        transfer: Flags of all transfers.
        protocols: Flags of each protocol. "random" is the linear protocol on an encoder without training.
        labels: Flags of each number of labelled images. A length in epochs is a number of steps for all protocols.
    """

    folder: str
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
    "linear": {"protocol": "linear", "per_device_train_batch_size": 100},
}
_CLASSIFICATION["scratch"] = _CLASSIFICATION["finetune"] | {"from_scratch": True, "ema_decay": 0.99}
_CLASSIFICATION["random"] = _CLASSIFICATION["linear"]
_SEGMENTATION = {
    "finetune": {"learning_rate": 1e-3},
    "scratch": {"learning_rate": 1e-3, "from_scratch": True},
    "linear": {"protocol": "linear", "learning_rate": 1e-2},
    "random": {"protocol": "linear", "learning_rate": 1e-2},
}

DATASETS = {
    "nuclei": Dataset(
        folder="nuclei",
        model={"image_size": 64, "patch_size": 4, "image_mean": "auto"},
        pretraining={"image_column_name": "image", "per_device_train_batch_size": 64, "views_per_image": 4}
        | {"num_train_epochs": 100, "warmup_epochs": 5},
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
        values: Flags of pre-training that are compared, beside the defaults.
        protocols: Protocols of the transfers.
        labels: Numbers of labelled images.
        baselines: Protocols that do not depend on the value: "scratch" and "random".
    """

    values: tuple[Mapping[str, Any], ...]
    protocols: tuple[str, ...] = ("finetune", "linear")
    labels: tuple[str, ...] | None = None
    baselines: tuple[str, ...] = ()


def _slug(flags: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(flags.items())) or "default"


STUDIES = {"pretraining": Study(({},), baselines=("scratch", "random"))}


def runs_of(study: str, dataset: str, seeds: list[int]) -> Iterator[Run]:
    """The runs of a study, each after the one that it starts from. Two studies may share runs."""
    plan, data = STUDIES[study], DATASETS[dataset]
    model = dict(data.model) | {"config_overrides": ENCODER}
    for seed, changes in product(seeds, plan.values):
        name = f"{dataset}/{_slug(changes)}/seed{seed}"
        facts = {"dataset": dataset, "pretraining": _slug(changes), "seed": seed}
        changes = dict(changes)
        overrides = ENCODER | DECODER | changes.pop("config_overrides", {})
        flags = _PRETRAINING | data.pretraining | data.model | changes | {"config_overrides": overrides, "seed": seed}
        yield Run(f"{name}/pretraining", "run_mae.py", flags, facts | {"protocol": "pretraining"})
        if "random" in plan.baselines:
            yield Run(f"{dataset}/random/seed{seed}/model", None, {"seed": seed}, {}, f"{name}/pretraining")
        for labels, protocol in product(plan.labels or data.labels, plan.protocols + plan.baselines):
            flags = _BF16 | data.transfer | data.protocols[protocol] | data.labels[labels] | {"seed": seed}
            is_scratch, is_random = protocol == "scratch", protocol == "random"
            if is_scratch:
                flags |= model
            owner = f"{dataset}/{protocol}/seed{seed}" if is_scratch or is_random else name
            start = None if is_scratch else f"{owner}/model" if is_random else f"{name}/pretraining"
            facts_here = facts | {"protocol": protocol, "labels": labels}
            if is_scratch or is_random:
                facts_here |= {"pretraining": "none"}
            yield Run(f"{owner}/{protocol}_{labels}", data.script, flags, facts_here, start)
