"""Which part of which index the list reads: the same amount, however many tasks there are.

The list is in the order of an index: the newest first, of one owner's tasks where it is filtered by
owner; by when they ended, of one status's and of stuck ones; and the longest waiting first of
pending ones. What else it is filtered by is looked for in the next `WINDOW` tasks of that order.
Where there are more, the page says so and links to those beyond: by the value of the order's field,
not by an offset.
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

#: How many tasks a page looks through for those that are asked for.
WINDOW = 20_000

#: What the list's URL may say.
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
    """An order that an index has: of all tasks, a status's, an owner's, or those that are stuck."""

    field: str
    descending: bool
    status: Status | None = None
    of_owner: bool = False
    of_stuck: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> IndexOrder:
        """Return the index_order that serves what a list's URL asks for."""
        descending = OLDEST not in params
        asked = params.get(STATUS, "")
        status = Status(asked) if asked in Status else None
        if status is None and params.get(WAIT):
            status = Status.PENDING
        if status is Status.RUNNING or params.get(TROUBLE) == LOST:
            # Never more than there are hands, whoever owns them: sorted as they are read.
            return cls("started_at", descending, Status.RUNNING)
        if params.get(TROUBLE) == STUCK:
            # Few, and each has ended.
            return cls("finished_at", descending, of_stuck=True)
        if params.get(OWNER):
            return cls("created_at", descending, of_owner=True)
        if status is None:
            return cls("created_at", descending)
        if status is Status.PENDING:
            # The one that waits longest first.
            return cls("run_after", not descending, status)
        return cls("finished_at", descending, status)

    @property
    def expression(self) -> OrderBy:
        return F(self.field).desc() if self.descending else F(self.field).asc()

    def restrict(self, tasks: QuerySet[Task], owner: Any = None) -> QuerySet[Task]:
        """Restrict tasks by what the index is of, in the words that make the database use it."""
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

    def starting_at(self, tasks: QuerySet[Task], moment: datetime) -> QuerySet[Task]:
        """Those from a moment on, in this order; what is of that very moment too."""
        side = "lte" if self.descending else "gte"
        return tasks.filter(**{f"{self.field}__{side}": moment})

    def up_to(self, tasks: QuerySet[Task], moment: datetime) -> QuerySet[Task]:
        """Those up to a moment, in this order, without it."""
        side = "gt" if self.descending else "lt"
        return tasks.filter(**{f"{self.field}__{side}": moment})

    def window_end(self, tasks: QuerySet[Task]) -> datetime | None:
        """Where the window over these tasks ends; None if it holds all of them."""
        fields = tasks.order_by(self.expression).values_list(self.field, flat=True)
        return fields[WINDOW : WINDOW + 1].first()


def str_of(moment: datetime) -> str:
    return moment.isoformat()


def unindexed(tasks: QuerySet[Task], column: str, **wanted: Any) -> QuerySet[Task]:
    """Filter by a column, and keep SQLite from choosing an index by it: the order has its own."""
    [(lookup, value)] = wanted.items()
    name = f"_{column}"
    return tasks.alias(**{name: Unindexed(column)}).filter(**{f"{name}__{lookup}": value})
