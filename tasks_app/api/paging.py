"""Pages of a list that goes on growing: each begins where the one before ended."""

from __future__ import annotations

import base64
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils import timezone
from pydantic import TypeAdapter

from tasks_app.api.problems import invalid
from tasks_app.api.schemas import (
    EventPage,
    Filters,
    Following,
    ListedTask,
    Moment,
    RecordedEvent,
    TaskPage,
)
from tasks_app.models import Task, TaskEvent, TaskQuerySet, aware

_moment: TypeAdapter[datetime] = TypeAdapter(Moment)
#: What a list does not show, and may be large.
HEAVY = ("params", "result", "error_traceback")


def page_of(tasks: TaskQuerySet, filters: Filters) -> TaskPage:
    """Return a page, the newest task first, in one query. Raises Problem for a wrong cursor."""
    if filters.status:
        tasks = tasks.filter(status__in=filters.status)
    if filters.name is not None:
        tasks = tasks.filter(name=filters.name)
    if filters.queue is not None:
        tasks = tasks.filter(queue=filters.queue)
    if filters.created_after is not None:
        tasks = tasks.filter(created_at__gte=stored(filters.created_after))
    if filters.created_before is not None:
        tasks = tasks.filter(created_at__lt=stored(filters.created_before))
    if filters.cursor is not None:
        tasks = tasks.filter(_follows(filters.cursor))
    found = list(tasks.order_by("-created_at", "-pk").defer(*HEAVY)[: filters.limit + 1])
    shown = found[: filters.limit]
    return TaskPage(
        tasks=[listed(task) for task in shown],
        next=_cursor(shown[-1]) if len(found) > len(shown) else None,
    )


def stored(moment: datetime) -> datetime:
    """Return a moment as this site's rows hold it."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def listed(task: Task) -> ListedTask:
    task.result = None  # It was left in the database, and is not fetched for each task now.
    return ListedTask(**dict(task.info()))


def events_after(task: Task, following: Following) -> EventPage:
    """Return a page of a task's history, the oldest event first.

    Within a task ids grow in the order of commits, so that none appears before one that was shown.
    """
    events = TaskEvent.objects.filter(task=task, id__gt=following.after).order_by("id")
    found = list(events[: following.limit + 1])
    shown = found[: following.limit]
    return EventPage(
        events=[RecordedEvent(id=event.pk, **dict(event.message())) for event in shown],
        next=shown[-1].pk if len(found) > len(shown) else None,
    )


def _cursor(last: Task) -> str:
    text = f"{aware(last.created_at).isoformat()} {last.pk}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _follows(cursor: str) -> Q:
    """What comes after a cursor: older, or as old and with a smaller id."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        moment, task_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split()
        at, pk = _moment.validate_python(moment), UUID(task_id)
    except ValueError:
        raise invalid({"cursor": "must be the next of an earlier page, or left out"}) from None
    created = stored(at)
    # The first term for the index: it is a range.
    return Q(created_at__lte=created) & (Q(created_at__lt=created) | Q(pk__lt=pk))
