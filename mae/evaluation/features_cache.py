"""Features of a frozen encoder, computed once and cached on disk."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configuration_mae import CONFIG_FIELDS, MAEConfig
from mae.data.sources import Source
from mae.evaluation.features import compute_features
from mae.evaluation.inference import Outputs
from mae.utils.errors import UserError
from mae.utils.files import atomic_write
from mae.utils.hashing import hash_key, hash_weights
from modeling_mae import MAEForImageClassification


logger = logging.getLogger(__name__)


class FrozenFeatures:
    """
    Features of all images of a source by a classifier's frozen encoder, computed on first use or read from the cache.

    Args:
        what: The kind of images, for messages.
        tf32: Whether products of float32 matrices use TF32.

    Raises:
        UserError: with FSDP.
    """

    def __init__(
        self,
        model: MAEForImageClassification,
        source: Source,
        accelerator: Accelerator,
        what: str,
        batch_size: int,
        num_workers: int | None = None,
        retry_minutes: float = 0,
        tf32: bool = False,
    ):
        if accelerator.is_fsdp2:
            raise UserError("--augmentation none does not work with FSDP. A classifier is small: use DDP.")
        self.model = model
        self.source = source
        self.accelerator = accelerator
        self.what = what
        self.options = {"batch_size": batch_size, "num_workers": num_workers, "retry_minutes": retry_minutes}
        self.tf32 = tf32
        self._outputs: Outputs | None = None

    def __call__(self, should_stop: Callable[[], bool] = lambda: False) -> Outputs | None:
        """The features; None if `should_stop` returned true meanwhile. Every rank must call this."""
        if self._outputs is None:
            encoder, accelerator = self.model.mae, self.accelerator
            key = features_key(
                self.model.config, hash_weights(encoder), self.source, accelerator.mixed_precision, self.tf32
            )
            self._outputs = cached_features(
                key,
                accelerator,
                self.what,
                lambda: compute_features(
                    encoder,
                    self.source,
                    accelerator,
                    self.what,
                    self.model.config.pooling,
                    should_stop=should_stop,
                    **self.options,
                ),
            )
        return self._outputs


def features_key(
    config: MAEConfig, encoder_hash: str, source: Source, mixed_precision: str | None, tf32: bool | None
) -> str:
    """
    The name of features in the cache. It follows from all that changes them, except for the device.

    Args:
        config: The configuration of the encoder, whose `pooling` the features have.
        encoder_hash: `hash_weights` of the encoder.
    """
    settings = {name: getattr(config, name) for name in CONFIG_FIELDS}
    settings |= {"encoder": encoder_hash, "data": source.fingerprint, "tf32": tf32}
    return hash_key("features", json.dumps(settings, sort_keys=True), mixed_precision, size=16).hex()


def cached_features(
    key: str, accelerator: Accelerator, what: str, compute: Callable[[], Outputs | None]
) -> Outputs | None:
    """
    Features from the cache of this machine, or computed now if a rank finds none. Every rank must call this.

    Features are written to the cache only if all images could be read: the reasons of the others are not kept there.

    Args:
        key: As from [`features_key`].
        what: The kind of images, for the log.
        compute: Computes the features, on all ranks. Returns None if the run was asked to stop, as this then does.
    """
    path = Path(datasets.config.HF_DATASETS_CACHE) / "features" / f"{key}.safetensors"
    cached = _read(path)
    # Machines have caches of their own, and computing needs all ranks.
    num_found = accelerator.reduce(torch.tensor(int(cached is not None), device=accelerator.device), "sum")
    if int(num_found) == accelerator.num_processes:
        logger.info(f"Features of the {len(cached.rows):,} {what} images: computed before, {path}")
        return cached
    outputs = compute()
    if outputs is not None and not outputs.skipped and accelerator.is_local_main_process:
        _write(path, outputs)
    return outputs


def _read(path: Path) -> Outputs | None:
    try:
        tensors = load_file(path)
        return Outputs(tensors["rows"].numpy(), {"features": tensors["features"]})
    except (OSError, SafetensorError, KeyError):  # a damaged file counts as missing
        return None


def _write(path: Path, outputs: Outputs) -> None:
    tensors = {"rows": torch.from_numpy(outputs.rows), "features": outputs.outputs["features"]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            save_file(tensors, unfinished)
    except (OSError, SafetensorError) as error:  # a full cache must not end a run
        logger.info(f"Note: the features are not cached: {error}")
