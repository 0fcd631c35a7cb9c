"""A task's history as its page tells it: newest part first read, in the order it happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, EventType

#: How many log lines, and how many other facts, a page shows of a history.
LINES = 200
FACTS = 200


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline."""

    id: int
    type: str
    time: datetime
    what: str
    by: str = ""
    #: A time that it names.
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    number: int
    worker: str
    began: datetime
    ended: datetime | None = None
    how: str = ""
    error: str = ""

    @property
    def took(self) -> float | None:
        """In seconds."""
        return (self.ended - self.began).total_seconds() if self.ended else None


@dataclass(frozen=True, slots=True)
class Line:
    id: int
    time: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class History:
    moments: list[Moment]
    #: Whether there is more before the first one.
    cut: bool
    attempts: list[Attempt]


def history_of(task: Task) -> History:
    newest = (
        TaskEvent.primary.filter(task=task)
        .exclude(event_type=EventType.LOG)
        .order_by("-id")[: FACTS + 1]
    )
    events = list(newest)
    shown = events[:FACTS][::-1]
    return History([moment(event) for event in shown], len(events) > FACTS, attempts(shown))


def log_of(task: Task, before: int | None = None) -> tuple[list[Line], int | None]:
    """Its newest log lines, before an id if one is given; and before which there are more."""
    events = TaskEvent.primary.filter(task=task, event_type=EventType.LOG).order_by("-id")
    if before is not None:
        events = events.filter(id__lt=before)
    found = list(events[: LINES + 1])
    shown = found[:LINES][::-1]
    lines = [
        Line(
            event.pk,
            event.timestamp,
            str(event.data.get("level", "")),
            str(event.data.get("message", "")),
        )
        for event in shown
    ]
    return lines, shown[0].pk if len(found) > LINES else None


def moment(event: TaskEvent) -> Moment:
    data = event.data
    told = Moment(
        event.pk,
        event.event_type,
        event.timestamp,
        str(EventType(event.event_type).label),
        by=str(data.get("by", "")),
    )
    match event.event_type:
        case EventType.QUEUED if data.get("reason"):
            return replace(told, what=_("Returned to the queue by its worker"))
        case EventType.QUEUED:
            return replace(told, until=_after(data, event.timestamp))
        case EventType.STARTED:
            words = {"attempt": data.get("attempt"), "worker": data.get("worker", "")}
            return replace(told, what=_("Attempt %(attempt)s started on %(worker)s") % words)
        case EventType.RETRY_SCHEDULED:
            words = {"attempt": data.get("attempt")}
            return replace(
                told,
                what=_("Attempt %(attempt)s failed") % words,
                until=_after(data, event.timestamp),
            )
    return told


def attempts(events: Iterable[TaskEvent]) -> list[Attempt]:
    """Its runs, as the facts tell of them. The number of one that was handed back comes again."""
    found: list[Attempt] = []
    for event in events:
        if event.event_type == EventType.STARTED:
            number, worker = event.data.get("attempt", 0), str(event.data.get("worker", ""))
            found.append(Attempt(number, worker, event.timestamp))
        elif event.event_type in ATTEMPT_ENDS and found and found[-1].ended is None:
            how = EventType(event.event_type)
            label = str(how.label)
            if how is EventType.RETRY_SCHEDULED:
                label = str(EventType.FAILED.label)
            elif how is EventType.QUEUED:
                label = _("Returned to the queue")
            found[-1] = replace(
                found[-1], ended=event.timestamp, how=label, error=error_of(event.data)
            )
    return found


def error_of(data: dict[str, Any], most: int | None = None) -> str:
    """Return the error that an event tells of, with so many characters of its message at most."""
    error = data.get("error")
    if not isinstance(error, dict):
        return ""
    return f"{error.get('type')}: {str(error.get('message'))[:most]}"


def _after(data: dict[str, Any], now: datetime) -> datetime | None:
    """A time to wait until, if it is one worth a word."""
    text = data.get("run_after")
    until = parse_datetime(text) if isinstance(text, str) else None
    if until is None or (until.replace(tzinfo=None) - now.replace(tzinfo=None)).total_seconds() < 1:
        return None
    return until
