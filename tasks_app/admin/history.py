"""The newest part of a task's history, in the order in which it happened, for its page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, EventType

#: A page shows at most this many log lines, and this many other facts.
LINES = 200
FACTS = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the timeline."""

    id: int
    type: str
    time: datetime
    what: str
    by: str = ""
    #: The time until which the task waits.
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the task."""

    number: int
    worker: str
    began: datetime
    ended: datetime | None = None
    how: str = ""
    error: str = ""

    @property
    def took(self) -> float | None:
        """The run time in seconds; None if it is still running."""
        return (self.ended - self.began).total_seconds() if self.ended else None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log."""

    id: int
    time: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class History:
    """The newest facts of a task, and the attempts that they report."""

    entries: list[Entry]
    #: True if earlier facts were left out.
    cut: bool
    attempts: list[Attempt]


def history_of(task: Task) -> History:
    newest = (
        TaskEvent.primary.filter(task=task)
        .exclude(event_type=EventType.LOG)
        .order_by("-id")[: FACTS + 1]
    )
    events = list(newest)
    facts = events[:FACTS][::-1]
    return History([entry_of(event) for event in facts], len(events) > FACTS, attempts(facts))


def log_of(task: Task, before: int | None = None) -> tuple[list[Line], int | None]:
    """Return the newest log lines before an event ID, if one is given.

    Also return the ID before which there are more lines, or None.
    """
    events = TaskEvent.primary.filter(task=task, event_type=EventType.LOG).order_by("-id")
    if before is not None:
        events = events.filter(id__lt=before)
    newest = list(events[: LINES + 1])
    page = newest[:LINES][::-1]
    lines = [
        Line(
            event.pk,
            event.timestamp,
            str(event.data.get("level", "")),
            str(event.data.get("message", "")),
        )
        for event in page
    ]
    return lines, page[0].pk if len(newest) > LINES else None


def entry_of(event: TaskEvent) -> Entry:
    data = event.data
    entry = Entry(
        event.pk,
        event.event_type,
        event.timestamp,
        str(EventType(event.event_type).label),
        by=str(data.get("by", "")),
    )
    match event.event_type:
        case EventType.QUEUED if data.get("reason"):
            return replace(entry, what=_("Returned to the queue by its worker"))
        case EventType.QUEUED:
            return replace(entry, until=_after(data, event.timestamp))
        case EventType.STARTED:
            words = {"attempt": data.get("attempt"), "worker": data.get("worker", "")}
            return replace(entry, what=_("Attempt %(attempt)s started on %(worker)s") % words)
        case EventType.RETRY_SCHEDULED:
            words = {"attempt": data.get("attempt")}
            return replace(
                entry,
                what=_("Attempt %(attempt)s failed") % words,
                until=_after(data, event.timestamp),
            )
    return entry


def attempts(events: Iterable[TaskEvent]) -> list[Attempt]:
    """Return the attempts that the facts report.

    Two can have the same number, because a released attempt is not counted.
    """
    runs: list[Attempt] = []
    for event in events:
        if event.event_type == EventType.STARTED:
            number, worker = event.data.get("attempt", 0), str(event.data.get("worker", ""))
            runs.append(Attempt(number, worker, event.timestamp))
        elif event.event_type in ATTEMPT_ENDS and runs and runs[-1].ended is None:
            how = EventType(event.event_type)
            label = str(how.label)
            if how is EventType.RETRY_SCHEDULED:
                label = str(EventType.FAILED.label)
            elif how is EventType.QUEUED:
                label = _("Returned to the queue")
            runs[-1] = replace(
                runs[-1], ended=event.timestamp, how=label, error=error_of(event.data)
            )
    return runs


def error_of(data: dict[str, Any], limit: int | None = None) -> str:
    """Return the error in an event's data, with at most `limit` characters of its message."""
    error = data.get("error")
    if not isinstance(error, dict):
        return ""
    return f"{error.get('type')}: {str(error.get('message'))[:limit]}"


def _after(data: dict[str, Any], now: datetime) -> datetime | None:
    """Return the time until which the task waits, if it is at least a second away."""
    text = data.get("run_after")
    until = parse_datetime(text) if isinstance(text, str) else None
    if until is None or (until.replace(tzinfo=None) - now.replace(tzinfo=None)).total_seconds() < 1:
        return None
    return until
