"""Every image of a source through a model exactly once, over all processes; and the features of images."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from configuration_mae import MAEConfig
from mae.data.batch import Batch
from mae.data.loader import make_loader, worker_failure
from mae.data.normalization import normalize
from mae.data.order import SampleOrder
from mae.data.sources import Source
from mae.data.stream import SampleStream
from mae.data.subsets import take_rows
from mae.data.transforms import EvaluationTransform


# Rows that are read as one.
_WINDOW = 256


@dataclass
class Outputs:
    """
    What a function gave for the images of a source.

    Args:
        rows: Of the images that could be read, over all groups of the source, ascending: int64 of shape (n,).
        outputs: Name -> tensor of shape (n, ...), on the CPU.
        skipped: (origin, reason) of the others.
    """

    rows: np.ndarray
    outputs: dict[str, Tensor]
    skipped: list[tuple[tuple[str, int], str]] = field(default_factory=list)


@torch.no_grad()
def map_images(
    function: Callable[[Tensor, np.ndarray], dict[str, Tensor]],
    source: Source,
    config: MAEConfig,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    retry_minutes: float = 0,
    is_stopped: Callable[[], bool] = lambda: False,
    show: Callable[[int], object] = lambda count: None,
) -> Outputs | None:
    """
    Applies a function to every image exactly once: each process takes its share, none is padded with images that
    count twice, and the result is the same on all. Every process must call; each calls the function as often as the
    others, because a sharded model needs all of them.

    Args:
        function: Takes normalised images `(B, C, H, W)` on the device, as the model's processor makes them, and their
            rows; gives tensors whose first dimension is B.
        is_stopped: Asked before each batch, in every process alike.
        show: Told how many images were done since the last time, by all processes.

    Returns:
        None where it was stopped.
    """
    state = PartialState()
    num_processes, total = state.num_processes, sum(source.group_sizes)
    bounds = [total * rank // num_processes for rank in range(num_processes + 1)]
    first, last = bounds[state.process_index], bounds[state.process_index + 1]
    examples = EvaluationTransform(config)
    batches = iter(())
    if last > first:
        share = source if num_processes == 1 else take_rows(source, np.arange(first, last))
        order = SampleOrder(share.group_sizes, seed=0, lanes=1, shuffle_buffer_size=_WINDOW)
        stream = SampleStream(share, order, batch_size, stop=last - first, retry_minutes=retry_minutes)
        batches = iter(make_loader(stream, examples, num_workers))
    largest = max(end - start for start, end in zip(bounds, bounds[1:]))

    seen = torch.zeros(total, dtype=torch.bool)
    results: dict[str, Tensor] = {}
    skipped: list[tuple[tuple[str, int], str]] = []
    for _ in range(-(-largest // batch_size)):
        if is_stopped():
            return None
        try:
            batch: Batch = next(batches, None) or examples.collate([])
        except (OSError, EOFError) as error:
            if not num_workers:
                raise
            raise worker_failure(error) from error  # half of a batch was sent
        skipped += batch.skipped
        # A share is a run of rows, and so its own numbers go on from its first.
        rows = np.asarray(batch.rows, dtype=np.int64) + first
        pixel_values = normalize(batch.pixel_values.to(device, non_blocking=True), config)
        outputs = function(pixel_values, rows if len(rows) else np.zeros(1, dtype=np.int64))
        padded = torch.full((batch_size,), -1, device=device)
        padded[: len(rows)] = torch.from_numpy(rows).to(device)
        padded = gather(padded).cpu()
        good = padded >= 0
        seen[padded[good]] = True
        for name, value in outputs.items():
            filled = value.new_zeros(batch_size, *value.shape[1:])
            filled[: len(rows)] = value[: len(rows)]
            filled = gather(filled).cpu()
            if name not in results:
                results[name] = torch.zeros(total, *filled.shape[1:], dtype=filled.dtype)
            results[name][padded[good]] = filled[good]
        show(int(good.sum()))
    if num_processes > 1:
        skipped = gather_object(skipped)
    if not seen.all():
        results = {name: value[seen] for name, value in results.items()}
    return Outputs(seen.nonzero().flatten().numpy(), results, skipped)
