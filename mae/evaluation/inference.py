"""Apply a function to every image of a source exactly once, over all ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor, nn

from configuration_mae import MAEConfig
from mae.data.batch import Batch
from mae.data.dataset import SampleDataset, Transform
from mae.data.loader import batches, make_loader
from mae.data.normalization import normalize_images
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import SampleStream
from mae.data.subsets import take_rows
from mae.data.transforms import EvaluationTransform


_ROWS_PER_READ = 256


@dataclass
class Outputs:
    """
    Outputs of a function for the images of a source.

    Args:
        rows: Numbers of the readable images, over all groups of the source, ascending: int64 of shape (n,).
        outputs: Name -> tensor of shape (n, ...), on the CPU.
        skipped: (origin, reason) of each image that could not be read.
    """

    rows: np.ndarray
    outputs: dict[str, Tensor]
    skipped: list[tuple[tuple[str, int], str]] = field(default_factory=list)


class EvaluationBatches:
    """
    Batches of this rank's share of the images of a source, prepared by the model's image processor, or by another
    `transform` that is set.

    Each image is in one batch of one rank. All ranks have equally many batches: a rank with a smaller share ends with
    blank ones.

    Args:
        batch_size: Images of one batch of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which a source that cannot be read is retried.
    """

    def __init__(
        self,
        source: Source,
        config: MAEConfig,
        batch_size: int,
        num_workers: int = 0,
        retry_minutes: float = 0,
    ):
        self.source = source
        self.config = config
        self.transform: Transform = EvaluationTransform(config)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.retry_minutes = retry_minutes
        self.num_images = len(source)
        state = PartialState()
        bounds = [self.num_images * rank // state.num_processes for rank in range(state.num_processes + 1)]
        self.first, self.last = bounds[state.process_index : state.process_index + 2]
        self.largest_share = max(end - start for start, end in zip(bounds, bounds[1:]))

    def __len__(self) -> int:
        return -(-self.largest_share // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        dataset, num_left = SampleDataset(self.transform), len(self)
        if self.last > self.first:
            loader = make_loader(self._stream(), dataset, self.num_workers)
            for batch in batches(loader):
                # A share is a run of rows that counts from 0.
                batch.rows = [self.first + row for row in batch.rows]
                num_left -= 1
                yield batch
        for _ in range(num_left):
            yield dataset.collate([])

    def _stream(self) -> SampleStream:
        source, size = self.source, self.last - self.first
        if size < self.num_images:
            source = take_rows(source, np.arange(self.first, self.last))
        order = SampleOrder(source.group_sizes, seed=0, lanes=1, shuffle_buffer_size=_ROWS_PER_READ)
        return SampleStream(source, order, self.batch_size, stop=size, retry_minutes=self.retry_minutes)


def broadcast_buffers(module: nn.Module) -> None:
    """Give all ranks the buffers of rank 0, which saves its own: batch norm has statistics of its own on each rank."""
    if torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


class _Gatherer:
    """Outputs of all ranks, filled in batch by batch."""

    def __init__(self, num_images: int, batch_size: int):
        self.batch_size = batch_size
        self.seen = torch.zeros(num_images, dtype=torch.bool)
        self.outputs: dict[str, Tensor] = {}

    def add(self, rows: Tensor, outputs: dict[str, Tensor]) -> int:
        """Add a batch of each rank, and return the number of images of all of them."""
        all_rows = self._gather(rows, fill=-1)
        is_image = all_rows >= 0
        all_rows = all_rows[is_image]
        self.seen[all_rows] = True
        for name, value in outputs.items():
            gathered = self._gather(value[: len(rows)], fill=0)
            if name not in self.outputs:
                self.outputs[name] = torch.zeros(len(self.seen), *gathered.shape[1:], dtype=gathered.dtype)
            self.outputs[name][all_rows] = gathered[is_image]
        return len(all_rows)

    def _gather(self, values: Tensor, fill: int) -> Tensor:
        """Values of all ranks, those of each one padded to the size of a batch."""
        padded = values.new_full((self.batch_size, *values.shape[1:]), fill)
        padded[: len(values)] = values
        return gather(padded).cpu()

    def finish(self, skipped: list[tuple[tuple[str, int], str]]) -> Outputs:
        if PartialState().num_processes > 1:
            skipped = gather_object(skipped)
        outputs = self.outputs
        if not self.seen.all():
            outputs = {name: value[self.seen] for name, value in outputs.items()}
        return Outputs(self.seen.nonzero().flatten().numpy(), outputs, skipped)


@torch.no_grad()
def map_images(
    function: Callable[[Tensor, np.ndarray], dict[str, Tensor]],
    images: EvaluationBatches,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda count: None,
) -> Outputs | None:
    """
    Apply a function to every image exactly once, and return the same result on all ranks.

    Every rank must call this. Each rank calls the function equally often, because a sharded model needs all ranks,
    with a blank image of row 0 if it has no image left.

    Args:
        function: Takes normalised images `(B, C, H, W)` on the device and their rows. Returns tensors whose first
            dimension is B.
        should_stop: Called before each batch, on every rank.
        progress: Called after each batch with its number of images over all ranks.

    Returns:
        None if `should_stop` returned true.
    """
    gatherer = _Gatherer(images.num_images, images.batch_size)
    skipped = []
    remaining = iter(images)
    for _ in range(len(images)):
        if should_stop():
            return None
        batch = next(remaining)
        skipped += batch.skipped
        pixel_values = normalize_images(batch.pixel_values.to(device, non_blocking=True), images.config)
        rows = np.asarray(batch.rows, dtype=np.int64)
        outputs = function(pixel_values, rows if len(rows) else np.zeros(1, dtype=np.int64))
        progress(gatherer.add(torch.from_numpy(rows).to(device), outputs))
    return gatherer.finish(skipped)
