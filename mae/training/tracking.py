"""What Accelerate's trackers (TensorBoard, Trackio, Weights & Biases) are given of a run, by the main process."""

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from mae.utils.errors import UserError, first_line
from mae.utils.files import LOGS_FOLDER
from mae.utils.hashing import hash_text
from mae.utils.text import flatten


PROJECT = "mae"


def start_trackers(accelerator: Accelerator, path: Path, config: dict[str, Any], first_step: int) -> None:
    """
    Starts them, on the main process.

    Args:
        path: The run's directory. Runs of the same directory and configuration are one run.
        config: To be shown beside the numbers.
        first_step: What was logged after it is about to be logged again.

    Raises:
        UserError: where one cannot start, say without a login.
    """
    # The same command again goes on in the same run.
    run_id = hash_text(f"{path.resolve()} {config}")
    options = {
        "tensorboard": {"purge_step": first_step + 1},
        "wandb": {"name": path.name, "id": run_id, "resume": "allow", "dir": str(path / LOGS_FOLDER)},
        "trackio": {"name": f"{path.name}-{run_id}", "resume": "allow"},
    }
    flat = {
        name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in flatten(config).items()
    }
    try:
        (path / LOGS_FOLDER).mkdir(exist_ok=True)
        accelerator.init_trackers(PROJECT, None if first_step else flat, options)
    except Exception as error:  # each has its own
        names = " ".join(str(name) for name in accelerator.log_with)
        raise UserError(f"--report_to {names} cannot start: {first_line(error)}") from None


def track(accelerator: Accelerator, group: str, values: dict[str, Any], step: int) -> None:
    """Numbers, and pictures by their path, of one step."""
    if not accelerator.is_main_process:
        return
    numbers = {
        f"{group}/{name}": value
        for name, value in values.items()
        if isinstance(value, (int, float)) and name != "step"  # which is the axis
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
