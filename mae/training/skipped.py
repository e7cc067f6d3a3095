"""Images that cannot be read: their names in skipped.jsonl, and when there are too many."""

import logging

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mae.training.metrics import JsonLines
from mae.utils.distributed import is_main_process
from mae.utils.errors import DataError


logger = logging.getLogger(__name__)

# ((file, row), reason).
Skipped = tuple[tuple[str, int], str]
_SHOWN = 5


class SkippedImages:
    """
    The images that a run cannot read.

    Args:
        log: skipped.jsonl.
    """

    def __init__(self, log: JsonLines, accelerator: Accelerator):
        self.log = log
        self.accelerator = accelerator
        self._new: list[Skipped] = []  # on this rank, since the last collection

    def add(self, skipped: list[Skipped]) -> None:
        self._new += skipped

    def collect(self) -> int:
        """Name the images that were added since the last call; returns their number over all ranks. A collective."""
        found = torch.tensor(len(self._new), device=self.accelerator.device)
        num_new = int(self.accelerator.reduce(found, "sum"))
        if num_new:
            self.name(gather_object(self._new))
            self._new = []
        return num_new

    def name(self, skipped: list[Skipped]) -> None:
        """Add images to skipped.jsonl, each once, and warn of the first ones. Rank 0 has those of all ranks."""
        if not skipped or not is_main_process():
            return
        lines = self.log.read()
        known = {(line["file"], line["row"]) for line in lines}
        for (file, row), reason in skipped:
            if (file, row) in known:
                continue
            known.add((file, row))
            lines.append({"file": file, "row": row, "reason": reason})
            if len(lines) <= _SHOWN:
                more = f". Further ones are only named in {self.log.path}" if len(lines) == _SHOWN else ""
                logger.warning(f"Skipped an unreadable image, {file} row {row}: {reason}{more}")
        self.log.replace(lines)

    def check(self, num_skipped: int, num_samples: int, enough: int, max_bad_fraction: float) -> None:
        """
        Stop a run that cannot read its images.

        Args:
            num_skipped: Samples that could not be read.
            num_samples: Samples so far.
            enough: Number of samples from which on the share counts.

        Raises:
            DataError: if no image can be read, or more than the allowed share cannot.
        """
        if not num_skipped:
            return
        first = next(iter(self.log.read()), None)
        example = f". The first is {first['file']} row {first['row']}: {first['reason']}" if first else ""
        if num_skipped == num_samples:
            raise DataError(f"None of the first {num_samples:,} images can be read (see {self.log.path}){example}.")
        if num_skipped > max_bad_fraction * num_samples and num_samples >= enough:
            raise DataError(
                f"{num_skipped:,} of {num_samples:,} samples so far cannot be read (see {self.log.path}), more than "
                f"--max_bad_fraction {max_bad_fraction}{example}. Repair or remove these images, or raise "
                "--max_bad_fraction; then run the same command again to resume from the last checkpoint."
            )
