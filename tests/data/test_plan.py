"""What may be read next, without threads and without a clock."""

import numpy as np
import pytest

from mae.data.order import SampleOrder, Window
from mae.data.plan import ReadingPlan


def window(lane=0, start=0, segments=((0, 0, 4),), epoch=0):
    return Window(epoch, lane, start, segments, np.arange(sum(count for _, _, count in segments)))


def deliver(plan, segment, size=1):
    for number in range(segment.count):
        plan.arrived(segment, number, b"x" * size)


def test_windows_are_handed_over_in_the_order_in_which_they_were_added():
    plan = ReadingPlan(8, 100)
    first, second = window(0, segments=((0, 0, 2), (1, 0, 2))), window(1, segments=((2, 0, 1),))
    plan.add(first)
    plan.add(second)
    segments = [plan.next_segment() for _ in range(3)]
    assert [segment.group for segment in segments] == [0, 1, 2] and plan.next_segment() is None
    for segment in reversed(segments):
        assert not plan.is_decided
        deliver(plan, segment)
        plan.finished(segment)
    assert plan.pop()[0] is first and plan.pop()[0] is second and plan.bytes_ahead == 0


def test_segments_of_a_key_are_read_one_after_the_other():
    """Two windows of a lane that share a group: one thread continues after the other."""
    plan = ReadingPlan(8, 100)
    plan.add(window(0, 0, ((5, 0, 2),)))
    plan.add(window(0, 2, ((5, 2, 2),)))
    plan.add(window(1, 0, ((5, 4, 2),)))  # another lane may read the same group meanwhile
    first = plan.next_segment()
    assert (first.first_row, plan.next_segment().first_row, plan.next_segment()) == (0, 4, None)
    plan.finished(first)
    assert plan.next_segment().first_row == 2


def test_last_quarter_of_the_room_is_for_the_first_incomplete_window():
    plan = ReadingPlan(8, 100)
    plan.add(window(0, segments=((0, 0, 4),)))
    plan.add(window(1, segments=((1, 0, 4),)))
    first, second = plan.next_segment(), plan.next_segment()
    plan.arrived(second, 0, b"x" * 75)
    assert plan.may_continue(first) and not plan.may_continue(second)
    plan.arrived(first, 0, b"x" * 25)
    assert not plan.may_continue(first)


def test_window_that_the_consumer_waits_for_is_read_whatever_its_size():
    plan = ReadingPlan(8, 100)
    plan.add(window(0, segments=((0, 0, 2),)))
    segment = plan.next_segment()
    plan.arrived(segment, 0, b"x" * 1000)
    assert not plan.may_continue(segment)
    plan.consumer_waits = True
    assert plan.may_continue(segment)


def test_number_of_windows_is_bounded():
    plan = ReadingPlan(2, 100)
    for lane in range(2):
        assert plan.has_room_for_window
        plan.add(window(lane))
    assert not plan.has_room_for_window


def test_error_is_raised_when_its_window_is_needed_and_not_before():
    plan = ReadingPlan(8, 100)
    plan.add(window(0, segments=((0, 0, 1),)))
    plan.add(window(1, segments=((1, 0, 1),)))
    first, second = plan.next_segment(), plan.next_segment()
    plan.finished(second, OSError("broken"))
    assert not plan.is_decided
    deliver(plan, first)
    plan.finished(first)
    plan.pop()
    assert plan.is_decided
    with pytest.raises(OSError, match="broken"):
        plan.pop()


@pytest.mark.parametrize("seed", range(30))
def test_any_interleaving_hands_over_every_image_once_and_stays_within_bounds(seed):
    """A random scheduler of up to five readers, against the order itself."""
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 9, int(random.integers(2, 12))).tolist() + [8]
    lanes = int(random.choice([1, 2, 4]))
    order = SampleOrder(sizes, seed, lanes, shuffle_buffer_size=int(random.integers(lanes, 24)))
    windows = [found for found, _ in zip(order.windows(0, range(lanes)), range(20))]
    plan = ReadingPlan(max_windows=int(random.integers(1, 6)), max_bytes=int(random.integers(1, 40)))
    waiting, readers, handed = list(windows), [], []
    while len(handed) < len(windows):
        action = random.integers(4)
        if action == 0 and waiting and plan.has_room_for_window:
            plan.add(waiting.pop(0))
        elif action == 1 and len(readers) < 5 and (segment := plan.next_segment()) is not None:
            assert segment.key not in {other.key for other, _ in readers}
            readers.append((segment, 0))
        elif action == 2 and readers:
            index = int(random.integers(len(readers)))
            segment, number = readers.pop(index)
            if number == segment.count:
                plan.finished(segment)
            elif plan.may_continue(segment):
                plan.arrived(segment, number, bytes([segment.group, segment.first_row + number]))
                readers.append((segment, number + 1))
            else:
                readers.append((segment, number))
        elif action == 3:
            plan.consumer_waits = True
            if plan.is_decided:
                handed.append(plan.pop())
                plan.consumer_waits = False
    for expected, (found, images) in zip(windows, handed):
        assert found is expected
        assert [tuple(image) for image in images] == [found.locate(index) for index in range(len(found))]
