"""The batches of a rank, in step with the other ranks."""

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader

from mae.data.batch import Batch
from mae.data.loader import batches
from mae.training.interruption import Interruption, StoppedWaiting


class BatchFeed:
    """
    This rank's batches from a step on.

    Args:
        make_loader: Makes the loader of the batches after a step.
        first_step: The step.
    """

    def __init__(self, make_loader: Callable[[int], DataLoader], first_step: int, interruption: Interruption):
        self.make_loader = make_loader
        self.first_step = first_step
        self.interruption = interruption
        self._batches: Iterator[Batch] | None = None  # not before the first batch is needed

    def next(self) -> Batch | None:
        """
        The next batch, once every rank has one. None on every rank if one of them was asked to stop while it waited
        for data. A collective.
        """
        try:
            with self.interruption.waiting():
                if self._batches is None:
                    self._batches = batches(self.make_loader(self.first_step))
                batch = next(self._batches)
        except StoppedWaiting:
            batch = None
        (is_stalled,) = self.interruption.agree(batch is None)
        return None if is_stalled else batch

    def close(self) -> None:
        """End workers and reading threads."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]
