"""The index that the list of tasks reads, and how much of it.

The list reads the same number of rows, however many tasks there are, because its order is always
that of an index:

- all tasks, or those of one owner: newest first
- tasks of one terminal status, and stuck tasks: last finished first
- pending tasks: longest waiting first

The index does not cover other filters. The list applies them to the next `WINDOW` tasks in that
order. If there are more tasks, the page says so and links to them by the value of the order's
field, not by an offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F, OrderBy, QuerySet

from tasks_app.models import Task
from tasks_app.models.expressions import Unindexed
from tasks_app.states import Status

#: A page applies filters that no index covers to this many tasks.
WINDOW = 20_000

#: Query parameters of the list's URL.
STATUS, OWNER, TROUBLE, WAIT, ENDED, AGE, RETRIED, OLDEST, FROM, SINCE = (
    "status",
    "owner",
    "trouble",
    "wait",
    "ended",
    "age",
    "retried",
    "oldest",
    "from",
    "_since",
)
LOST, STUCK = "lost", "stuck"


@dataclass(frozen=True, slots=True)
class IndexOrder:
    """An order that an index serves: of all tasks, of one status or owner, or of stuck tasks."""

    field: str
    descending: bool
    status: Status | None = None
    of_owner: bool = False
    of_stuck: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> IndexOrder:
        """Return the order for the query parameters of a list's URL."""
        descending = OLDEST not in params
        value = params.get(STATUS, "")
        status = Status(value) if value in Status else None
        if status is None and params.get(WAIT):
            status = Status.PENDING
        if status is Status.RUNNING or params.get(TROUBLE) == LOST:
            # There are never more running tasks than threads, so sorting them is cheap.
            return cls("started_at", descending, Status.RUNNING)
        if params.get(TROUBLE) == STUCK:
            # Stuck tasks are few, and each has ended.
            return cls("finished_at", descending, of_stuck=True)
        if params.get(OWNER):
            return cls("created_at", descending, of_owner=True)
        if status is None:
            return cls("created_at", descending)
        if status is Status.PENDING:
            # Longest waiting first.
            return cls("run_after", not descending, status)
        return cls("finished_at", descending, status)

    @property
    def expression(self) -> OrderBy:
        return F(self.field).desc() if self.descending else F(self.field).asc()

    def restrict(self, tasks: QuerySet[Task], owner: Any = None) -> QuerySet[Task]:
        """Restrict tasks to those in the index, by conditions that make the database use it."""
        if self.of_owner:
            return tasks.filter(owner=owner)
        if self.of_stuck:
            return tasks.filter(stuck=True)
        if self.status is None:
            return tasks
        tasks = tasks.filter(status=self.status)
        if self.status is Status.RUNNING:
            return tasks.filter(lease_expires_at__isnull=False)
        return tasks.filter(**{f"{self.field}__isnull": False})

    def starting_at(self, tasks: QuerySet[Task], time: datetime) -> QuerySet[Task]:
        """Return the tasks from a time on, in this order, including those of that exact time."""
        side = "lte" if self.descending else "gte"
        return tasks.filter(**{f"{self.field}__{side}": time})

    def up_to(self, tasks: QuerySet[Task], time: datetime) -> QuerySet[Task]:
        """Return the tasks before a time, in this order, excluding those of that exact time."""
        side = "gt" if self.descending else "lt"
        return tasks.filter(**{f"{self.field}__{side}": time})

    def window_end(self, tasks: QuerySet[Task]) -> datetime | None:
        """Return the time at which the window over these tasks ends; None if it holds them all."""
        fields = tasks.order_by(self.expression).values_list(self.field, flat=True)
        return fields[WINDOW : WINDOW + 1].first()


def unindexed(tasks: QuerySet[Task], column: str, **condition: Any) -> QuerySet[Task]:
    """Filter by a column without its index: SQLite then keeps to the index of the list's order."""
    [(lookup, value)] = condition.items()
    name = f"_{column}"
    return tasks.alias(**{name: Unindexed(column)}).filter(**{f"{name}__{lookup}": value})
