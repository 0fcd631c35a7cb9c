"""The progress handle: reports, logs, and requests to stop."""

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
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.tasks.progress import LOG_LEVELS, LogLine, ProgressHandle, checked_fraction


class Number:
    """A number class of another library, like those of numpy."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"Number({self.value})"


class AsksBack:
    """An object whose __str__ calls the handle."""

    def __init__(self, handle: ProgressHandle) -> None:
        self._handle = handle

    def __str__(self) -> str:
        self._handle.log("asked")
        return self._handle.latest.text


class FloatSubclass(float):
    """Like numpy.float64."""


def latest(handle: ProgressHandle) -> tuple[str, float | None]:
    return handle.latest.text, handle.latest.value


# Values.


@pytest.mark.parametrize(
    ("value", "stored"),
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
def test_fractions_are_stored_as_floats(value: Any, stored: float) -> None:
    handle = ProgressHandle()
    handle.send_progress_value(value)
    assert handle.latest.value == stored
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
def test_value_outside_the_range_raises(value: Any, shown: str) -> None:
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
    ("value", "text"),
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
def test_value_that_is_not_a_number_raises(value: Any, text: str) -> None:
    handle = ProgressHandle()
    handle.send_progress("before", 0.25)
    for call in senders(handle, value):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"progress must be a number from 0.0 to 1.0, not {text}"
    assert latest(handle) == ("before", 0.25)


def senders(handle: ProgressHandle, value: Any) -> list[Callable[[], None]]:
    return [
        lambda: handle.send_progress_value(value),
        lambda: handle.send_progress("after", value),
    ]


def test_progress_never_goes_back() -> None:
    handle = ProgressHandle()
    for value, expected in ((0.2, 0.2), (0.1, 0.2), (0.0, 0.2), (0.3, 0.3), (0.3, 0.3), (1.0, 1.0)):
        handle.send_progress(f"at {value}", value)
        assert latest(handle) == (f"at {value}", expected)


def test_text_and_value_are_independent() -> None:
    handle = ProgressHandle()
    assert latest(handle) == ("", None)
    handle.send_progress_text("looking")
    assert latest(handle) == ("looking", None)
    handle.send_progress_value(0.5)
    assert latest(handle) == ("looking", 0.5)
    handle.send_progress_text("")
    assert latest(handle) == ("", 0.5)


def test_text_is_converted_and_made_storable() -> None:
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
def test_advance_takes_all_number_types(total: Any, steps: Any) -> None:
    """For example, the database returns some sums as Decimals."""
    handle = ProgressHandle()
    handle.total = total
    handle.advance(steps)
    assert handle.latest.value == 0.5
    assert values_while(handle, handle.track("ab", total=total, within=(0.5, 1.0)))[0] == 0.5


@pytest.mark.parametrize("wrong", ["2", True, [2]])
def test_advance_refuses_what_is_not_a_number(wrong: Any) -> None:
    handle = ProgressHandle()
    message = rf"must be a number, not {re.escape(repr(wrong))} \({type(wrong).__name__}\)"
    handle.total = wrong
    with pytest.raises(TypeError, match=f"total {message}"):
        handle.advance()
    handle.total = 2
    with pytest.raises(TypeError, match=f"steps {message}"):
        handle.advance(wrong)
    with pytest.raises(TypeError, match=f"total {message}"):
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
def test_refused_step_changes_nothing(steps: float) -> None:
    handle = ProgressHandle()
    handle.total = 10
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        handle.advance(steps)
    assert str(caught.value) == f"steps must be 0 or more, not {steps}"
    handle.advance(5)
    assert handle.latest.value == 0.5


def test_concurrent_steps_are_all_counted() -> None:
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
    """Return the bar's value during each item, and at the end."""
    seen = [handle.latest.value for _ in items]
    return [*seen, handle.latest.value]


