"""What one viewer has been sent, and what to send next."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, Q, QuerySet, Subquery

from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, OWNER_PREFIX, Wanted, task_of
from tasks_app.live.cursor import Cursor
from tasks_app.live.pages import SIZE, in_pages, pieces
from tasks_app.live.storage import facts_of
from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, FACTS, TERMINAL_EVENTS, EventType, Status

#: The most states that a stream of an owner, or of all, opens with: the newest unfinished.
OPENING_TASKS = 100
ALL_EVENTS = Wanted()


class View:
    """What one viewer has been sent, which decides what to send next.

    Every fact of the channels goes out once, and in order within a task. Progress goes only
    forward within an attempt, and not after its end. What it reads from the database it reads page
    by page: a step of `catch_up` holds one page, however much there is to tell.
    """

    def __init__(self, channels: Iterable[str], wanted: Wanted = ALL_EVENTS) -> None:
        self.channels = channels = frozenset(channels)
        self._wanted = wanted
        self._watched = {task_id for channel in channels if (task_id := task_of(channel))}
        #: The tasks whose end it waits for; None where it follows an owner, or all, for ever.
        self.open_tasks = set(self._watched) if self._watched else None
        #: Which facts the viewer had.
        self.had = Cursor(0)
        #: Pages of tasks whose state is still to be sent, and the id that goes with it.
        self._states: deque[list[UUID]] = deque()
        self._state_id: Cursor | None = None
        #: Up to where a new viewer is told ends alone: the state tells all else.
        self._ends_until: Cursor | None = None
        self._progress: dict[UUID, wire.Progress] = {}
        #: Tasks whose state, as it was last sent, tells more than the facts sent so far: the newest
        #: fact that it includes, and that fact's transaction.
        self._ahead: dict[UUID, tuple[int, int | None]] = {}

    @property
    def ended(self) -> bool:
        return self.open_tasks is not None and not self.open_tasks

    def begin(self, resumed: Cursor | None, until: Cursor) -> bool:
        """Decide what `catch_up` sends first, after facts up to `until` were committed.

        The present state of each task; then, to a viewer who resumes, the facts since; to a new
        one, for whom the state tells all that was, the end of those that have ended. Returns False
        if a viewer who resumes had everything, the end too.
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
        # Read first: if it fails, `catch_up` begins again.
        states = list(self._pages_of_states({end[0]: end[-1] for end in ends}))
        if resumed is not None:
            self.had = resumed
        elif covered:
            self.had, self._ends_until = until.beginning(), until
        else:
            self.had = until
        # Until the ends are out, nothing to resume from: who is cut off here begins again.
        self._state_id = resumed or (None if covered else until)
        self._states = deque(states)
        return True

    def catch_up(self, until: Cursor, *, progress: bool = False) -> Iterator[bytes]:
        """Send the states that `begin` named, then all facts up to `until`.

        Each step reads one page. It returns no bytes if the viewer wants nothing of that page.
        With `progress`, the newest progress of running tasks follows if the viewer lacks it. A call
        that failed can be repeated: what was returned counts as sent. If the database was
        replaced, the viewer's cursor belongs to another history, and the stream opens anew.
        """
        if not until.continues(self.had):
            if self.open_tasks is not None:
                self._watched = set(self.open_tasks)
            self._progress.clear()
            self._ahead.clear()
            self.begin(None, until)
        while self._states:
            states = b"".join(self._tell_states(self._states[0]))
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
        if progress and EventType.PROGRESS in self._wanted.kinds:
            yield from self._tell_progress(until)

    def _pages_of_states(self, ended: dict[UUID, int]) -> Iterator[list[UUID]]:
        """The tasks to tell of: unfinished ones at once, others by the size of their results."""
        if EventType.STATUS not in self._wanted.kinds:
            return
        if self.open_tasks is None:
            newest = self._of_owner(Task.primary.unfinished()).order_by("-created_at")
            yield list(newest.values_list("pk", flat=True)[:OPENING_TASKS])
        else:
            yield list(self._watched - ended.keys())
            yield from in_pages(ended.items())

    def _tell_states(self, pks: list[UUID]) -> Iterator[bytes]:
        unseen = ["params", "error_traceback", *([] if self._wanted.results else ["result"])]
        # In one statement with the state: which facts it includes.
        tasks: Iterable[Any] = (
            Task.primary.filter(pk__in=pks)
            .order_by("-created_at")
            .defer(*unseen)
            .annotate(newest=_newest("id"), newest_transaction=_newest("transaction"))
        )
        told = set()
        for task in tasks:
            newest = (task.newest, task.newest_transaction)
            if task.newest and not self.had.covers(*newest):
                self._ahead[task.pk] = newest
            if task.status == Status.RUNNING and EventType.PROGRESS in self._wanted.kinds:
                self._progress[task.pk] = wire.Progress(
                    task.pk, task.attempt, task.progress, task.progress_text
                )
            told.add(task.pk)
            yield wire.status(task, self._state_id, results=self._wanted.results)
        if self.open_tasks is not None:
            # The others were removed just now.
            self.open_tasks -= set(pks) - told

    def _replay(self, facts: QuerySet[TaskEvent], until: Cursor) -> Iterator[bytes]:
        if self.had == until:
            return
        for page in self.had.replay(facts, until):
            events = (wire.fact_if_known(row, cursor) for row, cursor in page)
            yield b"".join(self.wire_of(event) for event in events if event and self.admit(event))
        self.had = until

    def _tell_progress(self, until: Cursor) -> Iterator[bytes]:
        """Send the newest progress of each attempt whose beginning the viewer has been told."""
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
        """Follow only what the viewer may still read, and what still exists."""
        if self.open_tasks is None:
            self.open_tasks = None if allowed else set()
        else:
            self._watched &= {task_id for channel in allowed if (task_id := task_of(channel))}
            self.open_tasks &= self._watched
            self._states = deque(
                [task_id for task_id in page if task_id in self._watched] for page in self._states
            )

    def admit(self, event: wire.Fact | wire.Report) -> bool:
        """Whether to send this viewer an event. Takes it for sent."""
        if isinstance(event, wire.Report):
            return self._admit_progress(event.progress)
        if self.open_tasks is not None and event.task_id not in self._watched:
            return False
        if self.had.covers(event.id, event.transaction):
            return False
        self.had = event.cursor
        ahead, _ = self._ahead.get(event.task_id, (0, None))
        if event.id >= ahead:
            self._ahead.pop(event.task_id, None)
        # An end that the state already covered belongs to an earlier attempt than its progress.
        if event.type in ATTEMPT_ENDS and event.id > ahead:
            self._progress.pop(event.task_id, None)
        if event.type in TERMINAL_EVENTS and self.open_tasks is not None:
            self.open_tasks.discard(event.task_id)
        return event.type in self._wanted.kinds

    def wire_of(self, event: wire.Fact | wire.Report) -> bytes:
        if isinstance(event, wire.Fact) and not self._wanted.results:
            return event.brief
        return event.wire

    def _admit_progress(self, progress: wire.Progress) -> bool:
        if EventType.PROGRESS not in self._wanted.kinds:
            return False
        if self.open_tasks is not None and progress.task_id not in self.open_tasks:
            return False
        if progress.task_id in self._ahead:
            # The state that the viewer has is newer.
            return False
        known = self._progress.get(progress.task_id)
        if known is not None and not progress.follows(known):
            return False
        self._progress[progress.task_id] = progress
        return True

    def _of_owner(self, tasks: QuerySet[Task]) -> QuerySet[Task]:
        """Narrow tasks to those of the owner whose channel this is, if it is an owner's."""
        if self.open_tasks is not None or self.channels == {ALL_TASKS}:
            return tasks
        [channel] = self.channels
        return tasks.filter(owner__pk=channel.removeprefix(OWNER_PREFIX))

    def _facts(self) -> QuerySet[TaskEvent]:
        """The facts that are sent, and those that end the stream or the attempt of known progress.

        A viewer may ask for very long histories, so no others are read.
        """
        kinds = FACTS & self._wanted.kinds
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
    """A column of the newest fact of each task, of one of these kinds."""
    facts = TaskEvent.primary.filter(task=OuterRef("pk")).order_by("-id")
    if kinds:
        facts = facts.filter(event_type__in=kinds)
    return Subquery(facts.values(column)[:1])
