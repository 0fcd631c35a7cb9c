"""What a task may say, and how it is told to stop."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tasks_app.exceptions import LeaseLost, TaskCancelled, TaskInterrupted, TaskTimedOut
from tasks_app.progress import LOG_LEVELS, LogLine, ProgressHandle, checked_fraction
from tasks_app.schemas import TaskProgressUpdate


class Number:
    """A number of another library's, as numpy's and Decimal's are."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"Number({self.value})"


class AsksBack:
    """What asks the handle for something while it is turned into words."""

    def __init__(self, handle: ProgressHandle) -> None:
        self._handle = handle

    def __str__(self) -> str:
        self._handle.log("asked")
        return self._handle.latest.text


class FloatSubclass(float):
    """As numpy.float64 is."""


def latest(handle: ProgressHandle) -> tuple[str, float | None]:
    return handle.latest.text, handle.latest.value


# Values.


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (0, 0.0),
        (1, 1.0),
        (0.5, 0.5),
        (math.nextafter(1.0, 0.0), math.nextafter(1.0, 0.0)),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (Number(0.25), 0.25),
        (FloatSubclass(0.25), 0.25),
    ],
)
def test_fractions_are_kept_as_floats(value: Any, kept: float) -> None:
    handle = ProgressHandle()
    handle.send_progress_value(value)
    assert handle.latest.value == kept
    assert type(checked_fraction(value)) is float


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-0.1, "-0.1"),
        (1.1, "1.1"),
        (math.nextafter(1.0, 2.0), "1.0000000000000002"),
        (2, "2.0"),
        (100, "100.0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (Decimal("1.5"), "1.5"),
        (Decimal("NaN"), "nan"),
        (Number(50.0), "50.0"),
        (Number(float("nan")), "nan"),
        (10**400, "inf"),
    ],
)
def test_what_is_no_fraction_raises_at_once(value: Any, shown: str) -> None:
    handle = ProgressHandle()
    handle.send_progress("before", 0.25)
    for call in senders(handle, value):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
            call()
        assert str(caught.value) == (
            f"progress must be from 0.0 to 1.0, not {shown}; divide the work done by the total"
        )
    assert latest(handle) == ("before", 0.25)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0.5", "'0.5' (str)"),
        (b"0.5", "b'0.5' (bytes)"),
        ([0.5], "[0.5] (list)"),
        (0.5j, "0.5j (complex)"),
        (True, "True (bool)"),
        (False, "False (bool)"),
        (None, "None (NoneType)"),
    ],
)
def test_what_is_no_number_raises_at_once(value: Any, shown: str) -> None:
    handle = ProgressHandle()
    handle.send_progress("before", 0.25)
    for call in senders(handle, value):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"progress must be a number from 0.0 to 1.0, not {shown}"
    assert latest(handle) == ("before", 0.25)


def senders(handle: ProgressHandle, value: Any) -> list[Callable[[], None]]:
    return [
        lambda: handle.send_progress_value(value),
        lambda: handle.send_progress("after", value),
    ]


def test_progress_never_goes_back() -> None:
    handle = ProgressHandle()
    for value, kept in ((0.2, 0.2), (0.1, 0.2), (0.0, 0.2), (0.3, 0.3), (0.3, 0.3), (1.0, 1.0)):
        handle.send_progress(f"at {value}", value)
        assert latest(handle) == (f"at {value}", kept)


def test_text_and_value_go_their_own_ways() -> None:
    handle = ProgressHandle()
    assert latest(handle) == ("", None)
    handle.send_progress_text("looking")
    assert latest(handle) == ("looking", None)
    handle.send_progress_value(0.5)
    assert latest(handle) == ("looking", 0.5)
    handle.send_progress_text("")
    assert latest(handle) == ("", 0.5)


def test_text_is_made_from_whatever_comes_and_into_what_can_be_stored() -> None:
    handle = ProgressHandle()
    handle.send_progress_text(42)  # type: ignore[arg-type]
    assert handle.latest.text == "42"
    handle.send_progress_text("nul \0, half a pair \ud800, whole 😀")
    assert handle.latest.text == "nul \ufffd, half a pair ?, whole 😀"


# Counting.


def test_advance_counts_to_the_total() -> None:
    handle = ProgressHandle()
    handle.total = 8
    handle.advance()
    assert handle.latest.value == 0.125
    handle.advance(3)
    assert handle.latest.value == 0.5
    handle.advance(0)
    assert handle.latest.value == 0.5
    handle.advance(0.4)
    assert handle.latest.value == 0.55
    handle.advance(100)
    assert handle.latest.value == 1.0


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (Decimal("10.50"), Decimal("5.25")),
        (10, Decimal(5)),
        (Decimal(2), 1),
        (Fraction(1, 2), 0.25),
        (Number(2.0), Number(1.0)),
        (2 * 10**30, 10**30),
    ],
)
def test_numbers_of_all_kinds_are_counted(total: Any, steps: Any) -> None:
    """Sums of a database are Decimals, for one."""
    handle = ProgressHandle()
    handle.total = total
    handle.advance(steps)
    assert handle.latest.value == 0.5
    assert values_while(handle, handle.track("ab", total=total, within=(0.5, 1.0)))[0] == 0.5


