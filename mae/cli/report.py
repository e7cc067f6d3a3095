"""What a run reports: figures, a model card, and a summary on the console."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from mae.cli.data import short_data_name
from mae.cli.mixture import describe_parts
from mae.conversion.hub_files import hub_name
from mae.evaluation.reconstruction import picture_path
from mae.hub.cards import RunFacts, classification_card, pretraining_card, segmentation_card
from mae.training.accelerator import describe_environment
from mae.training.run_directory import RunDirectory
from mae.training.setup import Training
from mae.utils.files import (
    CARD_FILE,
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVE_FILE,
    MASKS_FOLDER,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    RECONSTRUCTION_FILE,
    SEGMENTATION_FILE,
)


Lines = list[dict[str, Any]]


class Report(Protocol):
    """What a run leaves beside the model. `metrics` and `evaluations` are the lines of the logs up to a step."""

    def describe(self) -> str:
        """What is trained on what, in a line for the console."""

    def draw(self, folder: Path, metrics: Lines, evaluations: Lines) -> None:
        """Write the figures into a folder."""

    def card(self, step: int, metrics: Lines, evaluations: Lines) -> str:
        """The model card of a step."""

    def summary(self, run: RunDirectory, results: dict[str, Any]) -> str:
        """The results of a finished run, and what to do next."""


def describe_run(training: Training, num_validation: int | None) -> RunFacts:
    """The facts of a run for its card."""
    recipe, schedule, source = training.recipe, training.schedule, training.task.source
    return RunFacts(
        config=training.task.model.config,
        num_parameters=training.task.model.num_parameters(),
        recipe=training.resolved_recipe,
        environment=describe_environment(training.accelerator),
        data=short_data_name(recipe),
        parts=describe_parts(source),
        dataset=recipe.dataset_name if source.revision is not None else None,
        num_images=training.order.num_rows,
        num_validation_images=num_validation,
        steps=schedule.num_steps,
        epochs=schedule.num_epochs,
        batch_size=schedule.batch_size,
        learning_rate=schedule.peak,
        warmup_epochs=schedule.warmup_epochs,
        base_model=hub_name(recipe.model_name_or_path) if recipe.model_revision is not None else None,
        license=training.arguments.hub_license,
    )


def describe_length(training: Training) -> str:
    """Length and hardware of a run, for the console."""
    accelerator, schedule = training.accelerator, training.schedule
    threads = f" with {torch.get_num_threads()} threads each" if accelerator.device.type == "cpu" else ""
    workers = f"{training.num_workers} DataLoader worker{'s' * (training.num_workers != 1)}"
    return (
        f"{schedule.num_steps} steps of {schedule.batch_size} images, {schedule.num_epochs:.1f} epochs, on "
        f"{accelerator.num_processes} x {accelerator.device.type}{threads}, {workers}"
    )


def list_results(run: RunDirectory, results: dict[str, Any], files: dict[str, str]) -> str:
    """Scores of a finished run, and the paths of its files; `files` are those of the task, name by description."""
    files = files | {"metrics": METRICS_FILE, "model card": CARD_FILE}
    names = ("loss", *(name for name in results if name.startswith("eval_")))
    scores = ", ".join(f"{name} {results[name]:.4g}" for name in names if isinstance(results[name], (int, float)))
    places = {"model": str(run.path)} | {what: str(run.path / name) for what, name in files.items()}
    places["checkpoints"] = ", ".join(map(str, run.checkpoints.paths()))
    lines = [f"  {what:<17}{place}" for what, place in places.items()]
    return "\n".join(["", f"{results['steps']} steps, {results['epochs']:.1f} epochs, {scores}", *lines])


class PreTrainingReport:
    """The [`Report`] of pre-training."""

    def __init__(self, training: Training, num_validation: int | None):
        self.training = training
        self.facts = describe_run(training, num_validation)

    def describe(self) -> str:
        facts = self.facts
        what = f"Pre-training {facts.num_parameters:,} parameters on {facts.num_images:,} images"
        return f"{what}: {describe_length(self.training)}"

    def draw(self, folder: Path, metrics: Lines, evaluations: Lines) -> None:
        # Imported late: a run need not wait for matplotlib before its first step.
        from mae.evaluation.visualization import save_curve

        kind = "training images" if self.facts.num_validation_images is None else "validation images"
        if metrics:
            save_curve(metrics, evaluations, folder / CURVE_FILE, kind)
        pictures = [line["step"] for line in evaluations if "reconstruction" in line]
        if pictures:
            run_folder = Path(self.training.arguments.output_dir)
            shutil.copyfile(picture_path(run_folder, pictures[-1]), folder / RECONSTRUCTION_FILE)

    def card(self, step: int, metrics: Lines, evaluations: Lines) -> str:
        return pretraining_card(self.facts, step, metrics, evaluations)

    def summary(self, run: RunDirectory, results: dict[str, Any]) -> str:
        path = str(run.path)
        load = f"import mae; from transformers import AutoModel; print(AutoModel.from_pretrained({json.dumps(path)}))"
        # recipe.yaml names the data too, and none of the flags of the Hub.
        again = [sys.argv[0], "--recipe", str(run.path / RECIPE_FILE), "--model_name_or_path", path]
        again += ["--output_dir", f"{path}_more"]
        files = {"loss curve": CURVE_FILE, "reconstructions": RECONSTRUCTION_FILE}
        horizon, longer = self.training.schedule.horizon, ""
        if horizon is not None:
            longer = "\nTrain for longer: the same command with a larger --max_steps or --num_train_epochs resumes "
            longer += f"after step {horizon.steady_steps}."
        return f"""{list_results(run, results, files)}

