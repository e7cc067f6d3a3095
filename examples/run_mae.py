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
from mae.cards import CARD_FILE, PreTrainingFacts, pretraining_card, write_card
from mae.checkpointing import CURVE_FILE, METRICS_FILE, RECONSTRUCTION_FILE, RunDirectory
from mae.data import load_images
from mae.errors import Interrupted, RunError, UserError
from mae.evaluation import Reconstruction, picture_path
from mae.hub import Publisher, end_process, open_repository
from mae.interruption import EXIT_CODE
from mae.launching import describe_environment, make_accelerator, say
from mae.sources import hold_out, open_dataset, open_folder
from mae.training import PreTraining, build_model, choose_statistics
from mae.visualization import save_curve
from mae.weights import hub_name


HERE = Path(__file__).resolve().parent


def main() -> None:
    recipe, arguments = parse_arguments(
        PreTrainingRecipe, RunArguments, description=__doc__, default_recipe=HERE / "recipes" / "emoji.yaml"
    )
    accelerator = make_accelerator(arguments)
    logging.disable_progress_bar()  # of transformers' own saving; ours is the only one

    model, found = build_model(recipe, arguments.data_retry_minutes)
    if found is not None:
        recipe.model_revision = found.revision
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
    repository = open_repository(arguments)  # before anything is written here
    run = RunDirectory(
        arguments.output_dir,
        training.identity,
        arguments.overwrite_output_dir,
        data=data_name(recipe, source.revision),
    )
    facts = PreTrainingFacts(
        config=model.config,
        num_parameters=model.num_parameters(),
        recipe=training.resolved_recipe,
        environment=describe_environment(accelerator),
        data=short_data_name(recipe),
        dataset=recipe.dataset_name if source.revision is not None else None,
        num_images=training.order.num_rows,
        num_held_out=len(evaluator.images) if held_out else None,
        steps=training.num_steps,
        epochs=training.num_epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_epochs=training.warmup_epochs,
        base_model=hub_name(recipe.model_name_or_path) if recipe.model_revision is not None else None,
        license=arguments.hub_license,
    )

    def complete(folder: Path, step: int) -> None:
        """Adds pictures and card to the model of a step."""
        metrics = [line for line in run.read_metrics() if line["step"] <= step]
        evaluations = [line for line in run.read_evaluations() if line["step"] <= step]
        if metrics:
            save_curve(metrics, evaluations, folder / CURVE_FILE, kind.lower())
        if evaluations:
            shutil.copyfile(picture_path(run, evaluations[-1]["step"]), folder / RECONSTRUCTION_FILE)
        write_card(folder, pretraining_card(facts, step, metrics, evaluations))

    publisher = None if repository is None else Publisher(repository, run, complete, arguments.data_retry_minutes)
    results = run.results
    if results is not None:
        if accelerator.is_main_process:
            print(f"This run is already finished.\n{summary(run, results)}")
        if publisher is not None:
            publisher.finish(results["steps"])
        return
    run.describe(facts.recipe, facts.environment)

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
    every_save = publisher is not None and arguments.hub_strategy == "every_save"
    results = training.train(run, publisher.push_checkpoint if every_save else None)

    if accelerator.is_main_process:
        complete(run.path, results["steps"])
        run.finish(results)
        print(summary(run, results))
    accelerator.end_training()
    if publisher is not None:  # without the others, which need not wait
        publisher.finish(results["steps"])


def short_data_name(recipe: PreTrainingRecipe) -> str:
    """What the data is called where others read it."""
    if recipe.train_dir is None and recipe.dataset_name is None:
        return "the Noto emoji"
    path = Path(recipe.train_dir or recipe.dataset_name).expanduser()
    return f"the images of {path.resolve().name if path.exists() else path}"


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
  model card       {run.path / CARD_FILE}
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
        end_process(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # a full disk, say, where something small is written
        print(f"error: {error}. The same command goes on from the last checkpoint.", file=sys.stderr)
        end_process(1)
    except (Interrupted, KeyboardInterrupt) as error:  # the second before training has begun
        if rank == "0":
            print(str(error) or "Stopped before training began.", file=sys.stderr)
        end_process(EXIT_CODE if isinstance(error, Interrupted) else 128 + signal.SIGINT)
