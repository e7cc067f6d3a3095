"""
Pre-trains a Masked Autoencoder.

    accelerate launch examples/run_mae.py                             the embedded emoji, a small model, 3 minutes
    accelerate launch examples/run_mae.py --train_dir my_images --output_dir outputs/mine
    accelerate launch examples/run_mae.py --recipe FILE.yaml [--any_flag VALUE ...]
    python examples/run_mae.py --help

The same command again goes on where it was. Exit codes of `python examples/run_mae.py` (launchers have their own): 2
for a mistake in the command line, before anything is written; 1 for what ends a run on its way, data that breaks off,
a gradient that is not finite, a full disk; 75 after SIGTERM or Ctrl-C, with all saved. Each in one line.
"""

import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.data import data_name, open_sources
from mae.cli.model import build_model, choose_statistics, read_checkpoint
from mae.cli.parser import parse_arguments
from mae.cli.run import describe_length, describe_run, list_results, run_training
from mae.cli.script import run_script
from mae.data.loader import default_num_workers
from mae.data.subsets import hold_out
from mae.evaluation.evaluator import Evaluator
from mae.evaluation.neighbours import make_neighbours
from mae.evaluation.reconstruction import ReconstructionEvaluator, load_images, picture_path
from mae.evaluation.visualization import save_curve
from mae.hub.cards import pretraining_card
from mae.training.accelerator import make_accelerator
from mae.training.pretraining import PreTraining
from mae.training.run_directory import RunDirectory
from mae.utils.files import CURVE_FILE, RECONSTRUCTION_FILE


logger = logging.getLogger("mae.examples")


HERE = Path(__file__).resolve().parent
EMOJI = str(HERE / "data" / "emoji")


def main() -> None:
    recipe, arguments = parse_arguments(
        PreTrainingRecipe, PreTrainingArguments, description=__doc__, default_recipe=HERE / "recipes" / "emoji.yaml"
    )
    accelerator = make_accelerator(arguments)

    model, found = build_model(recipe, read_checkpoint(recipe, arguments.data_retry_minutes))
    if found is not None:
        recipe.model_revision = found.revision
    source, held_out = open_sources(recipe, model.config.num_channels, arguments.data_retry_minutes, EMOJI)
    if recipe.train_val_split is not None:
        if held_out is None:
            source, held_out = hold_out(source, recipe.train_val_split, recipe.seed)
        else:
            logger.info("Note: --train_val_split has no effect: the data has held-out images of its own.")
    measured = choose_statistics(model, source, recipe, arguments)
    kind = "Held-out images" if held_out else "Training images"
    reconstruction = ReconstructionEvaluator(
        lambda: load_images(
            held_out or source,
            model.config,
            arguments.max_eval_samples,
            retry_minutes=arguments.data_retry_minutes,
        ),
        arguments.eval_steps,
        arguments.per_device_train_batch_size,
        kind,
    )
    num_workers = arguments.dataloader_num_workers
    if num_workers is None:
        num_workers = default_num_workers(accelerator.device)
    evaluators: list[Evaluator] = [reconstruction]
    if arguments.knn_epochs is not None:
        neighbours = make_neighbours(
            source,
            held_out,
            arguments.knn_epochs,
            recipe.seed,
            arguments.per_device_train_batch_size,
            num_workers,
            arguments.data_retry_minutes,
            arguments.label_column_name,
        )
        evaluators.append(neighbours)
    training = PreTraining(model, source, recipe, arguments, accelerator, evaluators)
    facts = describe_run(training, len(reconstruction.images) if held_out else None)

    def draw(run: RunDirectory, folder: Path, metrics: list[dict], evaluations: list[dict]) -> None:
        if metrics:
            save_curve(metrics, evaluations, folder / CURVE_FILE, kind.lower())
        pictures = [line["step"] for line in evaluations if "reconstruction" in line]
        if pictures:
            shutil.copyfile(picture_path(run.path, pictures[-1]), folder / RECONSTRUCTION_FILE)

    what = f"Pre-training {model.num_parameters():,} parameters on {facts.num_images:,} images"
    run_training(
        training,
        data_name(recipe, source.revision, EMOJI),
        [found, measured, f"{what}: {describe_length(training)}"],
        draw,
        lambda *lines: pretraining_card(facts, *lines),
        summary,
    )


def summary(run: RunDirectory, results: dict) -> str:
    """What there is now, and what to do with it."""
    load = "import modeling_mae; from transformers import AutoModel; "
    load += f"print(AutoModel.from_pretrained({json.dumps(str(run.path))}))"
    # The same data and recipe: of a flag given twice the last counts.
    again = [argument for argument in sys.argv if argument != "--overwrite_output_dir"]
    again += ["--model_name_or_path", str(run.path), "--output_dir", f"{run.path}_more"]
    files = {"loss curve": CURVE_FILE, "reconstructions": RECONSTRUCTION_FILE}
    return f"""{list_results(run, results, files)}

Load the encoder:
  python -c {shlex.quote(load)}
Train on from these weights:
  accelerate launch {shlex.join(again)}"""


if __name__ == "__main__":
    run_script(main)