@pytest.mark.parametrize("wrong", ["2", True, [2]])
def test_what_is_no_number_is_not_counted(wrong: Any) -> None:
    handle = ProgressHandle()
    shown = rf"must be a number, not {re.escape(repr(wrong))} \({type(wrong).__name__}\)"
    handle.total = wrong
    with pytest.raises(TypeError, match=f"total {shown}"):
        handle.advance()
    handle.total = 2
    with pytest.raises(TypeError, match=f"steps {shown}"):
        handle.advance(wrong)
    with pytest.raises(TypeError, match=f"total {shown}"):
        list(handle.track("ab", total=wrong))
    assert handle.latest.value is None


@pytest.mark.parametrize("total", [None, 0, -1, float("nan")])
def test_advance_needs_a_total(total: float | None) -> None:
    handle = ProgressHandle()
    handle.total = total
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        handle.advance()
    assert str(caught.value) == (
        f"advance() needs a positive total, but it is {total!r}; set it first: progress.total = 100"
    )
    assert handle.latest.value is None


@pytest.mark.parametrize("steps", [float("nan"), float("inf"), -5])
def test_a_refused_step_changes_nothing(steps: float) -> None:
    handle = ProgressHandle()
    handle.total = 10
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        handle.advance(steps)
    assert str(caught.value) == f"steps must be 0 or more, not {steps}"
    handle.advance(5)
    assert handle.latest.value == 0.5


def test_no_step_is_lost_between_threads() -> None:
    handle = ProgressHandle()
    handle.total = 8 * 500
    started = threading.Barrier(8)

    def work() -> None:
        started.wait()
        for _ in range(500):
            handle.advance()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handle.latest.value == 1.0


# Tracking.


def values_while(handle: ProgressHandle, items: Iterator[Any]) -> list[float | None]:
    """What the bar says while each item is worked on, and at the end."""
    seen = [handle.latest.value for _ in items]
    return [*seen, handle.latest.value]


def test_track_counts_what_has_a_length() -> None:
    handle = ProgressHandle()
    assert list(handle.track("abcd")) == list("abcd")
    handle = ProgressHandle()
    assert values_while(handle, handle.track("abcd")) == [None, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("many", [49, 98, 103])
@pytest.mark.parametrize("within", [(0.0, 1.0), (0.2, 0.9)])
def test_track_ends_at_its_end(many: int, within: tuple[float, float]) -> None:
    """Of these, so many steps of a part each add up to something else."""
    handle = ProgressHandle()
    assert values_while(handle, handle.track(range(many), within=within))[-1] == within[1]


def test_track_counts_to_a_total_where_there_is_no_length() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track(iter("ab"), total=4)) == [None, 0.25, 0.5]


def test_a_total_goes_before_a_length() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track("ab", total=4)) == [None, 0.25, 0.5]


def test_more_than_the_total_stays_at_the_end() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track("abc", total=2)) == [None, 0.5, 1.0, 1.0]


def test_track_without_a_total_leaves_the_bar_and_looks_whether_to_stop() -> None:
    handle = ProgressHandle()
    seen = []
    for item in handle.track(iter("abc")):
        seen.append(item)
        assert handle.latest.value is None
    assert seen == list("abc")

    def stopped_in_the_loop() -> None:
        for _ in handle.track(iter("abc")):
            handle.stop(TaskCancelled())

    with pytest.raises(TaskCancelled):
        stopped_in_the_loop()


def test_phases_follow_each_other_within_their_parts_of_the_bar() -> None:
    handle = ProgressHandle()
    first = values_while(handle, handle.track("ab", within=(0.0, 0.5)))
    second = values_while(handle, handle.track("abcd", within=(0.5, 1.0)))
    assert first == [None, 0.25, 0.5]
    assert second == [0.5, 0.625, 0.75, 0.875, 1.0]


