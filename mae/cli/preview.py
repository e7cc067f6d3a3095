"""Draw what augmentation makes of an image, instead of training."""

import logging
from functools import partial
from pathlib import Path

from mae.arguments.run import PreviewArguments
from mae.data.bands import bands_of
from mae.data.dataset import SampleDataset
from mae.training.task import Task
from mae.utils.distributed import on_main_process
from mae.utils.errors import UserError


logger = logging.getLogger(__name__)


def preview_augmentation(task: Task, seed: int, arguments: PreviewArguments) -> None:
    """
    Write the picture that --preview_augmentation names. A collective.

    Raises:
        UserError: if it cannot be written, no image can be read, or a task trains on features without augmentation.
    """
    # They import matplotlib, which training need not wait for.
    from mae.evaluation.overlays import make_palette, overlay
    from mae.evaluation.views import save_views

    path = Path(arguments.preview_augmentation)
    # Asked first, because features of all images take long.
    if getattr(task, "features", None) is not None:
        raise UserError(f"--augmentation none leaves nothing to draw for --preview_augmentation {path}. Leave it out.")
    dataset = task.dataset(lambda: False)
    assert isinstance(dataset, SampleDataset)
    coding, colour = getattr(task, "coding", None), None
    if coding is not None:  # of masks
        colour = partial(overlay, palette=make_palette(coding.names, coding.palette), names=coding.names)

    def write() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            bands = bands_of(task.model.config)
            save_views(task.source, dataset.transform, bands, seed, path, arguments.data_retry_minutes, colour)
        except OSError as error:
            raise UserError(f"--preview_augmentation {path} cannot be written: {error.strerror or error}.") from None

    on_main_process(write)
    logger.info(f"{path} shows an image and eight views of it. To train, leave out --preview_augmentation.")
