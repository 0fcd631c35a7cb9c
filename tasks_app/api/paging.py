"""Pages of a list that goes on growing: each begins where the one before ended."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any
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
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.models.expressions import Unindexed
from tasks_app.models.querysets import TaskQuerySet

_moment: TypeAdapter[datetime] = TypeAdapter(Moment)
#: What a list does not show, and may be large.
HEAVY = ("params", "result", "error_traceback")
#: What a list can be filtered by that its order's index does not hold.
SIFTED = ("status", "name", "queue")
#: How many tasks a page looks through for those that are asked for.
WINDOW = 20_000

#: Where a task stands in a list.
Place = tuple[datetime, UUID]


def page_of(tasks: TaskQuerySet, filters: Filters, *, for_staff: bool = False) -> TaskPage:
    """Return a page, the newest task first. Raises Problem for a wrong cursor.

    In the order of an index, which knows nothing of what else is asked for: that is looked for in
    the next `WINDOW` tasks alone, however few it finds there. The page that follows goes on where
    they end.
    """
    if filters.created_after is not None:
        tasks = tasks.filter(created_at__gte=stored(filters.created_after))
    if filters.created_before is not None:
        tasks = tasks.filter(created_at__lt=stored(filters.created_before))
    if filters.cursor is not None:
        tasks = tasks.filter(_follows(*_read(filters.cursor)))
    tasks = tasks.order_by("-created_at", "-pk")
    end = None
    if wanted := _wanted(filters):
        end = _end_of_window(tasks)
        tasks = tasks.alias(**{f"_{name}": Unindexed(name) for name in SIFTED}).filter(**wanted)
    if end is not None:
        tasks = tasks.filter(_reaches(*end))
    found = list(tasks.defer(*HEAVY)[: filters.limit + 1])
    shown = found[: filters.limit]
    if len(found) > len(shown):
        end = (shown[-1].created_at, shown[-1].pk)
    return TaskPage(
        tasks=[listed(task, for_staff=for_staff) for task in shown],
        next=None if end is None else _cursor(*end),
    )


def _wanted(filters: Filters) -> dict[str, Any]:
    """What the order's index does not know of, and no other one may be chosen for."""
    wanted: dict[str, Any] = {}
    if filters.status:
        wanted["_status__in"] = filters.status
    if filters.name is not None:
        wanted["_name"] = filters.name
    if filters.queue is not None:
        wanted["_queue"] = filters.queue
    return wanted


def _end_of_window(tasks: TaskQuerySet) -> Place | None:
    """The last of the next tasks to look through; None if there are no more."""
    places = list(tasks.values_list("created_at", "pk")[WINDOW - 1 : WINDOW + 1])
    return places[0] if len(places) == 2 else None


def stored(moment: datetime) -> datetime:
    """Return a moment as this site's rows hold it."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def listed(task: Task, *, for_staff: bool) -> ListedTask:
    task.result = None  # It was left in the database, and is not fetched for each task now.
    return ListedTask(**dict(task.info(for_staff=for_staff)))


def events_after(task: Task, following: Following, *, for_staff: bool = False) -> EventPage:
    """Return a page of a task's history, the oldest event first.

    Within a task ids grow in the order of commits, so that none appears before one that was shown.
    """
    events = TaskEvent.primary.filter(task=task, id__gt=following.after).order_by("id")
    found = list(events[: following.limit + 1])
    shown = found[: following.limit]
    return EventPage(
        events=[
            RecordedEvent(id=event.pk, **dict(event.message(for_staff=for_staff)))
            for event in shown
        ],
        next=shown[-1].pk if len(found) > len(shown) else None,
    )


def _cursor(created: datetime, pk: UUID) -> str:
    text = f"{aware(created).isoformat()} {pk}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str) -> Place:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        moment, task_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split()
        at, pk = _moment.validate_python(moment), UUID(task_id)
    except ValueError:
        raise invalid({"cursor": "must be the next of an earlier page, or left out"}) from None
    return stored(at), pk


# In both the first term is for the index: it is a range.


def _follows(created: datetime, pk: UUID) -> Q:
    """What comes after a place: older, or as old and with a smaller id."""
    return Q(created_at__lte=created) & (Q(created_at__lt=created) | Q(pk__lt=pk))


def _reaches(created: datetime, pk: UUID) -> Q:
    """What comes before a place, and what stands there."""
    return Q(created_at__gte=created) & (Q(created_at__gt=created) | Q(pk__gte=pk))
