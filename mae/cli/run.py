"""What training scripts do around the loop: data from flags, a run's directory, card and pushes, exit codes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mae.arguments.run import RunArguments
from mae.cli.data import short_data_name
from mae.conversion.hub_files import hub_name
from mae.hub.cards import RunFacts, write_card
from mae.hub.publisher import Publisher
from mae.hub.repository import Repository
from mae.training.accelerator import describe_environment
from mae.training.loop import Training
from mae.training.run_directory import RunDirectory
from mae.utils.distributed import on_main_process
from mae.utils.files import CARD_FILE, METRICS_FILE


logger = logging.getLogger(__name__)


def open_repository(arguments: RunArguments) -> Repository | None:
    """
    The repository that the flags name, on the main process; None on others, and without --push_to_hub. Every process
    must call.

    Raises:
        UserError: where one may not write there.
    """
    opened = None

    def open_it() -> None:
        nonlocal opened
        opened = Repository(
            arguments.hub_model_id or Path(arguments.output_dir).resolve().name,
            arguments.hub_private_repo,
            arguments.hub_revision,
            arguments.data_retry_minutes,
        )
        logger.info(f"Model repository: {opened.url}")
        if arguments.hub_license is None:
            logger.info(
                "Note: its card will say that the licence is unknown; --hub_license names the one of your weights."
            )

    if arguments.push_to_hub:
        on_main_process(open_it)
    return opened


def describe_run(training: Training, num_held_out: int | None) -> RunFacts:
    """What a card tells of a run."""
    recipe, source = training.recipe, training.source
    return RunFacts(
        config=training.model.config,
        num_parameters=training.model.num_parameters(),
        recipe=training.resolved_recipe,
        environment=describe_environment(training.accelerator),
        data=short_data_name(recipe),
        dataset=recipe.dataset_name if source.revision is not None else None,
        num_images=training.order.num_rows,
        num_held_out=num_held_out,
        steps=training.num_steps,
        epochs=training.num_epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_epochs=training.warmup_epochs,
        base_model=hub_name(recipe.model_name_or_path) if recipe.model_revision is not None else None,
        license=training.arguments.hub_license,
    )


def describe_length(training: Training) -> str:
    """How long a run is and on what, to be printed."""
    accelerator = training.accelerator
    threads = f", {torch.get_num_threads()} threads each" if accelerator.device.type == "cpu" else ""
    return (
        f"{training.num_steps} steps of {training.batch_size} images, {training.num_epochs:.1f} epochs, on "
        f"{accelerator.num_processes} x {accelerator.device.type}{threads}, {training.num_workers} decoding"
    )


def run_training(
    training: Training,
    data: str,
    notes: Sequence[object],
    draw: Callable[[RunDirectory, Path, list[dict], list[dict]], None],
    card: Callable[[int, list[dict], list[dict]], str],
    summary: Callable[[RunDirectory, dict], str],
) -> None:
    """
    A whole run: its directory, training, pictures, card and pushes; or what there is of one that is finished.

    Args:
        data: What names the data, to be printed.
        notes: What is said before training starts.
        draw: Adds pictures to a folder, of the lines of metrics and evaluations up to a step.
        card: The model card of a step, of these lines.
        summary: What is said of a finished run.
    """
    arguments, accelerator = training.arguments, training.accelerator
    repository = open_repository(arguments)  # before anything is written here
    run = RunDirectory(arguments.output_dir, training.identity, arguments.overwrite_output_dir, data=data)

    def complete(folder: Path, step: int) -> None:
        """Adds pictures and card to the model of a step."""
        metrics = [line for line in run.read_metrics() if line["step"] <= step]
        evaluations = [line for line in run.read_evaluations() if line["step"] <= step]
        draw(run, folder, metrics, evaluations)
        write_card(folder, card(step, metrics, evaluations))

    publisher = None if repository is None else Publisher(repository, run.path, complete, arguments.data_retry_minutes)
    results = run.results
    if results is not None:
        if accelerator.is_main_process:
            logger.info(f"This run is already finished.\n{summary(run, results)}")
        if publisher is not None:
            publisher.finish(results["steps"])
        return
    run.describe(training.resolved_recipe, describe_environment(accelerator))
    for note in [f"Data: {data}", training.source.note, *notes]:
        if note is not None:
            logger.info(note)
    every_save = publisher is not None and arguments.hub_strategy == "every_save"
    results = training.train(run, publisher.push_checkpoint if every_save else None)

    if accelerator.is_main_process:
        complete(run.path, results["steps"])
        run.finish(results)
        logger.info(summary(run, results))
    accelerator.end_training()
    if publisher is not None:  # without the others, which need not wait
        publisher.finish(results["steps"])


def list_results(run: RunDirectory, results: dict, files: dict[str, str]) -> str:
    """
    What a finished run has come to, and where it is.

    Args:
        files: What a file is -> its name, beside the model and what every run has.
    """
    files = files | {"metrics": METRICS_FILE, "model card": CARD_FILE}
    names = ("loss", *(name for name in results if name.startswith("eval_")))
    scores = ", ".join(f"{name} {results[name]:.4g}" for name in names if isinstance(results[name], (int, float)))
    places = {"model": str(run.path)} | {what: str(run.path / name) for what, name in files.items()}
    places["checkpoints"] = ", ".join(map(str, run.checkpoints()))
    lines = [f"  {what:<17}{place}" for what, place in places.items()]
    return "\n".join(["", f"{results['steps']} steps, {results['epochs']:.1f} epochs, {scores}", *lines])
