"""Log to Accelerate's trackers: TensorBoard, Trackio, Weights & Biases. Only rank 0 logs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from mae.utils.errors import UserError, first_line
from mae.utils.files import LOGS_FOLDER
from mae.utils.hashing import hash_text
from mae.utils.text import flatten


def project_name(trackers: Iterable[object]) -> str:
    """The project that runs are logged to: the variable of the tracker, as transformers' users know it, or "mae"."""
    names = {str(tracker) for tracker in trackers}
    variables = {"wandb": "WANDB_PROJECT", "trackio": "TRACKIO_PROJECT"}
    found = [os.environ.get(variable) for name, variable in variables.items() if name in names]
    return next(filter(None, found), "mae")


def start_trackers(
    accelerator: Accelerator, path: Path, config: dict[str, Any], first_step: int, run_name: str | None = None
) -> None:
    """
    Start the trackers, on rank 0.

    Args:
        path: The run's directory. Starts in the same directory with the same configuration are one run.
        config: Shown beside the numbers.
        first_step: Step that training resumes after. Later steps are logged again.
        run_name: Name of the run (default: that of its directory).

    Raises:
        UserError: if a tracker cannot start, for example without a login.
    """
    # The same command resumes the tracker's run too.
    name = run_name or path.name
    run_id = hash_text(f"{path.resolve()} {config}")
    options = {
        "tensorboard": {"purge_step": first_step + 1},
        "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(path / LOGS_FOLDER)},
        "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
    }
    flat = {
        name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in flatten(config).items()
    }
    try:
        (path / LOGS_FOLDER).mkdir(exist_ok=True)
        accelerator.init_trackers(project_name(accelerator.log_with), None if first_step else flat, options)
    except Exception as error:  # each tracker raises its own kind
        names = " ".join(str(name) for name in accelerator.log_with)
        raise UserError(f"--report_to {names} cannot start: {first_line(error)}") from None


def track(accelerator: Accelerator, group: str, values: dict[str, Any], step: int) -> None:
    """Log the numbers of a step, and its pictures by their paths."""
    if not accelerator.is_main_process:
        return
    numbers = {
        f"{group}/{name}": value
        for name, value in values.items()
        if isinstance(value, (int, float)) and name != "step"
    }
    accelerator.log(numbers, step)
    for name, path in values.items():
        if not isinstance(path, Path):
            continue
        for tracker in accelerator.trackers:
            if tracker.name == "trackio":
                import trackio

                tracker.log({f"{group}/{name}": trackio.Image(str(path))}, step)
            elif tracker.name == "tensorboard":
                picture = np.array(Image.open(path).convert("RGB"))
                tracker.log_images({f"{group}/{name}": picture[None]}, step, dataformats="NHWC")
            else:
                tracker.log_images({f"{group}/{name}": [Image.open(path)]}, step)