@pytest.mark.parametrize(("bound", "error"), [(1.5, ValueError), ("0.5", TypeError)])
def test_a_part_of_the_bar_is_made_of_fractions(bound: Any, error: type[Exception]) -> None:
    handle = ProgressHandle()
    with pytest.raises(error, match="progress must be"):
        list(handle.track("ab", within=(0.0, bound)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"total": -1}, "total must be 0 or more, or None if unknown, not -1"),
        ({"total": float("nan")}, "total must be 0 or more, or None if unknown, not nan"),
        ({"total": float("inf")}, "total must be 0 or more, or None if unknown, not inf"),
        ({"within": (0.8, 0.2)}, "within must be (start, end), the smaller first, not (0.8, 0.2)"),
    ],
)
def test_track_refuses_nonsense_before_the_first_item(options: Any, fault: str) -> None:
    handle = ProgressHandle()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        next(iter(handle.track("ab", text="reading", **options)))
    assert str(caught.value) == fault
    assert latest(handle) == ("", None)


@pytest.mark.parametrize("nothing", [[], iter([])])
def test_track_of_nothing(nothing: Any) -> None:
    handle = ProgressHandle()
    assert list(handle.track(nothing, text="none of it")) == []
    assert latest(handle) == ("none of it", None)


def test_track_says_its_text_first() -> None:
    handle = ProgressHandle()
    items = handle.track("ab", text="reading")
    assert next(iter(items)) == "a"
    assert latest(handle) == ("reading", None)


def test_a_loop_left_early_leaves_the_bar_where_it_was() -> None:
    handle = ProgressHandle()
    items = handle.track("abcd")
    next(items)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert handle.latest.value == 0.25


def test_an_error_of_the_iterable_passes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    handle = ProgressHandle()
    with pytest.raises(KeyError):
        list(handle.track(broken(), total=2))
    assert handle.latest.value == 0.5


def test_track_stops_between_items() -> None:
    handle = ProgressHandle()
    done = []

    def loop() -> None:
        for item in handle.track("abcd"):
            done.append(item)
            if item == "b":
                handle.stop(TaskCancelled())

    with pytest.raises(TaskCancelled):
        loop()
    assert done == ["a", "b"]


# Log.


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_each_level_is_kept(level: str) -> None:
    handle = ProgressHandle()
    handle.log("hello", level)
    assert handle.lines == [LogLine(level, "hello")]


def test_a_line_is_information_unless_said_otherwise() -> None:
    handle = ProgressHandle()
    handle.log("hello")
    assert handle.lines == [LogLine("info", "hello")]


@pytest.mark.parametrize("level", ["INFO", "critical", "", 20, None])
def test_other_levels_are_refused(level: Any) -> None:
    handle = ProgressHandle()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        handle.log("hello", level)
    assert str(caught.value) == f"level must be one of debug, info, warning, error, not {level!r}"
    assert handle.lines == []


def test_what_a_message_does_to_become_words_holds_nobody_up() -> None:
    """The worker takes what was said by the same lock."""
    handle = ProgressHandle()
    handle.send_progress_text("half-way")
    handle.log(AsksBack(handle))  # type: ignore[arg-type]
    assert [line.message for line in handle.take()[1]] == ["asked", "half-way"]


def test_lines_are_made_into_what_can_be_stored() -> None:
    handle = ProgressHandle()
    handle.log(KeyError("x"))  # type: ignore[arg-type]
    handle.log("nul \0, half a pair \udc00")
    assert [line.message for line in handle.lines] == ["'x'", "nul \ufffd, half a pair ?"]