def test_track_uses_the_length() -> None:
    handle = ProgressHandle()
    assert list(handle.track("abcd")) == list("abcd")
    handle = ProgressHandle()
    assert values_while(handle, handle.track("abcd")) == [None, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("count", [49, 98, 103])
@pytest.mark.parametrize("within", [(0.0, 1.0), (0.2, 0.9)])
def test_track_ends_exactly_at_the_end(count: int, within: tuple[float, float]) -> None:
    """For these counts, adding equal float steps does not give exactly 1."""
    handle = ProgressHandle()
    assert values_while(handle, handle.track(range(count), within=within))[-1] == within[1]


def test_track_without_length_uses_the_total() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track(iter("ab"), total=4)) == [None, 0.25, 0.5]


def test_total_takes_precedence_over_length() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track("ab", total=4)) == [None, 0.25, 0.5]


def test_bar_stays_full_past_the_total() -> None:
    handle = ProgressHandle()
    assert values_while(handle, handle.track("abc", total=2)) == [None, 0.5, 1.0, 1.0]


def test_track_without_a_total_keeps_the_bar_and_checks_for_a_stop() -> None:
    handle = ProgressHandle()
    seen = []
    for item in handle.track(iter("abc")):
        seen.append(item)
        assert handle.latest.value is None
    assert seen == list("abc")

    def loop_until_stopped() -> None:
        for _ in handle.track(iter("abc")):
            handle.stop(TaskCancelled())

    with pytest.raises(TaskCancelled):
        loop_until_stopped()


def test_phases_use_their_parts_of_the_bar() -> None:
    handle = ProgressHandle()
    first = values_while(handle, handle.track("ab", within=(0.0, 0.5)))
    second = values_while(handle, handle.track("abcd", within=(0.5, 1.0)))
    assert first == [None, 0.25, 0.5]
    assert second == [0.5, 0.625, 0.75, 0.875, 1.0]


@pytest.mark.parametrize(("bound", "error"), [(1.5, ValueError), ("0.5", TypeError)])
def test_bounds_of_a_phase_must_be_fractions(bound: Any, error: type[Exception]) -> None:
    handle = ProgressHandle()
    with pytest.raises(error, match="progress must be"):
        list(handle.track("ab", within=(0.0, bound)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total": -1}, "total must be 0 or more, or None if unknown, not -1"),
        ({"total": float("nan")}, "total must be 0 or more, or None if unknown, not nan"),
        ({"total": float("inf")}, "total must be 0 or more, or None if unknown, not inf"),
        ({"within": (0.8, 0.2)}, "within must be (start, end), the smaller first, not (0.8, 0.2)"),
    ],
)
def test_track_refuses_invalid_options_before_the_first_item(options: Any, message: str) -> None:
    handle = ProgressHandle()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        next(iter(handle.track("ab", text="reading", **options)))
    assert str(caught.value) == message
    assert latest(handle) == ("", None)


@pytest.mark.parametrize("items", [[], iter([])])
def test_track_of_an_empty_iterable(items: Any) -> None:
    handle = ProgressHandle()
    assert list(handle.track(items, text="none of it")) == []
    assert latest(handle) == ("none of it", None)


def test_track_sends_its_text_first() -> None:
    handle = ProgressHandle()
    items = handle.track("ab", text="reading")
    assert next(iter(items)) == "a"
    assert latest(handle) == ("reading", None)


def test_loop_left_early_keeps_the_bar() -> None:
    handle = ProgressHandle()
    items = handle.track("abcd")
    next(items)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert handle.latest.value == 0.25


def test_error_of_the_iterable_passes_through() -> None:
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
def test_level_is_stored(level: str) -> None:
    handle = ProgressHandle()
    handle.log("hello", level)
    assert handle.lines == [LogLine(level, "hello")]


def test_default_level_is_info() -> None:
    handle = ProgressHandle()
    handle.log("hello")
    assert handle.lines == [LogLine("info", "hello")]


@pytest.mark.parametrize("level", ["INFO", "critical", "", 20, None])
def test_unknown_level_is_refused(level: Any) -> None:
    handle = ProgressHandle()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        handle.log("hello", level)
    assert str(caught.value) == f"level must be one of debug, info, warning, error, not {level!r}"
    assert handle.lines == []


