"""
Trains a classifier of images on a pre-trained encoder, and says how good it is on held-out images.

    accelerate launch examples/run_image_classification.py --model_name_or_path outputs/run_mae --train_dir my_images
    ... --protocol finetune                              all weights: what the encoder can become
    ... --protocol linear                                a classifier on frozen features: what it has already
    ... --protocol partial --num_trainable_blocks 4      in between
    ... --from_scratch                                   without pre-training: the baseline
    python examples/run_image_classification.py --help

my_images has a folder of images for each class; or --dataset_name with a column of labels. Held-out images are those
of --validation_dir or of the data set's own split, or --train_val_split 0.1 of the others.

What no flag says is the paper's: Tables 9 to 11. The same command again goes on where it was. Exit codes of `python
examples/run_image_classification.py` (launchers have their own): 2 for a mistake in the command line, before anything
is written; 1 for what ends a run on its way; 75 after SIGTERM or Ctrl-C, with all saved. Each in one line.
"""

import json
import shlex
from pathlib import Path

from mae.arguments.recipes import ClassificationRecipe
from mae.arguments.run import ClassificationArguments
from mae.cli.data import data_name, open_labelled
from mae.cli.model import build_classifier, choose_statistics, find_num_channels, read_checkpoint
from mae.cli.parser import parse_arguments
from mae.cli.run import describe_length, describe_run, list_results, run_training
from mae.cli.script import run_script
from mae.evaluation.accuracy import AccuracyEvaluator
from mae.evaluation.visualization import save_curve
from mae.hub.cards import classification_card
from mae.training.accelerator import make_accelerator
from mae.training.classification import Classification
from mae.training.run_directory import RunDirectory
from mae.utils.files import CLASSES_FILE, CONFUSION_FILE, CURVE_FILE, PREDICTIONS_FILE


EMOJI = str(Path(__file__).resolve().parent / "data" / "emoji")


def main() -> None:
    recipe, arguments = parse_arguments(ClassificationRecipe, ClassificationArguments, description=__doc__)
    accelerator = make_accelerator(arguments)

    weights = read_checkpoint(recipe, arguments.data_retry_minutes)
    channels = find_num_channels(recipe, weights)
    (source, labels), (held_out, held_out_labels) = open_labelled(
        recipe, channels, arguments.data_retry_minutes, arguments.max_eval_samples, EMOJI
    )
    model, found = build_classifier(recipe, weights, labels)
    if found is not None:
        recipe.model_revision = found.revision
    measured = choose_statistics(model, source, recipe, arguments)
    accuracy = AccuracyEvaluator(
        held_out, held_out_labels, arguments.eval_steps, arguments.per_device_train_batch_size
    )
    training = Classification(model, source, recipe, arguments, accelerator, accuracy, labels)
    facts = describe_run(training, len(held_out_labels.values))

    def draw(run: RunDirectory, folder: Path, metrics: list[dict], evaluations: list[dict]) -> None:
        if metrics:
            title = f"{training.task.capitalize()}: loss"
            save_curve(metrics, evaluations, folder / CURVE_FILE, "held-out images", title, "loss")

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    what = (
        f"{training.task.capitalize()} of {trained:,} of {facts.num_parameters:,} parameters on {facts.num_images:,} "
        f"images of {len(labels.names)} classes, {facts.num_held_out:,} held out"
    )
    run_training(
        training,
        data_name(recipe, source.revision, EMOJI),
        [found, measured, f"{what}: {describe_length(training)}"],
        draw,
        lambda *lines: classification_card(facts, *lines),
        summary,
    )


def summary(run: RunDirectory, results: dict) -> str:
    """What there is now, and what to do with it."""
    use = "import modeling_mae; from transformers import pipeline; "
    use += f"print(pipeline('image-classification', {json.dumps(str(run.path))})('photo.jpg'))"
    files = {
        "curve": CURVE_FILE,
        "predictions": PREDICTIONS_FILE,
        "classes": CLASSES_FILE,
        "confusion matrix": CONFUSION_FILE,
    }
    files = {what: name for what, name in files.items() if (run.path / name).exists()}
    return f"""{list_results(run, results, files)}

Use it:
  python -c {shlex.quote(use)}"""


if __name__ == "__main__":
    run_script(main)
