"""The nearest name to one that does not exist."""

import difflib
from collections.abc import Sequence


# Names of other projects that share few letters with the flag of the same meaning.
_SYNONYMS = {
    "accum_iter": "gradient_accumulation_steps",
    "batch": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "blr": "base_learning_rate",
    "checkpoint": "model_name_or_path",
    "data": "train_dir",
    "data_dir": "train_dir",
    "data_path": "train_dir",
    "epoch": "num_train_epochs",
    "epochs": "num_train_epochs",
    "finetune": "model_name_or_path",
    "input_size": "image_size",
    "lr": "learning_rate",
    "mixed_precision": "bf16",
    "model": "model_name_or_path",
    "n_epochs": "num_train_epochs",
    "num_workers": "dataloader_num_workers",
    "out": "output_dir",
    "output": "output_dir",
    "ratio": "min_crop_ratio",
    "resume": "resume_from_checkpoint",
    "scale": "min_crop_area",
    "smoothing": "label_smoothing_factor",
    "steps": "max_steps",
    "val_dir": "validation_dir",
    "val_split": "train_val_split",
    "warmup": "warmup_epochs",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}
_SIMILAR_WORD = 0.8
_SIMILAR_NAME = 0.6


def suggestion(name: str, names: Sequence[str], prefix: str = "") -> str:
    """ " Did you mean ...?" with the nearest of some names, or nothing if none is near."""
    nearest = find_nearest(name, names)
    return f" Did you mean {prefix}{nearest}?" if nearest else ""


def find_nearest(name: str, names: Sequence[str]) -> str | None:
    """The name with the same meaning, or with the most words and letters in common; None if none is near."""
    name = name.lower().replace("-", "_")
    if _SYNONYMS.get(name) in names:
        return _SYNONYMS[name]
    scores = {other: _similarity(name, other) for other in names}
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] >= _SIMILAR_NAME else None


def _similarity(name: str, other: str) -> float:
    """The larger of the share of letters and the share of whole words in common, whole words first."""
    letters = difflib.SequenceMatcher(None, name, other).ratio()
    words, others = name.split("_"), other.split("_")
    common = sum(bool(difflib.get_close_matches(word, others, n=1, cutoff=_SIMILAR_WORD)) for word in words)
    shared = 2 * common / (len(words) + len(others))
    return max(shared, letters) + (shared + letters) / 100