def test_str_of_a_message_may_call_the_handle() -> None:
    """With str() under the handle's lock it would deadlock.

    The worker uses the same lock to take lines.
    """
    handle = ProgressHandle()
    handle.send_progress_text("half-way")
    handle.log(AsksBack(handle))  # type: ignore[arg-type]
    assert [line.message for line in handle.take()[1]] == ["asked", "half-way"]


def test_lines_are_made_storable() -> None:
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


def test_last_line_reports_the_dropped_lines(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    _, logged = handle.take()
    for _ in range(2):
        handle.log("too many")
    assert [line.message for line in logged] == ["0", "1", "2"]
    handle.take()
    handle.finish()
    _, last = handle.take()
    assert last == [LogLine("warning", "2 more lines were dropped (TASK_MAX_LOG_LINES: 3)")]


def test_no_report_without_dropped_lines(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    handle.take()
    handle.finish()
    assert handle.take() == (None, [])


def test_lines_stay_until_taken() -> None:
    handle = ProgressHandle()
    for number in range(3):
        handle.log(f"{number}")
    assert [line.message for line in handle.lines] == ["0", "1", "2"]


# Stopping.


def calls(handle: ProgressHandle) -> list[Callable[[], Any]]:
    """Return every call of the handle that a task can make."""
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
def test_every_call_raises_after_a_stop(reason: type[TaskInterrupted]) -> None:
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


def test_except_exception_does_not_catch_the_interruption() -> None:
    handle = ProgressHandle()
    handle.stop(TaskCancelled())

    def stubborn() -> str:
        try:
            handle.send_progress_text("x")
        except Exception:  # noqa: BLE001 - the point of it
            return "swallowed"
        return "not stopped"

    with pytest.raises(TaskCancelled):
        stubborn()


def test_first_reason_is_kept() -> None:
    handle = ProgressHandle()
    first = TaskTimedOut("too long")
    handle.stop(first)
    handle.stop(TaskCancelled())
    with pytest.raises(TaskTimedOut) as caught:
        handle.check_cancelled()
    assert caught.value is first


def test_stop_from_another_thread() -> None:
    handle = ProgressHandle()
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                handle.check_cancelled()
        except TaskInterrupted:
            stopped.set()

    thread = threading.Thread(target=work)
    thread.start()
    handle.stop(TaskCancelled())
    thread.join(10)
    assert stopped.is_set()


def test_last_report_is_stored_before_the_interruption() -> None:
    """A call stores its report before it raises."""
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
    ("reason", "message"),
    [
        (TaskCancelled(), "The task was cancelled."),
        (TaskTimedOut("too long"), "too long"),
    ],
)
def test_interruption_has_a_message(reason: TaskInterrupted, message: str) -> None:
    handle = ProgressHandle()
    handle.stop(reason)
    with pytest.raises(TaskInterrupted) as caught:
        handle.check_cancelled()
    assert str(caught.value) == message


# Taking.


def test_take_returns_the_newest_progress_once() -> None:
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


def test_many_reports_send_one_notice() -> None:
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


def test_check_sends_no_notice() -> None:
    notices: list[str] = []
    handle = ProgressHandle(lambda: notices.append("!"))
    handle.check_cancelled()
    assert not handle.is_cancelled
    assert list(handle.track(iter("ab"))) == ["a", "b"]
    assert notices == []
    assert handle.take() == (None, [])


def test_no_report_is_lost_while_the_worker_takes() -> None:
    """The task reports while the worker takes. The worker must end with the last report."""
    notified = threading.Event()
    handle = ProgressHandle(notified.set)
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
        assert notified.wait(10), "the worker was not notified of the last report"
        notified.clear()
        progress, new = handle.take()
        if progress is not None:
            assert (progress.value or 0) >= (newest.value or 0)
            newest = progress
        lines += [line.message for line in new]
    thread.join()
    assert newest == TaskProgressUpdate(text=f"{steps}", value=1.0)
    assert lines == [f"{number}" for number in range(10, steps + 1, 10)]