def test_lines_past_the_limit_are_counted_and_dropped(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    handle = ProgressHandle()
    for number in range(5):
        handle.log(f"{number}")
        handle.take()
    handle.log("last")
    assert handle.dropped_lines == 3
    assert handle.lines == []


def test_the_last_line_tells_how_many_were_dropped(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    _, kept = handle.take()
    for _ in range(2):
        handle.log("too many")
    assert [line.message for line in kept] == ["0", "1", "2"]
    handle.take()
    handle.finish()
    _, told = handle.take()
    assert told == [LogLine("warning", "2 more lines were dropped (TASK_MAX_LOG_LINES: 3)")]


def test_where_no_line_was_dropped_none_is_told(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    handle.take()
    handle.finish()
    assert handle.take() == (None, [])


def test_lines_wait_until_they_are_taken() -> None:
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    assert [line.message for line in handle.lines] == ["0", "1", "2"]


# Stopping.


def calls(handle: ProgressHandle) -> list[Callable[[], Any]]:
    """Every call of the handle that a task makes."""
    return [
        lambda: handle.send_progress("x", 0.5),
        lambda: handle.send_progress_value(0.5),
        lambda: handle.send_progress_text("x"),
        lambda: handle.advance(),
        lambda: list(handle.track("ab")),
        lambda: list(handle.track(iter("ab"))),
        lambda: list(handle.track("ab", text="x")),
        lambda: handle.log("x"),
        lambda: handle.check_cancelled(),
    ]


@pytest.mark.parametrize("reason", [TaskCancelled, TaskTimedOut, LeaseLost])
def test_every_call_tells_a_task_to_stop(reason: type[TaskInterrupted]) -> None:
    handle = ProgressHandle()
    handle.total = 2
    assert not handle.is_cancelled
    for call in calls(handle):
        call()
    handle.stop(reason())
    assert handle.is_cancelled
    for call in calls(handle):
        with pytest.raises(reason):
            call()


def test_except_exception_does_not_catch_it() -> None:
    handle = ProgressHandle()
    handle.stop(TaskCancelled())

    def stubborn() -> str:
        try:
            handle.send_progress_text("x")
        except Exception:  # noqa: BLE001 - the point of it
            return "swallowed"
        return "not told"

    with pytest.raises(TaskCancelled):
        stubborn()


def test_the_first_reason_stands() -> None:
    handle = ProgressHandle()
    first = TaskTimedOut("too long")
    handle.stop(first)
    handle.stop(TaskCancelled())
    with pytest.raises(TaskTimedOut) as caught:
        handle.check_cancelled()
    assert caught.value is first


def test_a_task_is_told_from_another_thread() -> None:
    handle = ProgressHandle()
    told = threading.Event()

    def work() -> None:
        try:
            while True:
                handle.check_cancelled()
        except TaskInterrupted:
            told.set()

    thread = threading.Thread(target=work)
    thread.start()
    handle.stop(TaskCancelled())
    thread.join(10)
    assert told.is_set()


def test_what_was_said_with_the_last_breath_is_kept() -> None:
    """The call that is interrupted has said its say."""
    handle = ProgressHandle()
    handle.stop(TaskCancelled())
    with pytest.raises(TaskCancelled):
        handle.send_progress("last", 0.75)
    assert latest(handle) == ("last", 0.75)
    with pytest.raises(TaskCancelled):
        handle.log("rolled back")
    assert handle.take() == (
        TaskProgressUpdate(text="last", value=0.75),
        [LogLine("info", "rolled back")],
    )


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (TaskCancelled(), "The task was cancelled."),
        (TaskTimedOut("too long"), "too long"),
    ],
)
def test_an_interruption_says_why(reason: TaskInterrupted, said: str) -> None:
    handle = ProgressHandle()
    handle.stop(reason)
    with pytest.raises(TaskInterrupted) as caught:
        handle.check_cancelled()
    assert str(caught.value) == said


# Taking.


def test_take_hands_over_the_newest_once() -> None:
    handle = ProgressHandle()
    assert handle.take() == (None, [])
    for number in range(5):
        handle.send_progress(f"{number}", number / 10)
        handle.log(f"line {number}")
    progress, lines = handle.take()
    assert progress == TaskProgressUpdate(text="4", value=0.4)
    assert [line.message for line in lines] == [f"line {number}" for number in range(5)]
    assert handle.take() == (None, [])
    handle.log("more")
    assert handle.take() == (progress, [LogLine("info", "more")])


def test_one_notice_for_many_reports() -> None:
    notices: list[str] = []
    handle = ProgressHandle(lambda: notices.append("!"))
    for _ in range(1000):
        handle.send_progress_text("x")
    handle.log("x")
    assert notices == ["!"]
    handle.take()
    assert notices == ["!"]
    handle.send_progress_text("y")
    assert notices == ["!", "!"]


def test_a_look_is_no_report() -> None:
    notices: list[str] = []
    handle = ProgressHandle(lambda: notices.append("!"))
    handle.check_cancelled()
    assert not handle.is_cancelled
    assert list(handle.track(iter("ab"))) == ["a", "b"]
    assert notices == []
    assert handle.take() == (None, [])


def test_nothing_is_lost_between_a_busy_task_and_its_worker() -> None:
    """Whatever the task says while it is taken from, the worker ends on the last of it."""
    rung = threading.Event()
    handle = ProgressHandle(rung.set)
    steps = 3000
    lines: list[str] = []
    newest = TaskProgressUpdate()

    def work() -> None:
        for number in range(1, steps + 1):
            handle.send_progress(f"{number}", number / steps)
            if number % 10 == 0:
                handle.log(f"{number}")

    thread = threading.Thread(target=work)
    thread.start()
    while newest.text != f"{steps}" or len(lines) < steps // 10:
        assert rung.wait(10), "the worker was not told of the last report"
        rung.clear()
        progress, new = handle.take()
        if progress is not None:
            assert (progress.value or 0) >= (newest.value or 0)
            newest = progress
        lines += [line.message for line in new]
    thread.join()
    assert newest == TaskProgressUpdate(text=f"{steps}", value=1.0)
    assert lines == [f"{number}" for number in range(10, steps + 1, 10)]
