"""
From a source to batches.

    source -> SampleStream (this rank's samples in order) -> SampleDataset (in the workers) -> collate -> Batch

The DataLoader never enters `accelerator.prepare`, because the stream already yields this rank's part of each batch.
"""

import re
import signal
import threading
import traceback
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from mae.data.batch import Batch
from mae.data.dataset import FeatureDataset, SampleDataset
from mae.data.stream import SampleStream
from mae.utils.distributed import count_cores
from mae.utils.errors import DataError, UserError, first_line


def ignore_in_workers(worker: int) -> None:
    """Ignore requests to stop in a worker: if they reach a whole process group, the parent answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# Workers by default at most, because one process hands them their images.
MAX_WORKERS = 16


def choose_num_workers(num_workers: int | None, device: torch.device) -> int:
    """
    Number of DataLoader workers of a rank: as given or, by default, all of its cores but one for an accelerator, and
    one for a CPU, which trains more slowly than one worker decodes.
    """
    if num_workers is not None:
        return num_workers
    return min(max(count_cores() - 1, 0), 1 if device.type == "cpu" else MAX_WORKERS)


def make_loader(stream: SampleStream, dataset: SampleDataset | FeatureDataset, num_workers: int = 0) -> DataLoader:
    """
    A DataLoader over a stream, which yields the same batches for any number of workers.

    The stream is the batch sampler, and yields lists of samples instead of indices: its thread reads ahead in order,
    and decoding in the workers is a pure function of what it yields.
    """
    return DataLoader(
        dataset,
        batch_sampler=stream,
        collate_fn=dataset.collate,
        num_workers=num_workers,
        worker_init_fn=ignore_in_workers,
        pin_memory=torch.cuda.is_available(),
        # Otherwise the DataLoader draws from torch's global generator when it starts.
        generator=torch.Generator(),
    )


# Not "Caught RuntimeError in DataLoader worker process 0", which any error inside a worker says.
_WORKER_DIED = re.compile(r"DataLoader worker \(pid")


def is_worker_failure(error: BaseException) -> bool:
    """Whether PyTorch reports that a DataLoader worker has died. Its SIGCHLD handler may raise that anywhere."""
    return isinstance(error, RuntimeError) and bool(_WORKER_DIED.search(str(error)))


def worker_failure(error: BaseException) -> DataError:
    """The error to report if a DataLoader worker has died."""
    return DataError(
        f"A DataLoader worker died ({first_line(error)}). It may need more memory, or more shared memory (docker run "
        "--ipc=host). Otherwise pass --dataloader_num_workers 0."
    )


def batches(loader: DataLoader) -> Iterator[Batch]:
    """
    Iterate over a loader's batches. Closing the iterator ends its workers and reading threads.

    Raises:
        DataError: if a worker dies. Any other error keeps its type, and its traceback if it is not a `UserError`.
    """
    iterator = _start(loader)
    try:
        yield from iterator
    except (OSError, EOFError) as error:
        if not loader.num_workers:
            raise
        raise worker_failure(error) from error  # a worker died while it sent a batch
    except RuntimeError as error:
        if not is_worker_failure(error):
            raise
        raise worker_failure(error) from error
    except UserError as error:  # PyTorch puts a worker's traceback before the message
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None
    finally:
        _end_workers(iterator)


def _start(loader: DataLoader) -> Iterator[Batch]:
    """The loader's iterator. It has workers before it requests its first batches, which may fail."""
    try:
        return iter(loader)
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if hasattr(started := frame.f_locals.get("self"), "_workers"):
                _end_workers(started)
                break
        raise


def _end_workers(iterator: object) -> None:
    """End the workers of a DataLoader's iterator, also if a traceback keeps the iterator alive."""
    workers = getattr(iterator, "_workers", ())
    handler = None
    if workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # PyTorch's handler raises wherever this process is after a worker has failed, including in this function.
        try:
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # the handler ran before it was replaced
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()  # they ignore the request to stop, and would be waited for without end
    if workers:
        iterator._shutdown_workers()  # type: ignore[attr-defined]  # or the handler finds the failed worker when the iterator is collected
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
