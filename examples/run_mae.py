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
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import torch
from transformers.utils import logging

from mae.arguments import PreTrainingRecipe, RunArguments, parse_arguments
from mae.checkpointing import CURVE_FILE, METRICS_FILE, RECONSTRUCTION_FILE, RunDirectory
from mae.data import load_images
from mae.errors import Interrupted, RunError, UserError
from mae.evaluation import Reconstruction, picture_path
from mae.interruption import EXIT_CODE
from mae.launching import describe_environment, make_accelerator, say
from mae.sources import hold_out, open_dataset, open_folder
from mae.training import PreTraining, build_model, choose_statistics
from mae.visualization import save_curve


HERE = Path(__file__).resolve().parent


def main() -> None:
    recipe, arguments = parse_arguments(
        PreTrainingRecipe, RunArguments, description=__doc__, default_recipe=HERE / "recipes" / "emoji.yaml"
    )
    accelerator = make_accelerator(arguments)
    logging.disable_progress_bar()  # of transformers' own saving; ours is the only one

    model, found = build_model(recipe)
    if recipe.train_dir is not None:
        channels = model.config.num_channels
        source = open_folder(recipe.train_dir, "--train_dir", channels)
        held_out = None
        if recipe.validation_dir is not None:
            held_out = open_folder(recipe.validation_dir, "--validation_dir", channels)
    else:
        source, held_out = open_dataset(
            recipe.dataset_name or str(HERE / "data" / "emoji"),
            recipe.dataset_config_name,
            recipe.image_column_name,
            recipe.dataset_revision,
            arguments.data_retry_minutes,
            recipe.streaming,
        )
    if recipe.train_val_split is not None:
        if held_out is None:
            source, held_out = hold_out(source, recipe.train_val_split, recipe.seed)
        else:
            say("Note: --train_val_split has no effect: the data has held-out images of its own.")
    measured = choose_statistics(model, source, recipe, arguments)
    kind = "Held-out images" if held_out else "Training images"
    evaluator = Reconstruction(
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
    training = PreTraining(model, source, recipe, arguments, accelerator, [evaluator])
    run = RunDirectory(
        arguments.output_dir,
        training.identity,
        arguments.overwrite_output_dir,
        data=data_name(recipe, source.revision),
    )
    results = run.results
    if results is not None:
        if accelerator.is_main_process:
            print(f"This run is already finished.\n{summary(run, results)}")
        return
    run.describe(training.resolved_recipe, describe_environment(accelerator))

    say(f"Data: {data_name(recipe, source.revision)}")
    if source.note is not None:
        say(source.note)
    if found is not None:
        say(found)
    if measured is not None:
        say(measured)
    threads = f", {torch.get_num_threads()} threads each" if accelerator.device.type == "cpu" else ""
    say(
        f"Pre-training {model.num_parameters():,} parameters on {training.order.num_rows:,} images: "
        f"{training.num_steps} steps of {training.batch_size} images, {training.num_epochs:.1f} epochs, on "
        f"{accelerator.num_processes} x {accelerator.device.type}{threads}, {training.num_workers} decoding"
    )
    results = training.train(run)

    if accelerator.is_main_process:
        save_curve(run.read_metrics(), run.read_evaluations(), run.path / CURVE_FILE, kind.lower())
        shutil.copyfile(picture_path(run, results["steps"]), run.path / RECONSTRUCTION_FILE)
        run.finish(results)
        print(summary(run, results))
    accelerator.end_training()


def data_name(recipe: PreTrainingRecipe, revision: str | None) -> str:
    """The flags that name the data, to be printed."""
    if recipe.train_dir is not None:
        return f"--train_dir {recipe.train_dir}"
    name = f"--dataset_name {recipe.dataset_name or HERE / 'data' / 'emoji'}"
    for flag, value in (
        ("dataset_config_name", recipe.dataset_config_name),
        ("dataset_revision", revision),
        ("image_column_name", recipe.image_column_name),
    ):
        name += f" --{flag} {value}" if value is not None else ""
    return name if recipe.streaming else f"{name} --no_streaming"


def summary(run: RunDirectory, results: dict) -> str:
    """What there is now, and what to do with it."""
    load = "import modeling_mae; from transformers import AutoModel; "
    load += f"print(AutoModel.from_pretrained({json.dumps(str(run.path))}))"
    # The same data and recipe: of a flag given twice the last counts.
    again = [argument for argument in sys.argv if argument != "--overwrite_output_dir"]
    again += ["--model_name_or_path", str(run.path), "--output_dir", f"{run.path}_more"]
    losses = ", ".join(f"{name} {results[name]:.4f}" for name in ("loss", "eval_loss") if results[name] is not None)
    return f"""
{results["steps"]} steps, {results["epochs"]:.1f} epochs, {losses}
  model            {run.path}
  loss curve       {run.path / CURVE_FILE}
  reconstructions  {run.path / RECONSTRUCTION_FILE}
  metrics          {run.path / METRICS_FILE}
  checkpoints      {", ".join(str(path) for path in run.checkpoints())}

Load the encoder:
  python -c {shlex.quote(load)}
Train on from these weights:
  accelerate launch {shlex.join(again)}"""


if __name__ == "__main__":
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except (UserError, RunError) as error:
        if not error.is_told:  # every process has its own data to break off
            print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # a full disk, say, where something small is written
        print(f"error: {error}. The same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt) as error:  # the second before training has begun
        if rank == "0":
            print(str(error) or "Stopped before training began.", file=sys.stderr)
        sys.exit(EXIT_CODE if isinstance(error, Interrupted) else 128 + signal.SIGINT)
