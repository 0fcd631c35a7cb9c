"""The events that one viewer has received, and the choice of what to send next."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, Q, QuerySet, Subquery

from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, OWNER_PREFIX, EventFilter, task_of
from tasks_app.live.cursor import Cursor
from tasks_app.live.pages import SIZE, in_pages, pieces
from tasks_app.live.storage import facts_of
from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, FACTS, TERMINAL_EVENTS, EventType, Status

#: The most states in the opening of an owner's stream, or of the stream of all tasks. They are
#: those of the newest unfinished tasks.
OPENING_TASKS = 100
ALL_EVENTS = EventFilter()


class View:
    """The events that one viewer has received. It decides what to send next.

    Every fact of the channels is sent once, and in order within a task. Within an attempt, progress
    only moves forward, and it is not sent after the attempt's end. The database is read page by
    page: each step of `catch_up` holds one page, however much there is to send.
    """

    def __init__(self, channels: Iterable[str], event_filter: EventFilter = ALL_EVENTS) -> None:
        self.channels = channels = frozenset(channels)
        self._filter = event_filter
        self._watched = {task_id for channel in channels if (task_id := task_of(channel))}
        #: The tasks that have not ended; None if it follows an owner or all tasks, without end.
        self.open_tasks = set(self._watched) if self._watched else None
        #: The facts that the viewer has received.
        self.cursor = Cursor(0)
        #: Pages of tasks whose state is still to be sent, and the id to send with the states.
        self._states: deque[list[UUID]] = deque()
        self._state_id: Cursor | None = None
        #: Up to this cursor, a new viewer gets only terminal events. The states cover the rest.
        self._ends_until: Cursor | None = None
        self._progress: dict[UUID, wire.Progress] = {}
        #: Tasks whose state, as last sent, includes more than the facts sent so far. The values are
        #: the newest fact that the state includes, and that fact's transaction.
        self._ahead: dict[UUID, tuple[int, int | None]] = {}

    @property
    def ended(self) -> bool:
        return self.open_tasks is not None and not self.open_tasks

    def begin(self, resumed: Cursor | None, until: Cursor) -> bool:
        """Prepare the opening that `catch_up` sends. Facts up to `until` are committed.

        The opening begins with the present state of each task. A viewer who resumes then gets the
        facts since then. For a new viewer the states cover the past, so only the terminal events of
        ended tasks follow. Return False if a viewer who resumes has received everything, including
        the end.
        """
        ends = list(
            TaskEvent.primary.filter(task__in=self._watched, event_type__in=TERMINAL_EVENTS)
            .order_by("id")
            .values_list("task_id", "pk", "transaction", SIZE)
        )
        covered = {task_id for task_id, pk, xid, _ in ends if until.covers(pk, xid)}
        if self.open_tasks is not None:
            self.open_tasks = self._watched - covered
        if resumed is not None and self.ended and not resumed.rest(self._facts(), until).exists():
            return False
        # Read before anything is changed: if the read fails, `catch_up` starts again.
        states = list(self._pages_of_states({end[0]: end[-1] for end in ends}))
        if resumed is not None:
            self.cursor = resumed
        elif covered:
            self.cursor, self._ends_until = until.beginning(), until
        else:
            self.cursor = until
        # No id until the terminal events are sent: a viewer who is cut off before starts again.
        self._state_id = resumed or (None if covered else until)
        self._states = deque(states)
        return True

    def catch_up(self, until: Cursor, *, progress: bool = False) -> Iterator[bytes]:
        """Yield the states that `begin` prepared, then all facts up to `until`.

        Each step reads one page. It yields no bytes if the viewer wants nothing of that page. With
        `progress`, the newest progress of running tasks follows if the viewer lacks it. After an
        error it can be called again: what was yielded counts as sent. If the database was replaced,
        the viewer's cursor belongs to another history, so the stream starts again.
        """
        if not until.continues(self.cursor):
            if self.open_tasks is not None:
                self._watched = set(self.open_tasks)
            self._progress.clear()
            self._ahead.clear()
            self.begin(None, until)
        while self._states:
            states = b"".join(self._read_states(self._states[0]))
            self._states.popleft()
            yield states
        if self._ends_until is not None:
            ends = self._facts().filter(event_type__in=TERMINAL_EVENTS)
            yield from self._replay(ends, self._ends_until)
            self._ends_until = None
        yield from self._replay(self._facts(), until)
        self._ahead = {
            pk: newest for pk, newest in self._ahead.items() if not until.covers(*newest)
        }
        if progress and EventType.PROGRESS in self._filter.kinds:
            yield from self._read_progress(until)

    def _pages_of_states(self, ended: dict[UUID, int]) -> Iterator[list[UUID]]:
        """Yield tasks: the unfinished ones together, ended ones by the size of their results."""
        if EventType.STATUS not in self._filter.kinds:
            return
        if self.open_tasks is None:
            newest = self._of_owner(Task.primary.unfinished()).order_by("-created_at")
            yield list(newest.values_list("pk", flat=True)[:OPENING_TASKS])
        else:
            yield list(self._watched - ended.keys())
            yield from in_pages(ended.items())

    def _read_states(self, pks: list[UUID]) -> Iterator[bytes]:
        deferred = ["params", "error_traceback", *([] if self._filter.results else ["result"])]
        # One statement reads the state and its newest fact, so it is known what the state includes.
        tasks: Iterable[Any] = (
            Task.primary.filter(pk__in=pks)
            .order_by("-created_at")
            .defer(*deferred)
            .annotate(newest=_newest("id"), newest_transaction=_newest("transaction"))
        )
        sent = set()
        for task in tasks:
            newest = (task.newest, task.newest_transaction)
            if task.newest and not self.cursor.covers(*newest):
                self._ahead[task.pk] = newest
            if task.status == Status.RUNNING and EventType.PROGRESS in self._filter.kinds:
                self._progress[task.pk] = wire.Progress(
                    task.pk, task.attempt, task.progress, task.progress_text
                )
            sent.add(task.pk)
            yield wire.status(task, self._state_id, results=self._filter.results)
        if self.open_tasks is not None:
            # The other tasks were deleted after `begin`.
            self.open_tasks -= set(pks) - sent

    def _replay(self, facts: QuerySet[TaskEvent], until: Cursor) -> Iterator[bytes]:
        if self.cursor == until:
            return
        for page in self.cursor.replay(facts, until):
            events = (wire.fact_if_known(row, cursor) for row, cursor in page)
            yield b"".join(self.wire_of(event) for event in events if event and self.admit(event))
        self.cursor = until

    def _read_progress(self, until: Cursor) -> Iterator[bytes]:
        """Yield the newest progress of each attempt whose start is covered by `until`."""
        running = Task.primary.running()
        if self.open_tasks is not None:
            running = running.filter(pk__in=self.open_tasks)
        rows = self._of_owner(running).annotate(
            began=_newest("id", EventType.STARTED),
            began_transaction=_newest("transaction", EventType.STARTED),
        )
        columns = ("pk", "attempt", "progress", "progress_text", "began", "began_transaction")
        reports = (
            wire.report(wire.Progress(*row))
            for *row, began, transaction in rows.order_by("pk").values_list(*columns)
            if began and until.covers(began, transaction)
        )
        yield from pieces(report.wire for report in reports if self.admit(report))

    def narrow(self, allowed: Collection[str]) -> None:
        """Follow only the channels that the viewer may still read and that still exist."""
        if self.open_tasks is None:
            self.open_tasks = None if allowed else set()
        else:
            self._watched &= {task_id for channel in allowed if (task_id := task_of(channel))}
            self.open_tasks &= self._watched
            self._states = deque(
                [task_id for task_id in page if task_id in self._watched] for page in self._states
            )

    def admit(self, event: wire.Fact | wire.Report) -> bool:
        """Return whether to send an event, and count it as received."""
        if isinstance(event, wire.Report):
            return self._admit_progress(event.progress)
        if self.open_tasks is not None and event.task_id not in self._watched:
            return False
        if self.cursor.covers(event.id, event.transaction):
            return False
        self.cursor = event.cursor
        ahead, _ = self._ahead.get(event.task_id, (0, None))
        if event.id >= ahead:
            self._ahead.pop(event.task_id, None)
        # If the state already covered this end, the end belongs to an earlier attempt than the
        # progress. Keep the progress.
        if event.type in ATTEMPT_ENDS and event.id > ahead:
            self._progress.pop(event.task_id, None)
        if event.type in TERMINAL_EVENTS and self.open_tasks is not None:
            self.open_tasks.discard(event.task_id)
        return event.type in self._filter.kinds

    def wire_of(self, event: wire.Fact | wire.Report) -> bytes:
        if isinstance(event, wire.Fact) and not self._filter.results:
            return event.brief
        return event.wire

    def _admit_progress(self, progress: wire.Progress) -> bool:
        if EventType.PROGRESS not in self._filter.kinds:
            return False
        if self.open_tasks is not None and progress.task_id not in self.open_tasks:
            return False
        if progress.task_id in self._ahead:
            # The viewer has a newer state.
            return False
        last = self._progress.get(progress.task_id)
        if last is not None and not progress.follows(last):
            return False
        self._progress[progress.task_id] = progress
        return True

    def _of_owner(self, tasks: QuerySet[Task]) -> QuerySet[Task]:
        """Limit tasks to those of the owner, if this is the channel of an owner."""
        if self.open_tasks is not None or self.channels == {ALL_TASKS}:
            return tasks
        [channel] = self.channels
        return tasks.filter(owner__pk=channel.removeprefix(OWNER_PREFIX))

    def _facts(self) -> QuerySet[TaskEvent]:
        """Return the facts to send, and those that end the stream or an attempt with progress.

        No other facts are read, because a history may be very long.
        """
        kinds = FACTS & self._filter.kinds
        if self.open_tasks is not None:
            facts = TaskEvent.primary.filter(task__in=self._watched)
            kinds |= TERMINAL_EVENTS
        else:
            [channel] = self.channels
            facts = facts_of(channel)
        if kinds == FACTS:
            return facts
        ends = Q(event_type__in=sorted(ATTEMPT_ENDS), task__in=list(self._progress))
        return facts.filter(Q(event_type__in=sorted(kinds)) | ends)


def _newest(column: str, *kinds: EventType) -> Subquery:
    """Select a column of each task's newest fact, of one of these kinds if any are given."""
    facts = TaskEvent.primary.filter(task=OuterRef("pk")).order_by("-id")
    if kinds:
        facts = facts.filter(event_type__in=kinds)
    return Subquery(facts.values(column)[:1])
