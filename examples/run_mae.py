"""
Pre-train a Masked Autoencoder.

    accelerate launch examples/run_mae.py                             the embedded emoji, a small model, 3 minutes
    accelerate launch examples/run_mae.py --recipe examples/recipes/emoji.yaml --train_dir my_images
    accelerate launch examples/run_mae.py --recipe FILE.yaml [--any_flag VALUE ...]
    python examples/run_mae.py --help

Run the same command again to resume. Exit codes: 0 finished; 1 the run failed (unreadable data, non-finite gradient,
full disk); 2 invalid arguments, nothing was written; 75 interrupted, a checkpoint was saved. Launchers may replace the
code.
"""

from pathlib import Path

from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import PreTrainingArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import quick_imports, run_script


HERE = Path(__file__).resolve().parent


def main() -> None:
    recipe, arguments = parse_arguments(
        PreTrainingRecipe, PreTrainingArguments, description=__doc__, recipes=HERE / "recipes", default_recipe="emoji"
    )
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    with quick_imports():
        from mae.cli.data import data_name, open_splits
        from mae.cli.evaluators import make_evaluators
        from mae.cli.model import build_model, choose_statistics, read_checkpoint
        from mae.cli.preview import preview_augmentation
        from mae.cli.report import PreTrainingReport
        from mae.cli.run import run_training
        from mae.data.bands import bands_of
        from mae.training.accelerator import make_accelerator
        from mae.training.pretraining import PreTraining
        from mae.training.schedule import fit_to_small_data
        from mae.training.setup import Training

    accelerator = make_accelerator(arguments, arguments.output_dir, arguments.trackers)

    model, found = build_model(recipe, read_checkpoint(recipe, arguments.data_retry_minutes))
    if found is not None:
        recipe.model_revision = found.revision
    source, held_out = open_splits(recipe, bands_of(model.config), arguments.data_retry_minutes)
    num_images, num_processes = len(source), accelerator.num_processes
    notes = fit_to_small_data(recipe, arguments, num_images, num_processes)
    measured = choose_statistics(model, source, recipe, arguments)
    task = PreTraining(model, source, recipe)
    if arguments.preview_augmentation is not None:
        return preview_augmentation(task, recipe.seed, arguments)

    reconstruction, others = make_evaluators(model, source, held_out, recipe, arguments, accelerator)
    training = Training(task, recipe, arguments, accelerator, [reconstruction, *others])
    report = PreTrainingReport(training, len(reconstruction.images) if held_out else None)
    run_training(training, report, data_name(recipe, source.revision), [found, measured, *notes])


if __name__ == "__main__":
    run_script(main)
