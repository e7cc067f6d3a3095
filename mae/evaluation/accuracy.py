"""
What is looked at while a model is trained, and after: its loss on fixed images with fixed masks, and pictures of them;
what the nearest neighbours of images say of their class; how often a classifier is right.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from configuration_mae import to_pair
from mae.arguments.recipes import PreTrainingArguments
from mae.data.labels import Labels, check_classes, draw_rows, hold_out_labelled, read_labels, select
from mae.data.loader import normalize
from mae.data.sources import Source, row_origins
from mae.evaluation.inference import Mapped, encode, map_images
from mae.evaluation.visualization import save_confusion_matrix, save_reconstruction
from mae.training.accelerator import on_main_process
from mae.training.run_directory import CLASSES_FILE, CONFUSION_FILE, PICTURES_FOLDER, PREDICTIONS_FILE, RunDirectory
from mae.utils.errors import DataError, UserError
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModelOutput, MAEPreTrainedModel


class Evaluator(Protocol):
    """
    Looks at a model after every `every` steps and after the last one. Every process calls it at the same steps, with
    the model in evaluation mode and without gradients; it draws nothing from global random states.
    """

    every: int

    def __call__(
        self, model: MAEPreTrainedModel, step: int, epoch: float, run: RunDirectory, is_stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        """
        Numbers by name, and pictures by their path: what is logged of the step. The main process's count.

        Args:
            is_stopped: Whether the run is to stop, in which case what is returned does not matter: the next start
                looks again. What takes more than seconds asks now and then, in every process alike.
        """


def picture_path(run: RunDirectory, step: int) -> Path:
    """Where the picture of a step is."""
    return run.path / PICTURES_FOLDER / f"step-{step:07}.png"


class Reconstruction:
    """
    The loss on fixed images, with masks drawn once, and pictures of the first of them.

    Args:
        load: Gives them, uint8 of shape (B, C, H, W). The main process calls it, for all.
        batch_size: How many of them a forward pass takes.
        title: What they are.
    """

    NUM_PICTURES = 12

    def __init__(self, load: Callable[[], torch.Tensor], every: int, batch_size: int, title: str, seed: int = 0):
        self.every = every
        self.batch_size = batch_size
        self.title = title
        self.seed = seed
        # All of them everywhere: a process's share of a sharded model is of no use alone.
        self.images = on_main_process(load)

    def __call__(
        self, model: MAEForPreTraining, step: int, epoch: float, run: RunDirectory, is_stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        config, device = model.config, next(model.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(self.images), config.num_patches, generator=generator)
        total = torch.zeros((), device=device)
        for images, some_noise in zip(self.images.split(self.batch_size), noise.split(self.batch_size)):
            if is_stopped():
                return {}
            outputs = model(normalize(images.to(device), config), noise=some_noise.to(device))
            total += outputs.loss * len(images)
        pixel_values = normalize(self.images[: self.NUM_PICTURES].to(device), config)
        outputs = model.reconstruct(pixel_values, noise=noise[: self.NUM_PICTURES].to(device))
        path = picture_path(run, step)
        if run.is_main_process:
            path.parent.mkdir(exist_ok=True)
            title = f"{self.title} after {epoch:.1f} epochs"
            if config.norm_pix_loss:
                title += " (mean and contrast of each patch are the true ones)"
            save_reconstruction(model, pixel_values, outputs, path, title)
        return {"eval_loss": total.item() / len(self.images), "reconstruction": path}


# Nearest neighbours

# Similarities that are held at once: memory does not grow with the number of images.
_SIMILARITIES = 2**24


def knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """
    Scores of classes by weighted nearest neighbours (Wu et al. 2018, as DINO evaluates): the k images whose features
    have the largest cosine with a query's vote for their class with exp(cosine / temperature).

    Args:
        features, queries: Of shape `(N, D)` and `(Q, D)`, of any norm.
        labels: Class numbers of shape `(N,)`.
        k: As many as there are, where these are fewer.

    Returns:
        `(Q, num_classes)`, in the order of the queries; the largest is the answer.
    """
    # Not in the half precision of a run that looks at itself: neighbours would change places.
    with torch.autocast(queries.device.type, enabled=False):
        return _knn_scores(features.float(), labels, queries.float(), num_classes, min(k, len(features)), temperature)


def _knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    features, queries = F.normalize(features), F.normalize(queries)
    scores = torch.zeros(len(queries), num_classes, device=queries.device)
    query_chunk = min(1024, max(len(queries), 1))
    chunk = max(_SIMILARITIES // query_chunk, k)
    for start in range(0, len(queries), query_chunk):
        some = queries[start : start + query_chunk]
        best = some.new_empty(len(some), 0)
        voters = labels.new_empty(len(some), 0)
        for first in range(0, len(features), chunk):
            candidates = torch.cat([best, some @ features[first : first + chunk].T], dim=1)
            classes = torch.cat([voters, labels[first : first + chunk].expand(len(some), -1)], dim=1)
            best, index = candidates.topk(min(k, candidates.shape[1]), dim=1)
            voters = classes.gather(1, index)
        # Less the largest, which changes no order and keeps small temperatures from overflowing.
        weights = ((best - best[:, :1]) / temperature).exp()
        scores[start : start + query_chunk].scatter_add_(1, voters, weights)
    return scores


class Neighbours:
    """
    The accuracy of nearest neighbours on held-out images, by the encoder's cls token.

    Args:
        train, held_out: Sources with their labels, one class an image.
    """

    NUM_NEIGHBOURS = 20

    def __init__(
        self,
        train: tuple[Source, Labels],
        held_out: tuple[Source, Labels],
        every: int,
        batch_size: int,
        num_workers: int,
        retry_minutes: float,
    ):
        self.every = every
        self.sources = [train, held_out]
        self.options = {"batch_size": batch_size, "num_workers": num_workers, "retry_minutes": retry_minutes}

    def __call__(
        self, model: MAEForPreTraining, step: int, epoch: float, run: RunDirectory, is_stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        device = next(model.parameters()).device
        if isinstance(model, FSDPModule):
            # A call of its encoder alone neither sets it up nor gathers what the whole holds by itself.
            config = model.config
            blank = torch.zeros(1, config.num_channels, *to_pair(config.image_size), device=device)
            model(blank, noise=torch.linspace(0, 1, config.num_patches, device=device)[None], return_loss=False)
            model.unshard()
        found = []
        for source, labels in self.sources:
            mapped = map_images(
                lambda pixel_values, rows: {"features": encode(model.mae, pixel_values, "cls")},
                source,
                model.config,
                device,
                is_stopped=is_stopped,
                **self.options,
            )
            if mapped is None:
                return {}
            if not len(mapped.rows):
                raise DataError("None of the images for --knn_epochs can be read.")
            classes = torch.from_numpy(labels.values[mapped.rows])
            found.append((mapped.outputs["features"].to(device), classes.to(device)))
        (known, known_classes), (queries, classes) = found
        scores = knn_scores(known, known_classes, queries, len(self.sources[0][1].names), self.NUM_NEIGHBOURS)
        return {"eval_knn_accuracy": (scores.argmax(dim=1) == classes).double().mean().item()}


# How many images of each split --knn_epochs looks at.
_NEIGHBOURS_KNOWN, _NEIGHBOURS_ASKED = 10_000, 2_000


def make_neighbours(
    source: Source,
    held_out: Source | None,
    every: int,
    arguments: PreTrainingArguments,
    num_workers: int,
    seed: int,
) -> Neighbours:
    """
    [`Neighbours`] of up to 10,000 training images and 2,000 held-out ones, of each class its share; where the data has
    no held-out images, a sixth of these 12,000 stand for them.

    Raises:
        UserError: where the data has no labels, or several for an image.
    """
    what = "--knn_epochs: the training data"
    labels = read_labels(source, what, arguments.label_column_name)
    check_classes(labels, what)
    if labels.is_multi_label:
        raise UserError("--knn_epochs is for images of one class; these have several.")
    if held_out is None:
        count = min(_NEIGHBOURS_KNOWN + _NEIGHBOURS_ASKED, len(labels.values))
        source, labels = select(source, labels, draw_rows(labels, count, seed, "neighbours"))
        train, asked = hold_out_labelled(source, labels, 1 / 6, seed, "--knn_epochs: a share of")
    else:
        own = read_labels(held_out, "--knn_epochs: the held-out data", arguments.label_column_name, labels.names)
        train, asked = (
            select(some, known, draw_rows(known, min(count, len(known.values)), seed, "neighbours"))
            for some, known, count in ((source, labels, _NEIGHBOURS_KNOWN), (held_out, own, _NEIGHBOURS_ASKED))
        )
    batch_size = arguments.per_device_train_batch_size
    return Neighbours(train, asked, every, batch_size, num_workers, arguments.data_retry_minutes)


# Classifiers


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of a class (row) are taken for another (column), `(num_classes, num_classes)`."""
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Of each class, over images with several labels: the mean precision at each image that has it, in the order of their
    scores, images of equal scores together; NaN for a class that no image has.

    Args:
        labels: 0 or 1, `(images, classes)`.
        scores: `(images, classes)`.
    """
    found = np.full(labels.shape[1], np.nan)
    for number in range(labels.shape[1]):
        order = np.argsort(-scores[:, number], kind="stable")
        hits = labels[order, number].astype(np.int64)
        if hits.sum():
            last = np.append(np.diff(scores[order, number]) != 0, True)  # of its equals
            recalled = np.cumsum(hits)[last]
            precision = recalled / (np.flatnonzero(last) + 1)
            found[number] = (np.diff(recalled, prepend=0) * precision).sum() / hits.sum()
    return found


class Accuracy:
    """
    How a classifier does on all held-out images, each counted once by any number of processes: its loss, top-1 and
    top-5 accuracy; and in the run's directory, of the last time, its predictions, a table of the classes and the
    confusion matrix. Of images with several labels, the mean average precision.

    Args:
        source, labels: The held-out images.
        batch_size: How many of them a forward pass of a process takes.
    """

    TOP = 5
    MAX_DRAWN = 2000  # classes of a confusion matrix: it grows with their square

    def __init__(
        self,
        source: Source,
        labels: Labels,
        every: int,
        batch_size: int,
        num_workers: int = 0,
        retry_minutes: float = 0,
    ):
        self.source = source
        self.labels = labels
        self.every = every
        self.batch_size = batch_size
        self.options = {"num_workers": num_workers, "retry_minutes": retry_minutes}
        self.features: Mapped | None = None  # of a frozen encoder, once they are computed

    def __call__(
        self,
        model: MAEForImageClassification,
        step: int,
        epoch: float,
        run: RunDirectory,
        is_stopped: Callable[[], bool],
    ) -> dict[str, Any]:
        device = next(model.parameters()).device
        if torch.distributed.is_initialized():
            # Each process has statistics of its own batches; what is saved is those of the first.
            for buffer in model.head_norm.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.features is not None:
            rows, features = self.features.rows, self.features.outputs["features"]
            parts = [
                self._judge(model(encoder_outputs=MAEModelOutput(pooler_output=part.to(device))).logits, some)
                for part, some in zip(features.split(self.batch_size), _split(rows, self.batch_size))
            ]
            outputs = {name: torch.cat([part[name] for part in parts]).cpu() for name in (parts[0] if parts else ())}
            mapped = Mapped(rows, outputs, self.features.skipped)
        else:
            mapped = map_images(
                lambda pixel_values, rows: self._judge(model(pixel_values).logits, rows),
                self.source,
                model.config,
                device,
                self.batch_size,
                is_stopped=is_stopped,
                **self.options,
            )
            if mapped is None:
                return {}
        if not len(mapped.rows):
            raise DataError(f"None of the {sum(self.source.group_sizes)} held-out images can be read.")
        if mapped.skipped:
            run.log_skipped(mapped.skipped)
        return self._report(mapped, run)

    def _judge(self, logits: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
        """What is kept of each image."""
        logits, labels = logits.float(), torch.from_numpy(self.labels.values[rows]).to(logits.device)
        if self.labels.is_multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
            return {"scores": logits.sigmoid(), "loss": loss}
        top = logits.softmax(dim=1).topk(min(self.TOP, logits.shape[1]), dim=1)
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"classes": top.indices, "probabilities": top.values, "loss": loss}

    def _report(self, mapped: Mapped, run: RunDirectory) -> dict[str, Any]:
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
            if run.is_main_process and len(names) <= self.MAX_DRAWN:
                matrix = confusion_matrix(labels, classes[:, 0], len(names))
                title = f"Confusion matrix: {len(labels):,} held-out images, accuracy {found['eval_accuracy']:.1%}"
                save_confusion_matrix(matrix, names, run.path / CONFUSION_FILE, title)
            words = np.array(names, dtype=object)
            columns = {
                "label": words[labels],
                "prediction": words[classes[:, 0]],
                "probability": mapped.outputs["probabilities"][:, 0].double().numpy().round(6),
                "top5": [" | ".join(row) for row in words[classes]],
            }
        if run.is_main_process:
            rounded = {name: np.round(values, 6).tolist() for name, values in table.items()}
            write_table(run.path / CLASSES_FILE, {"class": names, **rounded})
            write_table(run.path / PREDICTIONS_FILE, origin_columns(self.source, mapped.rows) | columns)
        return found

    def _words(self, row: np.ndarray) -> str:
        return " | ".join(name for name, value in zip(self.labels.names, row) if value)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))


def origin_columns(source: Source, rows: np.ndarray) -> dict[str, list]:
    """Where images come from, as columns of a table: the file's name and the row within it."""
    origins = row_origins(source, rows)
    # Names that are not UTF-8 could not be written.
    names = [file.encode("utf-8", "backslashreplace").decode() for file, _ in origins]
    return {"file": names, "row": [row for _, row in origins]}


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Columns of equal length as CSV."""
    with open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
