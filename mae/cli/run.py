"""What training scripts do around the loop: data from flags, a run's directory, card and pushes, exit codes."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mae.arguments.recipes import ClassificationRecipe, DataArguments, FeatureArguments
from mae.conversion.weights import hub_name
from mae.data.labels import Labels, check_classes, draw_rows, hold_out_labelled, read_labels, select
from mae.data.loader import is_of_a_worker, lost_worker
from mae.data.sources import Kept, Source, open_dataset, open_folder
from mae.hub.cards import CARD_FILE, Facts, write_card
from mae.hub.repository import Publisher, end_process, open_repository
from mae.training.accelerator import describe_environment, say
from mae.training.interruption import EXIT_CODE
from mae.training.loop import Training
from mae.training.run_directory import METRICS_FILE, RunDirectory
from mae.utils.errors import Interrupted, RunError, UserError


def open_sources(
    data: DataArguments, num_channels: int, retry_minutes: float, default: str | None = None
) -> tuple[Source, Source | None]:
    """
    The training images that flags name, and the held-out ones where the data has them.

    Args:
        default: The data set where they name none.
    """
    if data.train_dir is not None:
        source, held_out = open_folder(data.train_dir, "--train_dir", num_channels), None
        if data.validation_dir is not None:
            held_out = open_folder(data.validation_dir, "--validation_dir", num_channels)
        return source, held_out
    name = data.dataset_name or default
    if name is None:
        raise UserError("Name the data: --dataset_name, or --train_dir with a folder of images for each class.")
    return open_dataset(
        name,
        data.dataset_config_name,
        data.image_column_name,
        data.dataset_revision,
        retry_minutes,
        data.streaming,
    )


def open_labelled(
    data: ClassificationRecipe | FeatureArguments,
    num_channels: int,
    retry_minutes: float,
    max_eval_samples: int | None = None,
    default: str | None = None,
) -> tuple[tuple[Source, Labels], tuple[Source, Labels]]:
    """
    The training images that flags name, and the held-out ones, with their labels.

    Raises:
        UserError: where there are no held-out images, and as [`read_labels`].
    """
    source, held_out = open_sources(data, num_channels, retry_minutes, default)
    flag = "--train_dir" if data.train_dir is not None else "--dataset_name"
    what = f"{flag} {getattr(data, flag[2:]) or default}"
    labels = read_labels(source, what, data.label_column_name)
    check_classes(labels, what)
    if held_out is not None and data.train_val_split is None:
        flag = "--validation_dir" if data.train_dir is not None else "--dataset_name, its held-out split,"
        train, held = (source, labels), (held_out, read_labels(held_out, flag, data.label_column_name, labels.names))
    elif data.train_val_split is not None:
        if held_out is not None:
            say("Note: as --train_val_split says, training images are held out, and the data's own are not looked at.")
        train, held = hold_out_labelled(source, labels, data.train_val_split, data.seed)
    else:
        other = "--validation_dir" if data.train_dir is not None else "a data set with a validation split"
        raise UserError(f"There are no held-out images to evaluate on: --train_val_split 0.1, or {other}.")
    if data.max_train_samples is not None and data.max_train_samples < len(train[1].values):
        some, labels = select(*train, draw_rows(train[1], data.max_train_samples, data.seed, "training samples"))
        train = Kept(some), labels
    if max_eval_samples is not None and max_eval_samples < len(held[1].values):
        held = select(*held, draw_rows(held[1], max_eval_samples, 0, "held-out samples"))
    return train, held


def short_data_name(data: DataArguments) -> str:
    """What the data is called where others read it."""
    if data.train_dir is None and data.dataset_name is None:
        return "the Noto emoji"
    path = Path(data.train_dir or data.dataset_name).expanduser()
    return f"the images of {path.resolve().name if path.exists() else path}"


def data_name(data: DataArguments, revision: str | None, default: str | None = None) -> str:
    """The flags that name the data, to be printed."""
    if data.train_dir is not None:
        return f"--train_dir {data.train_dir}"
    name = f"--dataset_name {data.dataset_name or default}"
    for flag, value in (
        ("dataset_config_name", data.dataset_config_name),
        ("dataset_revision", revision),
        ("image_column_name", data.image_column_name),
    ):
        name += f" --{flag} {value}" if value is not None else ""
    return name if data.streaming else f"{name} --no_streaming"


def describe_run(training: Training, num_held_out: int | None) -> Facts:
    """What a card tells of a run."""
    recipe, source = training.recipe, training.source
    return Facts(
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


def conduct(
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

    publisher = None if repository is None else Publisher(repository, run, complete, arguments.data_retry_minutes)
    results = run.results
    if results is not None:
        if accelerator.is_main_process:
            print(f"This run is already finished.\n{summary(run, results)}")
        if publisher is not None:
            publisher.finish(results["steps"])
        return
    run.describe(training.resolved_recipe, describe_environment(accelerator))
    for note in [f"Data: {data}", training.source.note, *notes]:
        if note is not None:
            say(note)
    every_save = publisher is not None and arguments.hub_strategy == "every_save"
    results = training.train(run, publisher.push_checkpoint if every_save else None)

    if accelerator.is_main_process:
        complete(run.path, results["steps"])
        run.finish(results)
        print(summary(run, results))
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


def run_script(main: Callable[[], None], can_resume: bool = True) -> None:
    """
    Runs a script's `main`, and ends it with its exit code, told in one line: see the scripts.

    Args:
        can_resume: Whether the same command goes on where it was.
    """
    rank = os.environ.get("RANK", "0")
    try:
        main()
    except (UserError, RunError) as error:
        if not error.is_told:  # every process has its own data to break off
            print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
        end_process(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # a full disk, say, where something small is written
        then = " The same command goes on from the last checkpoint." if can_resume else ""
        print(f"error: {error}.{then}", file=sys.stderr)
        end_process(1)
    except RuntimeError as error:
        if not is_of_a_worker(error):
            raise
        print(f"error: {lost_worker(error)}", file=sys.stderr)
        end_process(1)
    except (Interrupted, KeyboardInterrupt) as error:  # the second before training has begun
        if rank == "0":
            print(str(error) or ("Stopped before training began." if can_resume else "Stopped."), file=sys.stderr)
        end_process(EXIT_CODE if isinstance(error, Interrupted) else 128 + signal.SIGINT)
