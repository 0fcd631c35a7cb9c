"""Cursors: which facts a viewer, or the relay, has received. The ids of a stream are cursors.

On SQLite, transactions commit one after another. Ids grow in the order of commits, so the last id
is enough. On PostgreSQL, a transaction may draw an id and commit minutes later, after greater ids
were sent. There a cursor also carries snapshots: PostgreSQL's own record of which transactions were
visible at a moment. After a failover to a server that was behind, the numbers of lost transactions
are assigned again. A cursor therefore also carries the server's timeline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Self
from zlib import crc32

from django.db import InternalError, NotSupportedError, ProgrammingError, connections, transaction
from django.db.models import Max, Q, QuerySet

from tasks_app.live.pages import pages
from tasks_app.models import TaskEvent

#: The most transactions in progress that a snapshot names, so that ids stay short. If there are
#: more, the facts of those that began later are sent once some of the earlier ones have ended.
IN_PROGRESS_MAX = 100

#: A promoted standby continues in a new timeline, and a restored dump in another system. Every role
#: may call these functions. On a standby there is no insert position, so its timeline is left out.
TIMELINE = """
    (SELECT system_identifier FROM pg_control_system()) || '/' || CASE
        WHEN pg_is_in_recovery() THEN ''
        ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    END
"""
#: Databases that report a timeline, and those that do not, such as some that only speak
#: PostgreSQL's protocol. The first query for a snapshot decides.
_with_timeline: set[str] = set()
_without_timeline: set[str] = set()

#: The form of an id before ids had a timeline.
_FORMER = re.compile(r"\d+(@\d+:\d+:[\d,]*){2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The visible transactions: all below `xmax`, except those that were in progress.

    See "pg_snapshot" in PostgreSQL's manual, section "System Information Functions".
    """

    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse PostgreSQL's own notation. If too many are in progress, use an earlier moment."""
        _xmin, xmax, listed = text.split(":")
        xids = sorted(int(xid) for xid in listed.split(",") if xid)
        if len(xids) > IN_PROGRESS_MAX:
            return cls(xids[IN_PROGRESS_MAX], frozenset(xids[:IN_PROGRESS_MAX]))
        return cls(int(xmax), frozenset(xids))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the snapshot in a stream's id. Raises ValueError."""
        xmax, *steps = (_number(part, 16) for part in text.split("."))
        if len(steps) > IN_PROGRESS_MAX:
            raise ValueError(f"{len(steps)} transactions in progress are too many")
        in_progress, xid = set(), xmax
        for step in steps:
            xid -= step
            in_progress.add(xid)
        if xid < 0:
            raise ValueError(f"{xid} is not a transaction id")
        return cls(xmax, frozenset(in_progress))

    def __str__(self) -> str:
        xids = [self.xmax, *sorted(self.in_progress, reverse=True)]
        steps = (high - low for high, low in pairwise(xids))
        return ".".join(f"{number:x}" for number in (self.xmax, *steps))

    def age(self) -> tuple[int, int]:
        """Return a sort key. A later snapshot of one database sees all that an earlier one sees."""
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
    """The facts that are visible in `before`, and those up to `id` that are visible in `batch`.

    Without snapshots, all facts up to `id`.
    """

    id: int
    before: Snapshot | None = None
    batch: Snapshot | None = None
    #: The history of the database that it belongs to; empty if the database does not report one.
    timeline: str = ""

    @classmethod
    def now(cls, using: str) -> Self:
        """Return a cursor that covers everything committed so far."""
        snapshot, timeline = None, ""
        if connections[using].vendor == "postgresql":
            snapshot, timeline = _present(using)
        newest = TaskEvent.primary.aggregate(newest=Max("id"))["newest"]
        return cls(newest or 0, snapshot, snapshot, timeline)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a stream's id. Raises ValueError."""
        number, *rest = text.split("@")
        if not rest:
            return cls(_number(number))
        if _FORMER.fullmatch(text):
            return cls(0, _NOTHING, _NOTHING, "former")
        if len(rest) != 3:
            raise ValueError(f"{text!r} is not an id of a task stream")
        before, batch, timeline = rest
        first = Snapshot.parse(before)
        return cls(_number(number), first, Snapshot.parse(batch) if batch else first, timeline)

    @classmethod
    def earliest(cls, cursors: Sequence[Self]) -> Self:
        """Return a cursor that covers a fact only if all of these cover it."""
        before = [cursor.before for cursor in cursors if cursor.before]
        batch = [cursor.batch for cursor in cursors if cursor.batch]
        number = min(cursor.id for cursor in cursors)
        if len(batch) < len(cursors):
            return cls(number)
        timelines = {cursor.timeline for cursor in cursors}
        timeline = timelines.pop() if len(timelines) == 1 else "several"
        first, last = min(before, key=Snapshot.age), min(batch, key=Snapshot.age)
        return cls(number, first, last, timeline)

    def __str__(self) -> str:
        if self.before is None or self.batch is None:
            return str(self.id)
        batch = "" if self.batch == self.before else self.batch
        return f"{self.id}@{self.before}@{batch}@{self.timeline}"

    def continues(self, earlier: Cursor) -> bool:
        """Return whether this present cursor belongs to the same history as an earlier one.

        If a copy replaced the server, the timeline is the same, but the copy knows of fewer
        transactions.
        """
        if self.before is None or earlier.before is None or earlier.batch is None:
            return True
        newest = max(earlier.before.xmax, earlier.batch.xmax)
        return self.timeline == earlier.timeline and newest <= self.before.xmax

    def covers(self, event_id: int, transaction: int | None) -> bool:
        if self.before is None or self.batch is None or transaction is None:
            return event_id <= self.id
        return self.before.sees(transaction) or (
            self.batch.sees(transaction) and event_id <= self.id
        )

    def rest(self, events: QuerySet[TaskEvent], until: Cursor) -> QuerySet[TaskEvent]:
        """Return the events, in order, that `until` covers and this cursor does not."""
        if until.before is None:
            return events.filter(id__gt=self.id, id__lte=until.id).order_by("id")
        if self.before is None or self.batch is None:
            return events.filter(until.before.seen, id__gt=self.id).order_by("id")
        sent = Q(id__lte=self.id) & self.batch.seen
        return events.filter(self.before.unseen & ~sent & until.before.seen).order_by("id")

    def replay(
        self, events: QuerySet[TaskEvent], until: Cursor
    ) -> Iterator[list[tuple[TaskEvent, Cursor]]]:
        """Read the events of `rest` page by page, each with the cursor of a viewer who received it.

        If the viewer was in the middle of a batch, the rest of that batch comes first: later facts
        may have smaller ids, and a cursor can say "up to this id" of one batch only.
        """
        parts = [(self, until)]
        if self.batch not in (None, self.before):
            whole = Cursor(self.id, self.batch, self.batch, self.timeline)
            parts = [(self, whole), (whole, until)]
        for start, end in parts:
            for rows in pages(start.rest(events, end)):
                yield [(row, start.at(row.pk, end)) for row in rows]

    def beginning(self) -> Cursor:
        """Return the cursor of a viewer who received nothing, in the form of this one."""
        nothing = None if self.before is None else _NOTHING
        return Cursor(0, nothing, nothing, self.timeline)

    def at(self, event_id: int, batch: Cursor) -> Cursor:
        """Return a cursor that covers this one's facts, and those of the next batch up to an id."""
        return Cursor(event_id, self.before, batch.before, batch.timeline)


_NOTHING = Snapshot(0, frozenset())


def _present(using: str) -> tuple[Snapshot, str]:
    """Return the present snapshot and timeline, read in one statement."""
    snapshot = "pg_current_snapshot()::text"
    if using not in _without_timeline:
        try:
            # In a savepoint: an error would break the transaction that this may be part of.
            with _guarded(using), connections[using].cursor() as cursor:
                cursor.execute(f"SELECT {snapshot}, {TIMELINE}")
                text, timeline = cursor.fetchone()
        except (ProgrammingError, NotSupportedError, InternalError):
            _without_timeline.add(using)
        else:
            _with_timeline.add(using)
            return Snapshot.read(text), f"{crc32(timeline.encode()):08x}"
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {snapshot}")
        return Snapshot.read(cursor.fetchone()[0]), ""


def _guarded(using: str) -> AbstractContextManager[object]:
    return nullcontext() if using in _with_timeline else transaction.atomic(using=using)


def _number(text: str, base: int = 10) -> int:
    """Parse a number that fits into a database's bigint. Raises ValueError."""
    number = int(text, base)
    if not 0 <= number < 2**63:
        raise ValueError(f"{number} is not an id")
    return number
