"""What may be read next: a plan without threads and I/O, for the reader of windows."""

from collections import deque
from typing import NamedTuple

from mae.data.order import Window


class PendingWindow:
    """A window that is being read: its images so far, and the number of its missing segments."""

    def __init__(self, window: Window):
        self.window = window
        self.images: list[bytes | str] = [b""] * len(window)
        self.missing = len(window.segments)
        self.error: BaseException | None = None


class Segment(NamedTuple):
    """A part of a window that lies in one group, and that one thread reads."""

    pending: PendingWindow
    offset: int  # of its first image within the window
    group: int
    first_row: int
    count: int

    @property
    def key(self) -> tuple[int, int, int]:
        """Segments of one key are read one after the other, each from the row where the last one ended."""
        return self.pending.window.epoch, self.pending.window.lane, self.group


class ReadingPlan:
    """
    Which segment may be read next. Windows are added in the order in which they are needed.

    It reads ahead by at most `max_windows` windows and about `max_bytes` bytes. A window that the consumer waits for
    is read whatever its size. The last quarter of the bytes is for the first window that is not complete, because
    later ones must not take its room.
    """

    def __init__(self, max_windows: int, max_bytes: int):
        self.max_windows = max_windows
        self.max_bytes = max_bytes
        self.consumer_waits = False
        self.bytes_ahead = 0
        self._pending: deque[PendingWindow] = deque()  # added and not yet popped
        self._segments: deque[Segment] = deque()  # of these, not yet taken
        self._active: set[tuple[int, int, int]] = set()  # keys that are being read

    @property
    def has_room_for_window(self) -> bool:
        return len(self._pending) < self.max_windows

    @property
    def first_epoch(self) -> int | None:
        """Epoch of the first window that is pending."""
        return self._pending[0].window.epoch if self._pending else None

    def add(self, window: Window) -> None:
        """Plan the next window."""
        pending, offset = PendingWindow(window), 0
        self._pending.append(pending)
        for group, first_row, count in window.segments:
            self._segments.append(Segment(pending, offset, group, first_row, count))
            offset += count

    def next_segment(self) -> Segment | None:
        """Take the first segment that may be read now; None if none may."""
        for index, segment in enumerate(self._segments):
            if not self.may_continue(segment):
                return None  # nor any later one
            if segment.key not in self._active:
                del self._segments[index]
                self._active.add(segment.key)
                return segment
        return None

    def may_continue(self, segment: Segment) -> bool:
        """Whether there is room for one more image of a segment."""
        if self.consumer_waits and segment.pending is self._pending[0]:
            return True
        first = next(pending for pending in self._pending if pending.missing)
        return self.bytes_ahead < (self.max_bytes if segment.pending is first else 0.75 * self.max_bytes)

    def arrived(self, segment: Segment, number: int, image: bytes | str) -> None:
        """Take in image `number` of a segment."""
        segment.pending.images[segment.offset + number] = image
        self.bytes_ahead += len(image)

    def finished(self, segment: Segment, error: BaseException | None = None) -> None:
        """A segment was read, or ended in an error, which is raised when its window is needed."""
        self._active.remove(segment.key)
        segment.pending.missing -= 1
        segment.pending.error = segment.pending.error or error

    @property
    def is_decided(self) -> bool:
        """Whether the first window is complete, or never will be."""
        return bool(self._pending) and (self._pending[0].error is not None or not self._pending[0].missing)

    def pop(self) -> tuple[Window, list[bytes | str]]:
        """Hand over the first window and its images in the order of reading, once that is decided."""
        if self._pending[0].error is not None:
            raise self._pending[0].error
        pending = self._pending.popleft()
        self.bytes_ahead -= sum(map(len, pending.images))
        return pending.window, pending.images
