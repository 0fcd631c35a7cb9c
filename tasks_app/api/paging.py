"""Pages of lists that keep growing. Each page begins where the previous one ended."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils import timezone
from pydantic import TypeAdapter

from tasks_app.api.payloads import (
    EventPage,
    EventsQuery,
    Filters,
    ListedTask,
    RecordedEvent,
    TaskPage,
    Time,
)
from tasks_app.api.problems import invalid
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.models.expressions import Unindexed
from tasks_app.models.querysets import TaskQuerySet

_time: TypeAdapter[datetime] = TypeAdapter(Time)
#: Columns that a list does not show, and that may be large.
HEAVY = ("params", "result", "error_traceback")
#: Columns that can be filtered by, but are not in the index that gives the order.
UNINDEXED = ("status", "name", "queue")
#: The most tasks that a page searches for matching ones.
WINDOW = 20_000

#: The position of a task in a list: its creation time and id.
Place = tuple[datetime, UUID]


def page_of(tasks: TaskQuerySet, filters: Filters, *, for_staff: bool = False) -> TaskPage:
    """Return a page, the newest task first. Raises Problem for a wrong cursor.

    The index that gives the order does not hold the filtered columns. So the page searches only the
    next `WINDOW` tasks, however few of them match. The page after it continues where these end.
    """
    if filters.created_after is not None:
        tasks = tasks.filter(created_at__gte=stored(filters.created_after))
    if filters.created_before is not None:
        tasks = tasks.filter(created_at__lt=stored(filters.created_before))
    if filters.cursor is not None:
        tasks = tasks.filter(_follows(*_read(filters.cursor)))
    tasks = tasks.order_by("-created_at", "-pk")
    end = None
    if conditions := _conditions(filters):
        end = _end_of_window(tasks)
        columns = {f"_{name}": Unindexed(name) for name in UNINDEXED}
        tasks = tasks.alias(**columns).filter(**conditions)
    if end is not None:
        tasks = tasks.filter(_reaches(*end))
    rows = list(tasks.defer(*HEAVY)[: filters.limit + 1])
    page = rows[: filters.limit]
    if len(rows) > len(page):
        end = (page[-1].created_at, page[-1].pk)
    return TaskPage(
        tasks=[listed(task, for_staff=for_staff) for task in page],
        next=None if end is None else _cursor(*end),
    )


def _conditions(filters: Filters) -> dict[str, Any]:
    """Return the conditions on columns that no index may be used for."""
    conditions: dict[str, Any] = {}
    if filters.status:
        conditions["_status__in"] = filters.status
    if filters.name is not None:
        conditions["_name"] = filters.name
    if filters.queue is not None:
        conditions["_queue"] = filters.queue
    return conditions


def _end_of_window(tasks: TaskQuerySet) -> Place | None:
    """Return the last of the next `WINDOW` tasks; None if no task follows them."""
    places = list(tasks.values_list("created_at", "pk")[WINDOW - 1 : WINDOW + 1])
    return places[0] if len(places) == 2 else None


def stored(time: datetime) -> datetime:
    """Convert a time to the form in this site's rows: naive if USE_TZ is off."""
    return time if settings.USE_TZ else timezone.make_naive(time)


def listed(task: Task, *, for_staff: bool) -> ListedTask:
    task.result = None  # It is deferred. Without this, it would be read for each task.
    return ListedTask(**dict(task.info(for_staff=for_staff)))


def events_after(task: Task, query: EventsQuery, *, for_staff: bool = False) -> EventPage:
    """Return a page of a task's history, the oldest event first.

    Within a task, ids grow in the order of commits. So no event can appear later among those that
    were already listed.
    """
    events = TaskEvent.primary.filter(task=task, id__gt=query.after).order_by("id")
    rows = list(events[: query.limit + 1])
    page = rows[: query.limit]
    return EventPage(
        events=[
            RecordedEvent(id=event.pk, **dict(event.message(for_staff=for_staff))) for event in page
        ],
        next=page[-1].pk if len(rows) > len(page) else None,
    )


def _cursor(created: datetime, pk: UUID) -> str:
    text = f"{aware(created).isoformat()} {pk}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> Place:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        created, task_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split()
        place = stored(_time.validate_python(created)), UUID(task_id)
    except ValueError:
        raise invalid({"cursor": "must be the `next` of an earlier page, or omitted"}) from None
    return place


# In both conditions, the first term is a range, so that the index is used.


def _follows(created: datetime, pk: UUID) -> Q:
    """Select the tasks after a place: older ones, or as old with a smaller id."""
    return Q(created_at__lte=created) & (Q(created_at__lt=created) | Q(pk__lt=pk))


def _reaches(created: datetime, pk: UUID) -> Q:
    """Select the tasks before a place, and the one at it."""
    return Q(created_at__gte=created) & (Q(created_at__gt=created) | Q(pk__gte=pk))
