"""What a run logs: files of JSON lines, and the line of a training step."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mae.utils.distributed import is_main_process
from mae.utils.files import atomic_write, without_nan


class JsonLines:
    """A log with one JSON object per line. Only rank 0 writes, and only rank 0 may read."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines; a last line that a kill has cut off is left out."""
        lines = []
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def append(self, line: dict[str, Any]) -> None:
        if is_main_process():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(without_nan(line)) + "\n")

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines for which a condition does not hold."""
        self.replace([line for line in self.read() if condition(line)])

    def replace(self, lines: list[dict[str, Any]]) -> None:
        with atomic_write(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class StepLog:
    """
    Speed, data wait and MFU between two lines of metrics.jsonl. It only uses the host's clock, and never waits for the
    device.

    Args:
        batch_size: Images of an optimizer step, over all ranks.
        flops: FLOPs of training on one image, if known.
        peak: FLOP/s of all devices together, if known.
        step: The step that training starts after.
        clock: Seconds.
    """

    def __init__(
        self,
        batch_size: int,
        flops: float | None = None,
        peak: float | None = None,
        step: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.batch_size = batch_size
        self.flops = flops
        self.peak = peak
        self.clock = clock
        self._restart(step)

    def _restart(self, step: int) -> None:
        self.step, self.started, self.data_wait, self.pause = step, self.clock(), 0.0, 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        asked = self.clock()
        yield
        self.data_wait += self.clock() - asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out saving and evaluating, which are not training."""
        asked = self.clock()
        yield
        self.pause += self.clock() - asked

    def line(self, step: int, **values: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """The line of a step, with `values` in it, and what the progress bar shows of it. Starts the next interval."""
        seconds = self.clock() - self.started - self.pause
        rate = (step - self.step) * self.batch_size / seconds
        speed = {"images_per_second": round(rate, 1), "data_wait": round(self.data_wait, 4)}
        digest = {"samples_digest": values.pop("samples_digest")} if "samples_digest" in values else {}
        line = {"step": step, **values, **speed, **digest}
        shown = {"loss": f"{values['loss']:.4f}"} if "loss" in values else {}
        shown |= {"images/s": f"{rate:.0f}", "data wait": f"{self.data_wait / seconds:.0%}"}
        if self.flops is not None and self.peak is not None:
            line["mfu"] = round(rate * self.flops / self.peak, 4)
            shown["MFU"] = f"{line['mfu']:.0%}"
        self._restart(step)
        return line, shown
