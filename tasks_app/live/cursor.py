"""Which facts a viewer, or the relay, has had. What a stream's ids say, and resumes from.

Where transactions commit one after another, as on SQLite, ids grow in the order of commits and the
last id says it all. On PostgreSQL a transaction may draw an id and commit minutes later, after
greater ids were sent. There a cursor also carries snapshots: PostgreSQL's own account of which
transactions were visible at a moment. After a failover to a server that was behind, the numbers of
lost transactions are given out again; so it also carries the server's timeline.
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

#: The most transactions in progress that a snapshot names, so that ids stay short. Where there are
#: more, the relay passes on what began after them when some of them have ended.
IN_PROGRESS_MAX = 100

#: A promoted standby goes on in a new timeline, and a restored dump in another system. Every role
#: may call these functions. A standby has no position to write at.
TIMELINE = """
    (SELECT system_identifier FROM pg_control_system()) || '/' || CASE
        WHEN pg_is_in_recovery() THEN ''
        ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    END
"""
#: Databases that tell their timeline, and those that do not, such as some that only speak
#: PostgreSQL's protocol; known after the first question.
_spoken: set[str] = set()
_silent: set[str] = set()

#: An id as versions before the timeline gave it.
_FORMER = re.compile(r"\d+(@\d+:\d+:[\d,]*){2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions below `xmax` are visible, but for those then in progress.

    See "pg_snapshot" in PostgreSQL's manual, section "System Information Functions".
    """

    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a snapshot as PostgreSQL writes it, as of before what is too much to name."""
        _xmin, xmax, listed = text.split(":")
        xids = sorted(int(xid) for xid in listed.split(",") if xid)
        if len(xids) > IN_PROGRESS_MAX:
            return cls(xids[IN_PROGRESS_MAX], frozenset(xids[:IN_PROGRESS_MAX]))
        return cls(int(xmax), frozenset(xids))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a part of a stream's id. Raises ValueError."""
        xmax, *steps = (_number(part, 16) for part in text.split("."))
        if len(steps) > IN_PROGRESS_MAX:
            raise ValueError(f"{len(steps)} transactions in progress are too many")
        in_progress, xid = set(), xmax
        for step in steps:
            xid -= step
            in_progress.add(xid)
        if xid < 0:
            raise ValueError(f"{xid} is no transaction")
        return cls(xmax, frozenset(in_progress))

    def __str__(self) -> str:
        xids = [self.xmax, *sorted(self.in_progress, reverse=True)]
        steps = (high - low for high, low in pairwise(xids))
        return ".".join(f"{number:x}" for number in (self.xmax, *steps))

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
    #: Of which history of the database this is; empty where the database does not tell.
    timeline: str = ""

    @classmethod
    def now(cls, using: str) -> Self:
        """Everything committed by now."""
        snapshot, timeline = None, ""
        if connections[using].vendor == "postgresql":
            snapshot, timeline = _present(using)
        newest = TaskEvent.primary.aggregate(newest=Max("id"))["newest"]
        return cls(newest or 0, snapshot, snapshot, timeline)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a stream's id. Raises ValueError."""
        number, *rest = text.split("@")
        if not rest:
            return cls(_number(number))
        if _FORMER.fullmatch(text):
            return cls(0, _NOTHING, _NOTHING, "former")
        if len(rest) != 3:
            raise ValueError(f"{text!r} is no id of a task stream")
        before, batch, timeline = rest
        first = Snapshot.parse(before)
        return cls(_number(number), first, Snapshot.parse(batch) if batch else first, timeline)

    @classmethod
    def earliest(cls, cursors: Sequence[Self]) -> Self:
        """A cursor that covers nothing that one of these does not cover."""
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
        """Whether this cursor of the present is of the same history as an earlier one.

        A copy that was put in the server's place keeps its timeline; but it knows of fewer
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
            whole = Cursor(self.id, self.batch, self.batch, self.timeline)
            parts = [(self, whole), (whole, until)]
        for had, batch in parts:
            for rows in pages(had.rest(events, batch)):
                yield [(row, had.at(row.pk, batch)) for row in rows]

    def beginning(self) -> Cursor:
        """The cursor, of this one's kind, of a viewer who had nothing."""
        nothing = None if self.before is None else _NOTHING
        return Cursor(0, nothing, nothing, self.timeline)

    def at(self, event_id: int, batch: Cursor) -> Cursor:
        """The cursor of a viewer who had all of this one, and of the next batch up to an id."""
        return Cursor(event_id, self.before, batch.before, batch.timeline)


_NOTHING = Snapshot(0, frozenset())


def _present(using: str) -> tuple[Snapshot, str]:
    """Return the present snapshot and timeline, in one statement."""
    snapshot = "pg_current_snapshot()::text"
    if using not in _silent:
        try:
            # In a savepoint, for the sake of the transaction that this may be part of.
            with _guarded(using), connections[using].cursor() as cursor:
                cursor.execute(f"SELECT {snapshot}, {TIMELINE}")
                text, timeline = cursor.fetchone()
        except (ProgrammingError, NotSupportedError, InternalError):
            _silent.add(using)
        else:
            _spoken.add(using)
            return Snapshot.read(text), f"{crc32(timeline.encode()):08x}"
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {snapshot}")
        return Snapshot.read(cursor.fetchone()[0]), ""


def _guarded(using: str) -> AbstractContextManager[object]:
    return nullcontext() if using in _spoken else transaction.atomic(using=using)


def _number(text: str, base: int = 10) -> int:
    """Read what a database's bigint holds. Raises ValueError."""
    number = int(text, base)
    if not 0 <= number < 2**63:
        raise ValueError(f"{number} is no id")
    return number
