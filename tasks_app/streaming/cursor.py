"""Which facts a viewer, or the relay, has had. What a stream's ids say, and resumes from.

Where transactions commit one after another, as on SQLite, ids grow in the order of commits and the
last id says it all. On PostgreSQL a transaction may draw an id and commit minutes later, after
greater ids were sent. There a cursor also carries snapshots: PostgreSQL's own account of which
transactions were visible at a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from django.db import connections
from django.db.models import Max, Q, QuerySet

from tasks_app.models import TaskEvent
from tasks_app.streaming.pages import pages


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions below `xmax` are visible, but for those then in progress.

    See "pg_snapshot" in PostgreSQL's manual, section "System Information Functions".
    """

    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        _xmin, xmax, listed = text.split(":")
        return cls(_number(xmax), frozenset(_number(xid) for xid in listed.split(",") if xid))

    def __str__(self) -> str:
        listed = sorted(self.in_progress)
        xmin = listed[0] if listed else self.xmax
        return f"{xmin}:{self.xmax}:{','.join(map(str, listed))}"

    def age(self) -> tuple[int, int]:
        """What orders the snapshots of one database: each sees all that an earlier one did."""
        return self.xmax, -len(self.in_progress)

    def sees(self, transaction: int) -> bool:
        return transaction < self.xmax and transaction not in self.in_progress

    @property
    def seen(self) -> Q:
        return Q(transaction__lt=self.xmax) & ~Q(transaction__in=self.in_progress)

    @property
    def unseen(self) -> Q:
        return Q(transaction__gte=self.xmax) | Q(transaction__in=self.in_progress)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything visible in `before`, and of what became visible by `batch` the ids up to `id`.

    Without snapshots: every id up to `id`.
    """

    id: int
    before: Snapshot | None = None
    batch: Snapshot | None = None

    @classmethod
    def now(cls, using: str) -> Self:
        """Everything committed by now."""
        connection = connections[using]
        snapshot = None
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_snapshot()::text")
                snapshot = Snapshot.parse(cursor.fetchone()[0])
        newest = TaskEvent.primary.aggregate(newest=Max("id"))["newest"]
        return cls(newest or 0, snapshot, snapshot)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a stream's id. Raises ValueError."""
        number, *snapshots = text.split("@")
        if len(snapshots) not in (0, 2):
            raise ValueError(f"{text!r} is no id of a task stream")
        return cls(_number(number), *(Snapshot.parse(snapshot) for snapshot in snapshots))

    @classmethod
    def earliest(cls, cursors: Sequence[Self]) -> Self:
        """A cursor that covers nothing that one of these does not cover."""
        before = [cursor.before for cursor in cursors if cursor.before]
        batch = [cursor.batch for cursor in cursors if cursor.batch]
        number = min(cursor.id for cursor in cursors)
        if len(batch) < len(cursors):
            return cls(number)
        return cls(number, min(before, key=Snapshot.age), min(batch, key=Snapshot.age))

    def __str__(self) -> str:
        if self.before is None or self.batch is None:
            return str(self.id)
        return f"{self.id}@{self.before}@{self.batch}"

    def covers(self, event_id: int, transaction: int | None) -> bool:
        if self.before is None or self.batch is None or transaction is None:
            return event_id <= self.id
        return self.before.sees(transaction) or (
            self.batch.sees(transaction) and event_id <= self.id
        )

    def rest(self, events: QuerySet[TaskEvent], until: Cursor) -> QuerySet[TaskEvent]:
        """Those of the events, in order, that this cursor does not cover and `until` does."""
        if until.before is None:
            return events.filter(id__gt=self.id, id__lte=until.id).order_by("id")
        if self.before is None or self.batch is None:
            return events.filter(until.before.seen, id__gt=self.id).order_by("id")
        sent = Q(id__lte=self.id) & self.batch.seen
        return events.filter(self.before.unseen & ~sent & until.before.seen).order_by("id")

    def replay(
        self, events: QuerySet[TaskEvent], until: Cursor
    ) -> Iterator[list[tuple[TaskEvent, Cursor]]]:
        """Read what `rest` returns, page by page, each with the cursor of a viewer who has had it.

        The rest of the batch that the viewer was in the middle of comes first: later facts may
        have smaller ids, and a cursor says "up to this id" of one batch only.
        """
        parts = [(self, until)]
        if self.batch not in (None, self.before):
            whole = Cursor(self.id, self.batch, self.batch)
            parts = [(self, whole), (whole, until)]
        for had, batch in parts:
            for rows in pages(had.rest(events, batch)):
                yield [(row, had.at(row.pk, batch)) for row in rows]

    def beginning(self) -> Cursor:
        """The cursor, of this one's kind, of a viewer who had nothing."""
        nothing = None if self.before is None else Snapshot(0, frozenset())
        return Cursor(0, nothing, nothing)

    def at(self, event_id: int, batch: Cursor) -> Cursor:
        """The cursor of a viewer who had all of this one, and of the next batch up to an id."""
        return Cursor(event_id, self.before, batch.before)


def _number(text: str) -> int:
    """Read what a database's bigint holds. Raises ValueError."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError(f"{number} is no id")
    return number
