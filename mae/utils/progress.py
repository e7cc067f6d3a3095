"""Progress bars."""

from typing import Any

from tqdm import tqdm

from mae.utils.distributed import is_main_process


class ProgressBar(tqdm):
    """tqdm on rank 0. The environment variable TQDM_DISABLE=1 hides it, because no `disable` is given on rank 0."""

    def __init__(self, *args: Any, **kwargs: Any):
        if not is_main_process():
            kwargs["disable"] = True
        super().__init__(*args, **kwargs)
