"""Accuracy of a classifier, or mean average precision if images have several labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae.data.labels import Labels
from mae.data.sources import Source
from mae.data.subsets import origin_columns
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.inference import EvaluationBatches, Outputs, broadcast_buffers, map_images
from mae.evaluation.metrics import average_precision, confusion_matrix, ratio
from mae.utils.distributed import is_main_process
from mae.utils.errors import DataError
from mae.utils.files import CLASSES_FILE, CONFUSION_FILE, PREDICTIONS_FILE, write_table
from modeling_mae import MAEForImageClassification, MAEModelOutput


# Classes of a confusion matrix that is drawn at most: its size grows with their square.
_MAX_DRAWN_CLASSES = 2000
_TOP = 5


@dataclass(frozen=True)
class AccuracyEvaluator:
    """
    Loss, top-1 and top-5 accuracy on all validation images, each counted once on any number of ranks. If images have
    several labels, the mean average precision.

    Rank 0 writes predictions, a table of the classes and the confusion matrix to the run's directory, where they
    replace those of the evaluation before.

    Args:
        source, labels: The validation images.
        every_steps: Optimizer steps between two evaluations; None for the last step alone.
        batch_size: Images of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
        features: Gives the features of the images by a frozen encoder, which then replace the images. None if the
            run was asked to stop meanwhile.
    """

    source: Source
    labels: Labels
    every_steps: int | None
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0
    features: Callable[[Callable[[], bool]], Outputs | None] | None = None

    every_epochs: ClassVar[None] = None

    def __call__(self, model: MAEForImageClassification, context: EvaluationContext) -> Evaluation | None:
        broadcast_buffers(model.head_norm)
        if self.features is None:
            outputs = self._judge_images(model, context)
        else:
            features = self.features(context.should_stop)
            outputs = None if features is None else self._judge_features(model, features)
        if outputs is None:
            return None
        if not len(outputs.rows):
            raise DataError(f"None of the {len(self.source):,} validation images can be read.")
        values = {"eval_loss": outputs.outputs["loss"].double().mean().item()}
        if outputs.skipped:
            values["eval_skipped"] = len(outputs.skipped)
        report = self._report_labels if self.labels.is_multi_label else self._report_classes
        return Evaluation(values | report(outputs, context.folder), outputs.skipped)

    def _judge_images(self, model: MAEForImageClassification, context: EvaluationContext) -> Outputs | None:
        return map_images(
            lambda pixel_values, rows: self._judge(model(pixel_values).logits, rows),
            EvaluationBatches(self.source, model.config, self.batch_size, self.num_workers, self.retry_minutes),
            next(model.parameters()).device,
            context.should_stop,
        )

    def _judge_features(self, model: MAEForImageClassification, features: Outputs) -> Outputs:
        device, batches = next(model.parameters()).device, []
        for start in range(0, len(features.rows), self.batch_size):
            some = slice(start, start + self.batch_size)
            pooled = features.outputs["features"][some].to(device)
            logits = model(encoder_outputs=MAEModelOutput(pooler_output=pooled)).logits
            batches.append(self._judge(logits, features.rows[some]))
        names = batches[0] if batches else ()
        outputs = {name: torch.cat([batch[name] for batch in batches]).cpu() for name in names}
        return Outputs(features.rows, outputs, features.skipped)

    def _judge(self, logits: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
        """Loss and best classes of each image, or loss and scores if images have several labels."""
        logits, labels = logits.float(), torch.from_numpy(self.labels.values[rows]).to(logits.device)
        if self.labels.is_multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
            return {"scores": logits.sigmoid(), "loss": loss}
        top = logits.softmax(dim=1).topk(min(_TOP, logits.shape[1]), dim=1)
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"classes": top.indices, "probabilities": top.values, "loss": loss}

    def _report_classes(self, outputs: Outputs, folder: Path) -> dict[str, float]:
        labels, names = self.labels.values[outputs.rows], self.labels.names
        classes = outputs.outputs["classes"].numpy()
        predictions = classes[:, 0]
        hits = classes == labels[:, None]
        values = {"eval_accuracy": float(hits[:, 0].mean())}
        if len(names) > _TOP:
            values["eval_accuracy_top5"] = float(hits.any(axis=1).mean())
        correct, images, predicted = (
            np.bincount(some, minlength=len(names)) for some in (labels[hits[:, 0]], labels, predictions)
        )
        table = {
            "images": images,
            "recall": ratio(correct, images),
            "precision": ratio(correct, predicted),
            "f1": ratio(2 * correct, images + predicted),
        }
        words = np.array(names, dtype=object)
        columns = {
            "label": words[labels],
            "prediction": words[predictions],
            "probability": outputs.outputs["probabilities"][:, 0].double().numpy().round(6),
            "top5": [" | ".join(row) for row in words[classes]],
        }
        self._write_tables(outputs, folder, table, columns)
        if is_main_process() and len(names) <= _MAX_DRAWN_CLASSES:
            # Imported late: a run need not wait for matplotlib before its first step.
            from mae.evaluation.visualization import save_confusion_matrix

            matrix = confusion_matrix(labels, predictions, len(names))
            title = f"Confusion matrix: {len(labels):,} validation images, accuracy {values['eval_accuracy']:.1%}"
            save_confusion_matrix(matrix, names, folder / CONFUSION_FILE, title)
        return values

    def _report_labels(self, outputs: Outputs, folder: Path) -> dict[str, float]:
        """The report for images with several labels."""
        labels, names = self.labels.values[outputs.rows], self.labels.names
        scores = outputs.outputs["scores"].double().numpy()
        precisions = average_precision(labels, scores)
        table = {"images": labels.sum(axis=0), "average_precision": precisions}
        columns = {
            "labels": [self._join_names(row) for row in labels],
            "prediction": [self._join_names(row) for row in scores > 0.5],
            **{f"score {name}": scores[:, number].round(9) for number, name in enumerate(names)},
        }
        self._write_tables(outputs, folder, table, columns)
        return {"eval_mean_average_precision": float(np.nanmean(precisions))}

    def _write_tables(
        self, outputs: Outputs, folder: Path, table: dict[str, np.ndarray], columns: dict[str, Any]
    ) -> None:
        """Write a table with a row per class, and one with a row per image."""
        if not is_main_process():
            return
        rounded = {name: np.round(values, 6).tolist() for name, values in table.items()}
        write_table(folder / CLASSES_FILE, {"class": self.labels.names, **rounded})
        write_table(folder / PREDICTIONS_FILE, origin_columns(self.source, outputs.rows) | columns)

    def _join_names(self, row: np.ndarray) -> str:
        return " | ".join(name for name, value in zip(self.labels.names, row) if value)
