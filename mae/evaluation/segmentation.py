"""IoU, Dice and pixel accuracy of a segmenter on whole images, in overlapping windows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from mae.data.batch import Batch
from mae.data.mask_rows import Masks
from mae.data.masks import IGNORED, MaskCoding
from mae.data.normalization import model_inputs
from mae.data.segmentation import MaskedImageTransform
from mae.data.sources import Source
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.inference import EvaluationBatches, broadcast_buffers
from mae.evaluation.metrics import confusion_matrix, segmentation_scores
from mae.evaluation.overlays import Example, make_palette, save_examples, save_mask, shrink, to_picture
from mae.utils.distributed import is_main_process
from mae.utils.errors import DataError
from mae.utils.files import CLASSES_FILE, CONFUSION_FILE, MASKS_FOLDER, SEGMENTATION_FILE, write_table
from modeling_mae import MAEForSemanticSegmentation


# Images in the figure, from all over the validation images.
NUM_EXAMPLES = 8


@dataclass
class _Counts:
    """
    What is counted over images.

    Args:
        matrix: Pixels by true and predicted class, int64.
        loss: Sum of the cross-entropy over the pixels that count.
        num_images: Number of images that could be read.
    """

    matrix: np.ndarray
    loss: float = 0.0
    num_images: int = 0
    examples: list[tuple[int, Example]] = field(default_factory=list)
    skipped: list[tuple[tuple[str, int], str]] = field(default_factory=list)


@dataclass(frozen=True)
class SegmentationEvaluator:
    """
    Loss, mean IoU, mean Dice and pixel accuracy over all pixels that count of all validation images, in their own
    size. Each pixel is counted once on any number of ranks, in whole numbers.

    Rank 0 writes a table of the classes, the confusion matrix and a figure of some images to the run's directory,
    where they replace those of the evaluation before.

    Args:
        source, masks: The validation images, and their masks.
        every_steps: Optimizer steps between two evaluations; None for the last step alone.
        batch_size: Windows of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
        overlap: Smallest share of a window that it has in common with the next one.
        save_predictions: Whether the predicted masks are written too, as PNG files in a folder.
    """

    source: Source
    masks: Masks
    coding: MaskCoding
    every_steps: int | None
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0
    overlap: float = 1 / 3
    save_predictions: bool = False

    every_epochs: ClassVar[None] = None

    def __call__(self, model: MAEForSemanticSegmentation, context: EvaluationContext) -> Evaluation | None:
        broadcast_buffers(model)
        counts = self._count(model, context)
        if counts is None:
            return None
        if not counts.matrix.sum():
            raise DataError(
                f"No pixel of the {len(self.source):,} validation images counts: {counts.num_images:,} could be read, "
                "and all their pixels are ignored."
            )
        scores = segmentation_scores(counts.matrix)
        values = {
            "eval_loss": counts.loss / int(counts.matrix.sum()),
            "eval_mean_iou": scores.mean_iou,
            "eval_mean_dice": scores.mean_dice,
            "eval_pixel_accuracy": scores.pixel_accuracy,
        }
        if counts.skipped:
            values["eval_skipped"] = len(counts.skipped)
        if is_main_process():
            self._report(counts, context.folder, f"mean IoU {scores.mean_iou:.1%}")
        return Evaluation(values, counts.skipped)

    def _count(self, model: MAEForSemanticSegmentation, context: EvaluationContext) -> _Counts | None:
        """Count this rank's images, and add up the counts of all ranks; None if the run was asked to stop."""
        images = EvaluationBatches(self.source, model.config, 1, self.num_workers, self.retry_minutes)
        # A mask is found by the row of its image, and a rank's share counts from 0.
        own_masks = self.masks[np.arange(images.first, images.last)]
        images.transform = MaskedImageTransform(model.config, own_masks, self.coding)
        rows = set(np.linspace(0, len(self.source) - 1, NUM_EXAMPLES).round().astype(int).tolist())
        counts, num_classes = _Counts(np.zeros((len(self.coding.names),) * 2, dtype=np.int64)), len(self.coding.names)
        for batch in images:
            if context.should_stop():
                return None
            counts.skipped += batch.skipped
            for row in batch.rows:  # one, or none
                prediction, loss = self._predict(model, batch)
                labels = batch.labels[0]
                is_counted = labels != IGNORED
                pairs = labels[is_counted].astype(np.int64), prediction[is_counted].astype(np.int64)
                counts.matrix += confusion_matrix(*pairs, num_classes)
                counts.loss += loss
                counts.num_images += 1
                name = self._name(row)
                if row in rows:
                    example = Example(to_picture(batch.pixel_values[0]), labels, prediction, name)
                    counts.examples.append((row, shrink(example)))
                if self.save_predictions:
                    save_mask(prediction, self._palette, context.folder / MASKS_FOLDER / f"{name}.png")
        return self._reduce(counts, next(model.parameters()).device)

    def _predict(self, model: MAEForSemanticSegmentation, batch: Batch) -> tuple[np.ndarray, float]:
        """Predicted classes of an image, and the sum of the cross-entropy over its pixels that count."""
        image, labels = batch.pixel_values[0], torch.as_tensor(batch.labels[0])
        image = model_inputs(image, model.config)
        classes, loss = [], 0.0
        for top, scores in model.score_bands(image, self.overlap, self.batch_size):
            classes.append(scores.argmax(dim=0).to(torch.uint8).cpu())
            band = labels[top : top + scores.shape[1]].to(scores.device, torch.int64)
            loss += _loss_sum(scores, band)
        return torch.cat(classes).numpy(), loss

    def _reduce(self, counts: _Counts, device: torch.device) -> _Counts:
        if PartialState().num_processes == 1:
            return counts
        integers = torch.from_numpy(np.append(counts.matrix.ravel(), counts.num_images)).to(device)
        *matrix, num_images = reduce(integers, "sum").tolist()
        loss = reduce(torch.tensor(counts.loss, dtype=torch.float64, device=device), "sum").item()
        matrix = np.array(matrix, dtype=np.int64).reshape(counts.matrix.shape)
        return _Counts(matrix, loss, num_images, gather_object(counts.examples), gather_object(counts.skipped))

    def _name(self, row: int) -> str:
        """The name of an image without its extension; with the number of its row if a file holds several."""
        ((file, number),) = self.source.row_origins(np.array([row]))
        path = Path(file)
        name = path.with_suffix("").as_posix()
        return f"{name}-{number}" if path.suffix == ".parquet" or not path.suffix else name

    @property
    def _palette(self) -> np.ndarray:
        return make_palette(self.coding.names, self.coding.palette)

    def _report(self, counts: _Counts, folder: Path, score: str) -> None:
        """Write the table, the confusion matrix and the figure."""
        # Imported here, because training need not wait for matplotlib.
        from mae.evaluation.visualization import save_confusion_matrix

        scores, names = segmentation_scores(counts.matrix), list(self.coding.names)
        table = {
            "pixels": counts.matrix.sum(axis=1).tolist(),
            "iou": scores.iou,
            "dice": scores.dice,
            "recall": scores.recall,
            "precision": scores.precision,
        }
        rounded = {name: np.round(values, 6).tolist() for name, values in table.items()}
        write_table(folder / CLASSES_FILE, {"class": names, **rounded})
        what = f"{counts.num_images:,} validation image{'s' * (counts.num_images != 1)}, {score}"
        title = f"Confusion matrix of pixels: {what}"
        save_confusion_matrix(counts.matrix, names, folder / CONFUSION_FILE, title, show_counts=False)
        examples = [example for _, example in sorted(counts.examples, key=lambda found: found[0])]
        if examples:
            save_examples(examples, names, self._palette, folder / SEGMENTATION_FILE, what[0].upper() + what[1:])


def _loss_sum(scores: Tensor, labels: Tensor) -> float:
    """Sum of the cross-entropy over the pixels that count: scores `(classes, h, w)`, labels `(h, w)`."""
    total = torch.nn.functional.cross_entropy(scores[None], labels[None], ignore_index=IGNORED, reduction="none")
    return total.double().sum().item()