Load the encoder:
  python -c {shlex.quote(load)}
Train further from these weights:
  accelerate launch {shlex.join(again)}{longer}"""


class ClassificationReport:
    """The [`Report`] of a classifier."""

    def __init__(self, training: Training, num_classes: int, num_validation: int):
        self.training = training
        self.num_classes = num_classes
        self.facts = describe_run(training, num_validation)

    def describe(self) -> str:
        facts, model = self.facts, self.training.task.model
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        what = f"{self.training.task.name.capitalize()} of {trained:,} of {facts.num_parameters:,} parameters on "
        what += f"{facts.num_images:,} images of {self.num_classes} classes, "
        what += f"{facts.num_validation_images:,} validation images"
        return f"{what}: {describe_length(self.training)}"

    def draw(self, folder: Path, metrics: Lines, evaluations: Lines) -> None:
        # Imported late: a run need not wait for matplotlib before its first step.
        from mae.evaluation.visualization import save_curve

        if metrics:
            title = f"{self.training.task.name.capitalize()}: loss"
            save_curve(metrics, evaluations, folder / CURVE_FILE, "validation images", title, "loss")

    def card(self, step: int, metrics: Lines, evaluations: Lines) -> str:
        return classification_card(self.facts, step, metrics, evaluations)

    def summary(self, run: RunDirectory, results: dict[str, Any]) -> str:
        files = {
            "curve": CURVE_FILE,
            "predictions": PREDICTIONS_FILE,
            "classes": CLASSES_FILE,
            "confusion matrix": CONFUSION_FILE,
            "pictures": SEGMENTATION_FILE,
            "predicted masks": MASKS_FOLDER,
        }
        files = {what: name for what, name in files.items() if (run.path / name).exists()}
        return f"""{list_results(run, results, files)}

Use it:
  {self.use(str(run.path))}"""

    def use(self, path: str) -> str:
        """A command that uses the model in a directory."""
        code = "import mae; from transformers import pipeline; "
        code += f'print(pipeline("image-classification", {json.dumps(path)})("photo.jpg"))'
        return f"python -c {shlex.quote(code)}"


class SegmentationReport(ClassificationReport):
    """The [`Report`] of a segmenter."""

    def card(self, step: int, metrics: Lines, evaluations: Lines) -> str:
        return segmentation_card(self.facts, step, metrics, evaluations)

    def use(self, path: str) -> str:
        return shlex.join(["python", "examples/segment.py", "--model", path, "--images", "photo.jpg"])
