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
import shlex
import shutil
import sys
from pathlib import Path

from transformers.utils import logging

from mae.arguments.recipes import PreTrainingArguments, PreTrainingRecipe, parse_arguments
from mae.cli.model import build_model, choose_statistics, read_checkpoint
from mae.cli.run import conduct, data_name, describe_length, describe_run, list_results, open_sources, run_script
from mae.data.loader import load_images
from mae.data.sources import hold_out
from mae.evaluation.accuracy import Evaluator, Reconstruction, make_neighbours, picture_path
from mae.evaluation.visualization import save_curve
from mae.hub.cards import pretraining_card
from mae.training.accelerator import make_accelerator, say
from mae.training.pretraining import PreTraining
from mae.training.run_directory import CURVE_FILE, RECONSTRUCTION_FILE, RunDirectory


HERE = Path(__file__).resolve().parent
EMOJI = str(HERE / "data" / "emoji")


def main() -> None:
    recipe, arguments = parse_arguments(
        PreTrainingRecipe, PreTrainingArguments, description=__doc__, default_recipe=HERE / "recipes" / "emoji.yaml"
    )
    accelerator = make_accelerator(arguments)
    logging.disable_progress_bar()  # of transformers' own saving; ours is the only one

    model, found = build_model(recipe, read_checkpoint(recipe, arguments.data_retry_minutes))
    if found is not None:
        recipe.model_revision = found.revision
    source, held_out = open_sources(recipe, model.config.num_channels, arguments.data_retry_minutes, EMOJI)
    if recipe.train_val_split is not None:
        if held_out is None:
            source, held_out = hold_out(source, recipe.train_val_split, recipe.seed)
        else:
            say("Note: --train_val_split has no effect: the data has held-out images of its own.")
    measured = choose_statistics(model, source, recipe, arguments)
    kind = "Held-out images" if held_out else "Training images"
    reconstruction = Reconstruction(
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
    evaluators: list[Evaluator] = [reconstruction]
    training = PreTraining(model, source, recipe, arguments, accelerator, evaluators)
    if arguments.knn_epochs is not None:
        every = max(round(arguments.knn_epochs * training.steps_per_epoch), 1)
        evaluators.append(make_neighbours(source, held_out, every, arguments, training.num_workers, recipe.seed))
    facts = describe_run(training, len(reconstruction.images) if held_out else None)

    def draw(run: RunDirectory, folder: Path, metrics: list[dict], evaluations: list[dict]) -> None:
        if metrics:
            save_curve(metrics, evaluations, folder / CURVE_FILE, kind.lower())
        pictures = [line["step"] for line in evaluations if "reconstruction" in line]
        if pictures:
            shutil.copyfile(picture_path(run, pictures[-1]), folder / RECONSTRUCTION_FILE)

    what = f"Pre-training {model.num_parameters():,} parameters on {facts.num_images:,} images"
    conduct(
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
