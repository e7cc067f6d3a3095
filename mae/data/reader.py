"""Read windows of rows ahead of their use, in background threads."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from mae.data.order import Window
from mae.data.sources import Source
from mae.utils.errors import DataError
from mae.utils.retries import Retry, explain


# How far is read ahead: enough for a process that has a single lane.
MAX_WINDOWS_AHEAD = 32
MAX_BYTES_AHEAD = 256 * 2**20


class _Reading:
    """A window on its way: its images so far, and how many of its segments are missing."""

    def __init__(self, window: Window):
        self.window = window
        self.images: list[bytes | str] = [b""] * len(window)
        self.missing = len(window.segments)
        self.error: BaseException | None = None


class _Piece(NamedTuple):
    """A segment of a window, read by one thread."""

    reading: _Reading
    offset: int  # of its first image within the window
    group: int
    first_row: int
    count: int

    @property
    def key(self) -> tuple[int, int, int]:
        """Pieces of one key are read one after the other, each going on where the last one ended."""
        return self.reading.window.epoch, self.reading.window.lane, self.group


class WindowReader:
    """
    Threads that read windows in the order in which they are needed, the next ones while the present ones drain.

    They run ahead by at most `max_windows` windows and about `max_bytes` bytes; what the consumer waits for is read
    whatever its size.

    Args:
        source: Where images come from; it says how many threads are worth it.
        windows: In the order in which they are needed.
        max_windows, max_bytes: How far to read ahead.
        retry_minutes: How long a source that cannot be read now is waited for.
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
        self.max_windows = max_windows
        self.max_bytes = max_bytes
        self.retry_minutes = retry_minutes
        self.readings: deque[_Reading] = deque()  # begun and not yet handed over
        self.pieces: deque[_Piece] = deque()  # of these, what no thread has taken yet
        self.taken: set[tuple[int, int, int]] = set()  # the keys of what threads are reading
        # Where reading of a key stopped: (next row, the open iterator).
        self.cursors: dict[tuple[int, int, int], tuple[int, Iterator[bytes | str]]] = {}
        self.bytes_ahead = 0
        self.consumer_waits = False
        self.drawing = False  # whether a thread draws the next window, or none is left
        self.stopped = False
        self.failure: BaseException | None = None
        self.changed = threading.Condition()
        self.threads = [
            threading.Thread(target=self._run, name=f"window-reader-{number}", daemon=True)
            for number in range(source.num_readers)
        ]
        for thread in self.threads:
            thread.start()

    def get(self) -> tuple[Window, list[bytes | str]]:
        """The next window and its images in the order of reading; waits for it."""
        with self.changed:
            self.consumer_waits = True
            self.changed.notify_all()
            self.changed.wait_for(self._is_decided)
            self.consumer_waits = False
            error = self.failure or self.readings[0].error
            if error is not None:
                raise error
            reading = self.readings.popleft()
            self.bytes_ahead -= sum(map(len, reading.images))
            self.changed.notify_all()
            return reading.window, reading.images

    def _is_decided(self) -> bool:
        """Whether the next window is there, or will never be."""
        if self.failure is not None:
            return True
        return bool(self.readings) and (self.readings[0].error is not None or not self.readings[0].missing)

    def close(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(timeout=5 / len(self.threads))  # one that hangs in a read is left behind; it is a daemon

    def _run(self) -> None:
        try:
            while (piece := self._take()) is not None:
                try:
                    self._read(piece)
                except BaseException as error:  # handed to the consumer, which raises it when it gets there
                    piece.reading.error = piece.reading.error or error
                with self.changed:
                    self.taken.remove(piece.key)
                    piece.reading.missing -= 1
                    self.changed.notify_all()
        except BaseException as error:  # of the windows themselves
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def _take(self) -> _Piece | None:
        """The first piece that may be read, waited for; None where reading is over."""
        while True:
            with self.changed:
                if self.stopped:
                    return None
                for index, piece in enumerate(self.pieces):
                    if not self._may_read(piece.reading):
                        break  # and none of the later ones
                    if piece.key not in self.taken:
                        del self.pieces[index]
                        self.taken.add(piece.key)
                        return piece
                if self.drawing or len(self.readings) >= self.max_windows:
                    self.changed.wait()
                    continue
                self.drawing = True
            # Without the lock: to lay out an epoch of millions of groups takes seconds.
            window = next(self.windows, None)
            with self.changed:
                if window is not None:  # else no thread is to draw again
                    self._begin(window)
                    self.drawing = False
                self.changed.notify_all()

    def _begin(self, window: Window) -> None:
        reading, offset = _Reading(window), 0
        self.readings.append(reading)
        for key in [key for key in self.cursors if key[0] < self.readings[0].window.epoch]:
            del self.cursors[key]  # where a lane ended within a group
        for group, first_row, count in window.segments:
            self.pieces.append(_Piece(reading, offset, group, first_row, count))
            offset += count

    def _may_read(self, reading: _Reading) -> bool:
        """Whether there is room for one more image of a window."""
        if self.consumer_waits and reading is self.readings[0]:
            return True
        # The last quarter is for the first window that is not complete: later ones must not take its room.
        first = next(reading for reading in self.readings if reading.missing)
        return self.bytes_ahead < (self.max_bytes if reading is first else 0.75 * self.max_bytes)

    def _read(self, piece: _Piece) -> None:
        """Reads a piece, and opens the source again at the same row where it breaks off."""
        source, number = self.source, 0
        with self.changed:
            next_row, rows = self.cursors.pop(piece.key, (None, None))
        if next_row != piece.first_row:
            rows = None
        patience = Retry(f"Reading {source.origin(piece.group, piece.first_row)[0]}", self.retry_minutes)
        while number < piece.count:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or self._may_read(piece.reading))
            if self.stopped:
                return
            try:
                if rows is None:
                    rows = iter(source.read(piece.group, piece.first_row + number))
                image = next(rows)
            except StopIteration:
                name, row = source.origin(piece.group, piece.first_row + number)
                raise DataError(
                    f"{name} has no row {row}, although its index says so: the file is truncated or has changed."
                ) from None
            except Exception as error:
                rows = None  # broken
                if self.stopped or not patience.wait(error):
                    name, row = source.origin(piece.group, piece.first_row + number)
                    raise DataError(f"{name} cannot be read at row {row}: {explain(error)}") from error
                continue
            patience.succeeded()
            piece.reading.images[piece.offset + number] = image
            number += 1
            with self.changed:
                self.bytes_ahead += len(image)
        if piece.first_row + number < source.group_sizes[piece.group]:
            with self.changed:
                self.cursors[piece.key] = (piece.first_row + number, rows)
