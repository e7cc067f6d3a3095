"""
What is looked at while a model is trained, and after: its loss on fixed images with fixed masks, and pictures of them;
what the nearest neighbours of images say of their class; how often a classifier is right.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae.data.labels import Labels
from mae.data.sources import Source
from mae.data.subsets import origin_columns
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.inference import Outputs, map_images
from mae.evaluation.metrics import _ratio, average_precision, confusion_matrix
from mae.evaluation.visualization import save_confusion_matrix
from mae.utils.distributed import is_main_process
from mae.utils.errors import DataError
from mae.utils.files import CLASSES_FILE, CONFUSION_FILE, PREDICTIONS_FILE, write_table
from modeling_mae import MAEForImageClassification, MAEModelOutput


class AccuracyEvaluator:
    """
    How a classifier does on all held-out images, each counted once by any number of processes: its loss, top-1 and
    top-5 accuracy; and in the run's directory, of the last time, its predictions, a table of the classes and the
    confusion matrix. Of images with several labels, the mean average precision.

    Args:
        source, labels: The held-out images.
        batch_size: How many of them a forward pass of a process takes.
    """

    TOP = 5
    every_epochs = None
    MAX_DRAWN = 2000  # classes of a confusion matrix: it grows with their square

    def __init__(
        self,
        source: Source,
        labels: Labels,
        every_steps: int,
        batch_size: int,
        num_workers: int = 0,
        retry_minutes: float = 0,
        features: Callable[[Callable[[], bool]], Outputs | None] | None = None,
    ):
        self.source = source
        self.labels = labels
        self.every_steps = every_steps
        self.batch_size = batch_size
        self.options = {"num_workers": num_workers, "retry_minutes": retry_minutes}
        self.features = features

    def __call__(self, model: MAEForImageClassification, context: EvaluationContext) -> Evaluation | None:
        device = next(model.parameters()).device
        if torch.distributed.is_initialized():
            # Each process has statistics of its own batches; what is saved is those of the first.
            for buffer in model.head_norm.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.features is not None:
            frozen = self.features(context.should_stop)
            if frozen is None:
                return None
            rows, features = frozen.rows, frozen.outputs["features"]
            parts = [
                self._judge(model(encoder_outputs=MAEModelOutput(pooler_output=part.to(device))).logits, some)
                for part, some in zip(features.split(self.batch_size), _split(rows, self.batch_size))
            ]
            outputs = {name: torch.cat([part[name] for part in parts]).cpu() for name in (parts[0] if parts else ())}
            mapped = Outputs(rows, outputs, frozen.skipped)
        else:
            mapped = map_images(
                lambda pixel_values, rows: self._judge(model(pixel_values).logits, rows),
                self.source,
                model.config,
                device,
                self.batch_size,
                is_stopped=context.should_stop,
                **self.options,
            )
            if mapped is None:
                return None
        if not len(mapped.rows):
            raise DataError(f"None of the {sum(self.source.group_sizes)} held-out images can be read.")
        return Evaluation(self._report(mapped, context.folder), mapped.skipped)

    def _judge(self, logits: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
        """What is kept of each image."""
        logits, labels = logits.float(), torch.from_numpy(self.labels.values[rows]).to(logits.device)
        if self.labels.is_multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
            return {"scores": logits.sigmoid(), "loss": loss}
        top = logits.softmax(dim=1).topk(min(self.TOP, logits.shape[1]), dim=1)
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"classes": top.indices, "probabilities": top.values, "loss": loss}

    def _report(self, mapped: Outputs, folder: Path) -> dict[str, Any]:
        labels, names = self.labels.values[mapped.rows], self.labels.names
        found: dict[str, Any] = {"eval_loss": mapped.outputs["loss"].double().mean().item()}
        if mapped.skipped:
            found["eval_skipped"] = len(mapped.skipped)
        if self.labels.is_multi_label:
            scores = mapped.outputs["scores"].double().numpy()
            precisions = average_precision(labels, scores)
            found["eval_mean_average_precision"] = float(np.nanmean(precisions))
            table = {"images": labels.sum(axis=0), "average_precision": precisions}
            columns = {
                "labels": [self._words(row) for row in labels],
                "prediction": [self._words(row) for row in scores > 0.5],
                **{f"score {name}": scores[:, number].round(9) for number, name in enumerate(names)},
            }
        else:
            classes = mapped.outputs["classes"].numpy()
            hits = classes == labels[:, None]
            found["eval_accuracy"] = float(hits[:, 0].mean())
            if len(names) > self.TOP:
                found["eval_accuracy_top5"] = float(hits.any(axis=1).mean())
            right, images, predicted = (
                np.bincount(some, minlength=len(names)) for some in (labels[hits[:, 0]], labels, classes[:, 0])
            )
            table = {
                "images": images,
                "recall": _ratio(right, images),
                "precision": _ratio(right, predicted),
                "f1": _ratio(2 * right, images + predicted),
            }
            if is_main_process() and len(names) <= self.MAX_DRAWN:
                matrix = confusion_matrix(labels, classes[:, 0], len(names))
                title = f"Confusion matrix: {len(labels):,} held-out images, accuracy {found['eval_accuracy']:.1%}"
                save_confusion_matrix(matrix, names, folder / CONFUSION_FILE, title)
            words = np.array(names, dtype=object)
            columns = {
                "label": words[labels],
                "prediction": words[classes[:, 0]],
                "probability": mapped.outputs["probabilities"][:, 0].double().numpy().round(6),
                "top5": [" | ".join(row) for row in words[classes]],
            }
        if is_main_process():
            rounded = {name: np.round(values, 6).tolist() for name, values in table.items()}
            write_table(folder / CLASSES_FILE, {"class": names, **rounded})
            write_table(folder / PREDICTIONS_FILE, origin_columns(self.source, mapped.rows) | columns)
        return found

    def _words(self, row: np.ndarray) -> str:
        return " | ".join(name for name, value in zip(self.labels.names, row) if value)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))
