"""The handle by which a running task reports progress and learns that it must stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple, TypeVar

from tasks_app.conf import task_settings
from tasks_app.exceptions import TaskInterrupted
from tasks_app.schemas import (
    LOG_LINE_MAX,
    PROGRESS_MAX,
    TaskProgressUpdate,
    clipped,
    printable,
)

T = TypeVar("T")

#: Passed instead of a text or a value to keep the previous one.
KEEP = object()

LOG_LEVELS = ("debug", "info", "warning", "error")


class LogLine(NamedTuple):
    level: str
    message: str


def checked_number(what: str, value: Any) -> float:
    """Return a number as a float. Raises TypeError for anything else, also for True and False."""
    # Accept numbers of numpy and Decimal, which have this method; strings do not.
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{what}, not {value!r} ({type(value).__name__})")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def checked_fraction(value: Any) -> float:
    """Return a progress value as a float.

    Raises TypeError if it is no number, and ValueError if it is NaN or outside 0 to 1.
    """
    number = checked_number("progress must be a number from 0.0 to 1.0", value)
    if math.isnan(number) or not 0.0 <= number <= 1.0:
        raise ValueError(
            f"progress must be from 0.0 to 1.0, not {number!r}; divide the work done by the total"
        )
    return number


class ProgressHandle:
    """The connection between a running task and its viewers and operators.

    A call only touches memory and costs less than a microsecond. It may come from any thread, as
    often as you like: the worker writes the newest state at most once in
    TASK_PROGRESS_INTERVAL_SECONDS. Each call also stops a task that was cancelled or timed out, by
    an exception that `except Exception` does not catch.

    It works without a worker in a test: `handle = ProgressHandle(); task.execute(handle)`, then
    read `handle.latest` and `handle.lines`.
    """

    __slots__ = (
        "_done",
        "_lock",
        "_logged",
        "_reported",
        "_stop",
        "_text",
        "_value",
        "dropped_lines",
        "lines",
        "notify",
        "total",
    )

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self._lock = threading.Lock()
        #: Called once when there is something new to take. The worker sets it.
        self.notify = notify
        #: True from the first report until the worker takes it, so that many reports notify once.
        self._reported = False
        self._stop: TaskInterrupted | None = None
        self._value: float | None = None
        self._text = ""
        self._done = 0.0
        self._logged = 0
        #: The number of steps that `advance()` counts up to. The task sets it.
        self.total: float | None = None
        #: Log lines the worker has not taken yet.
        self.lines: list[LogLine] = []
        self.dropped_lines = 0

    # For tasks.

    def send_progress(self, text: str, value: float) -> None:
        """Report what the task is doing, and the fraction that is done.

        A value below an earlier one of the attempt is ignored, because bars never go back. Raises
        ValueError or TypeError if the value is not a fraction, and TaskInterrupted if the task must
        stop.
        """
        self._report(text, value)

    def send_progress_value(self, value: float) -> None:
        """Report the fraction that is done, from 0.0 to 1.0; see `send_progress`."""
        self._report(KEEP, value)

    def send_progress_text(self, text: str) -> None:
        """Report what the task is doing; see `send_progress`."""
        self._report(text, KEEP)

    def advance(self, steps: float = 1) -> None:
        """Count more steps of `total` as done.

        Raises ValueError if no total was set, if it is not positive, or if the steps are negative
        or not finite. Raises TypeError if one of them is no number.
        """
        total = checked_number("total must be a number", self.total or 0)
        if not total > 0:
            raise ValueError(
                f"advance() needs a positive total, but it is {self.total!r}; "
                f"set it first: progress.total = 100"
            )
        more = checked_number("steps must be a number", steps)
        if not 0 <= more < math.inf:
            raise ValueError(f"steps must be 0 or more, not {steps!r}")
        with self._lock:
            self._done += more
            done = self._done
        self._report(KEEP, min(done / total, 1.0))

    def track(
        self,
        iterable: Iterable[T],
        *,
        total: float | None = None,
        text: str | None = None,
        within: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[T]:
        """Yield the items of an iterable and report how many are done, as tqdm does.

        If the total is unknown, because none is given and the iterable has no length, the bar does
        not move, and each step only checks whether the task must stop. `within` is the loop's part
        of the bar, so that phases can follow each other: (0.0, 0.8), then (0.8, 1.0). Raises
        ValueError if the total is negative or not finite, or if the part ends before it starts.
        """
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        if total is not None:
            given, total = total, checked_number("total must be a number", total)
            if not 0 <= total < math.inf:
                raise ValueError(f"total must be 0 or more, or None if unknown, not {given!r}")
        start, end = (checked_fraction(bound) for bound in within)
        if start > end:
            raise ValueError(f"within must be (start, end), the smaller first, not {within!r}")
        if text is not None:
            self.send_progress_text(text)
        if not total:
            for item in iterable:
                yield item
                self.check_cancelled()
            return
        for done, item in enumerate(iterable, start=1):
            yield item
            self._report(KEEP, end if done >= total else start + (end - start) * done / total)

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the task's history. Viewers see it within milliseconds.

        Unlike progress, each line is kept, up to TASK_MAX_LOG_LINES per attempt. The rest are
        counted and dropped. Raises ValueError for an unknown level, and TaskInterrupted if the task
        must stop.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
        # Before taking the lock, which the worker also takes: str() may run the task's own code.
        line = LogLine(level, clipped(printable(str(message)), LOG_LINE_MAX))
        with self._lock:
            if self._logged < task_settings().max_log_lines:
                self._logged += 1
                self.lines.append(line)
            else:
                self.dropped_lines += 1
        self._announce()

    def check_cancelled(self) -> None:
        """Raise TaskInterrupted if the task must stop; else do nothing."""
        if self._stop is not None:
            # Drop the traceback, which would grow each time it is raised.
            raise self._stop.with_traceback(None)

    @property
    def is_cancelled(self) -> bool:
        """True if the task must stop, for code that prefers to check rather than be interrupted."""
        return self._stop is not None

    @property
    def reason(self) -> TaskInterrupted | None:
        """The reason why the task must stop; None if it may continue."""
        return self._stop

    @property
    def latest(self) -> TaskProgressUpdate:
        with self._lock:
            return TaskProgressUpdate(text=self._text, value=self._value)

    # For the worker.

    def stop(self, reason: TaskInterrupted) -> None:
        """Interrupt the task at its next call. The first reason is kept."""
        self._stop = self._stop or reason

    def finish(self) -> None:
        """Add what is known only at the end of the attempt: how many log lines were dropped."""
        with self._lock:
            if self.dropped_lines:
                kept = task_settings().max_log_lines
                more = (
                    "1 more line was"
                    if self.dropped_lines == 1
                    else f"{self.dropped_lines} more lines were"
                )
                message = f"{more} dropped (TASK_MAX_LOG_LINES: {kept})"
                self.lines.append(LogLine("warning", message))
                self._reported = True

    def take(self) -> tuple[TaskProgressUpdate | None, list[LogLine]]:
        """Return what is new since the last call: the newest progress, and the log lines."""
        with self._lock:
            if not self._reported:
                return None, []
            self._reported = False
            lines, self.lines = self.lines, []
            text = clipped(self._text, PROGRESS_MAX)
            return TaskProgressUpdate(text=text, value=self._value), lines

    def _report(self, text: Any, value: Any) -> None:
        if value is not KEEP and not (value.__class__ is float and 0.0 <= value <= 1.0):
            value = checked_fraction(value)
        if text is not KEEP and text.__class__ is not str:
            text = str(text)
        with self._lock:
            if value is not KEEP and (self._value is None or value > self._value):
                self._value = value
            if text is not KEEP:
                self._text = text
        self._announce()

    def _announce(self) -> None:
        # Notify before raising, so that a report is sent even if it is the task's last one.
        if not self._reported:
            self._reported = True
            if self.notify is not None:
                self.notify()
        self.check_cancelled()
