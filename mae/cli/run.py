"""Run training end to end: claim the output directory, train, draw, write the card, push."""

import logging
from collections.abc import Sequence
from pathlib import Path

from mae.arguments.run import RunArguments
from mae.cli.report import Report
from mae.hub.cards import write_card
from mae.hub.publisher import Publisher
from mae.hub.repository import Repository
from mae.training.accelerator import describe_environment
from mae.training.loop import train
from mae.training.run_directory import RunDirectory
from mae.training.setup import Training
from mae.utils.distributed import is_main_process, on_main_process


logger = logging.getLogger(__name__)


def open_repository(arguments: RunArguments) -> Repository | None:
    """
    The repository that the flags name, on rank 0; None on other ranks and without --push_to_hub. A collective.

    Raises:
        UserError: if it cannot be written.
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
        opened.create()
        logger.info(f"Model repository: {opened.url}")
        if arguments.hub_license is None:
            logger.info("Note: the licence on its card will be unknown. Set it with --hub_license.")

    if arguments.push_to_hub:
        on_main_process(open_it)
    return opened


def run_training(training: Training, report: Report, data: str, notes: Sequence[object] = ()) -> None:
    """
    Run training end to end, or report a run that is finished. A collective.

    Args:
        data: Flags that name the data, for messages.
        notes: Printed before training starts.
    """
    arguments, accelerator = training.arguments, training.accelerator
    with RunDirectory(
        arguments.output_dir,
        training.identity,
        arguments.overwrite_output_dir,
        data,
        arguments.resume_from_checkpoint,
        arguments.save_total_limit,
        training.schedule.horizon,
    ) as run:
        # After the directory is claimed: no repository is made for a command that is refused.
        repository = open_repository(arguments)

        def complete(folder: Path, step: int) -> None:
            """Add figures and card to the model of a step."""
            metrics = [line for line in run.metrics.read() if line["step"] <= step]
            evaluations = [line for line in run.evaluations.read() if line["step"] <= step]
            report.draw(folder, metrics, evaluations)
            write_card(folder, report.card(step, metrics, evaluations))

        publisher = None
        if repository is not None:
            publisher = Publisher(repository, run.path, complete, arguments.data_retry_minutes)
        results = run.read_results()
        if results is not None:
            if is_main_process():
                logger.info(f"This run is already finished.\n{report.summary(run, results)}")
            if publisher is not None:
                publisher.finish(results["steps"])
            return
        if is_main_process():
            run.describe(training.resolved_recipe, describe_environment(accelerator))
        for note in [f"Data: {data}", training.task.source.note, *notes, report.describe()]:
            if note is not None:
                logger.info(note)
        every_save = publisher is not None and arguments.hub_strategy == "every_save"
        results = train(training, run, publisher.push_checkpoint if every_save else None)

        if is_main_process():
            complete(run.path, results["steps"])
            run.finish(results)
            logger.info(report.summary(run, results))
        accelerator.end_training()
        if publisher is not None:  # the other ranks need not wait
            publisher.finish(results["steps"])
