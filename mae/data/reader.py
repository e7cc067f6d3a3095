"""Read windows of rows ahead of their use, in background threads."""

import threading
from collections.abc import Iterator

from mae.data.order import Window
from mae.data.plan import ReadingPlan, Segment
from mae.data.sources import Source
from mae.utils.errors import DataError
from mae.utils.retries import Retry, explain


# How far to read ahead: enough for a process that has a single lane.
MAX_WINDOWS_AHEAD = 32
MAX_BYTES_AHEAD = 256 * 2**20


class WindowReader:
    """
    Threads that read windows in the order in which they are needed, the next ones while the present ones drain.

    Args:
        source: Where images come from. Its `num_readers` is the number of threads.
        windows: Windows in the order in which they are needed.
        max_windows, max_bytes: How far to read ahead, see [`ReadingPlan`].
        retry_minutes: Minutes for which a source that cannot be read is retried.
    """

    def __init__(
        self,
        source: Source,
        windows: Iterator[Window],
        max_windows: int = MAX_WINDOWS_AHEAD,
        max_bytes: int = MAX_BYTES_AHEAD,
        retry_minutes: float = 0,
    ):
        self.source = source
        self.windows = windows
        self.retry_minutes = retry_minutes
        self.plan = ReadingPlan(max_windows, max_bytes)
        # Where reading of a key stopped: (next row, the open iterator).
        self.cursors: dict[tuple[int, int, int], tuple[int, Iterator[bytes | str]]] = {}
        self.drawing = False  # a thread draws the next window, or there is none
        self.stopped = False
        self.failure: BaseException | None = None  # of the windows themselves
        self.changed = threading.Condition()  # guards all of the above
        self.threads = [
            threading.Thread(target=self._run, name=f"window-reader-{number}", daemon=True)
            for number in range(source.num_readers)
        ]
        for thread in self.threads:
            thread.start()

    def get(self) -> tuple[Window, list[bytes | str]]:
        """Wait for the next window and its images, in the order of reading."""
        with self.changed:
            self.plan.consumer_waits = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.failure is not None or self.plan.is_decided)
            self.plan.consumer_waits = False
            if self.failure is not None:
                raise self.failure
            window, images = self.plan.pop()
            self.changed.notify_all()
            return window, images

    def close(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(timeout=5 / len(self.threads))  # a thread that hangs in a read is left behind as a daemon

    def _run(self) -> None:
        try:
            while (segment := self._take()) is not None:
                error = None
                try:
                    self._read(segment)
                except BaseException as raised:
                    error = raised
                with self.changed:
                    self.plan.finished(segment, error)
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def _take(self) -> Segment | None:
        """Wait for a segment that may be read; None once reading is over."""
        while True:
            with self.changed:
                if self.stopped:
                    return None
                segment = self.plan.next_segment()
                if segment is not None:
                    return segment
                if self.drawing or not self.plan.has_room_for_window:
                    self.changed.wait()
                    continue
                self.drawing = True
            # Without the lock, because laying out an epoch of millions of groups takes seconds.
            window = next(self.windows, None)
            with self.changed:
                if window is not None:  # otherwise no thread draws again
                    self.plan.add(window)
                    self._close_old_cursors()
                    self.drawing = False
                self.changed.notify_all()

    def _close_old_cursors(self) -> None:
        """Forget where lanes of earlier epochs ended within a group."""
        for key in [key for key in self.cursors if key[0] < self.plan.first_epoch]:
            del self.cursors[key]

    def _read(self, segment: Segment) -> None:
        """Read a segment, and open the source again at the same row if it breaks off."""
        source, number = self.source, 0
        with self.changed:
            next_row, rows = self.cursors.pop(segment.key, (None, None))
        if next_row != segment.first_row:
            rows = None
        attempt = Retry(f"Reading {source.origin(segment.group, segment.first_row)[0]}", self.retry_minutes)
        while number < segment.count:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or self.plan.may_continue(segment))
            if self.stopped:
                return
            try:
                if rows is None:
                    rows = iter(source.read(segment.group, segment.first_row + number))
                image = next(rows)
            except StopIteration:
                name, row = source.origin(segment.group, segment.first_row + number)
                raise DataError(
                    f"{name} has no row {row}, although its index has one. The file is truncated or has changed."
                ) from None
            except Exception as error:
                rows = None  # broken
                if self.stopped or not attempt.wait(error):
                    name, row = source.origin(segment.group, segment.first_row + number)
                    raise DataError(f"{name} cannot be read at row {row}: {explain(error)}") from error
                continue
            attempt.succeeded()
            with self.changed:
                self.plan.arrived(segment, number, image)
            number += 1
        if segment.first_row + number < source.group_sizes[segment.group]:
            with self.changed:
                self.cursors[segment.key] = (segment.first_row + number, rows)
