"""One viewer's stream: where it opens, what follows, when it ends."""

from __future__ import annotations

import asyncio
import itertools
import operator
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, cast
from uuid import UUID

from channels.db import database_sync_to_async
from django.db import InterfaceError, OperationalError
from django.db.models import OuterRef, QuerySet, Subquery
from django_eventstream.utils import sse_encode_error
from django_eventstream.views import Listener, get_listener_manager

from tasks_app.conf import task_settings
from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, FACTS, TERMINAL_EVENTS, EventType, Status
from tasks_app.streaming import wire
from tasks_app.streaming.channels import ALL_TASKS, OWNER_PREFIX, Wanted, task_of
from tasks_app.streaming.cursor import Cursor
from tasks_app.streaming.pages import PAGE_BYTES, SIZE, in_pages, pieces
from tasks_app.streaming.relay import TROUBLE_SECONDS, Relay
from tasks_app.streaming.serving import server
from tasks_app.streaming.storage import facts_of
from tasks_app.streaming.viewer import Viewer

#: The most states that a stream of an owner, or of all, opens with: the newest unfinished.
OPENING_TASKS = 100
#: How often an open stream asks whether its viewer may still read it. Where the database does not
#: answer that, it asks again after TROUBLE_SECONDS.
RECHECK_SECONDS = 60.0
#: What is raised where the database does not answer.
AWAY = (OperationalError, InterfaceError)
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
        if resumed is not None:
            self.had = resumed
        elif covered:
            self.had, self._ends_until = until.beginning(), until
        else:
            self.had = until
        # Until the ends are out, nothing to resume from: who is cut off here begins again.
        self._state_id = resumed or (None if covered else until)
        self._states.clear()
        if EventType.STATUS in self._wanted.kinds:
            self._states.extend(self._pages_of_states({end[0]: end[-1] for end in ends}))
        return True

    def catch_up(self, until: Cursor, *, progress: bool = False) -> Iterator[bytes]:
        """Send the states that `begin` named, then all facts up to `until`; a page at each step.

        With `progress`, what is running is told too, where it is news. May be begun anew where it
        broke off: what was returned is taken for sent. Where the database was replaced, all that
        the viewer had is of another history, and its stream opens anew.
        """
        if not until.continues(self.had):
            if self.open_tasks is not None:
                self._watched = set(self.open_tasks)
            self._progress.clear()
            self._ahead.clear()
            self.begin(None, until)
        while self._states:
            told = list(self._tell_states(self._states[0], until))
            self._states.popleft()
            yield b"".join(told)
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
        if self.open_tasks is None:
            newest = self._of_owner(Task.primary.unfinished()).order_by("-created_at")
            yield list(newest.values_list("pk", flat=True)[:OPENING_TASKS])
        else:
            yield list(self._watched - ended.keys())
            yield from in_pages(ended.items())

    def _tell_states(self, pks: list[UUID], until: Cursor) -> Iterator[bytes]:
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
            if task.newest and not until.covers(*newest):
                self._ahead[task.pk] = newest
            if task.status == Status.RUNNING:
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
            events = (wire.fact(row, cursor) for row, cursor in page)
            if told := b"".join(self.wire_of(event) for event in events if self.admit(event)):
                yield told
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
        if self.open_tasks is not None and progress.task_id not in self.open_tasks:
            return False
        if progress.task_id in self._ahead:
            # The state that the viewer has is newer.
            return False
        known = self._progress.get(progress.task_id)
        if known is not None and not progress.follows(known):
            return False
        self._progress[progress.task_id] = progress
        return EventType.PROGRESS in self._wanted.kinds

    def _of_owner(self, tasks: QuerySet[Task]) -> QuerySet[Task]:
        """Narrow tasks to those of the owner whose channel this is, if it is an owner's."""
        if self.open_tasks is not None or self.channels == {ALL_TASKS}:
            return tasks
        [channel] = self.channels
        return tasks.filter(owner__pk=channel.removeprefix(OWNER_PREFIX))

    def _facts(self) -> QuerySet[TaskEvent]:
        """The facts that are sent, and those that say when an attempt or the stream ends."""
        if self.open_tasks is not None:
            facts = TaskEvent.primary.filter(task__in=self._watched)
        else:
            [channel] = self.channels
            facts = facts_of(channel)
        if self._wanted.kinds >= FACTS:
            return facts
        return facts.filter(event_type__in=sorted((FACTS & self._wanted.kinds) | ATTEMPT_ENDS))


async def open_stream(
    relay: Relay,
    viewer: Viewer,
    channels: Iterable[str],
    resumed: Cursor | None,
    wanted: Wanted = ALL_EVENTS,
) -> AsyncIterator[bytes] | None:
    """Return what a viewer is sent, as bytes of server-sent events; None if there is nothing left.

    Ends after the terminal event of every task it watches. Holds a listener from the first byte
    asked for to the last, so it must be closed.
    """
    listener = Listener()
    listener.assign_loop()
    view = View(channels, wanted)
    # django-eventstream's kick compares it with the primary key, whatever its type.
    listener.user_id = cast(Any, viewer.user.pk)
    listener.channels = set(view.channels)
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(relay.attached(listener))
        if resumed is not None:
            # Another process may have sent this viewer what the relay of this one has yet to read.
            await relay.caught_up()
        # Drop queued events: the opening covers them.
        _take(listener)
        opening = await database_sync_to_async(_open)(view, resumed, relay.cursor)
        if opening is None:
            await stack.aclose()
            return None
    except BaseException:
        await stack.aclose()
        raise
    return _events(stack, relay, listener, viewer, view, *opening)


def _open(
    view: View, resumed: Cursor | None, until: Cursor
) -> tuple[bytes, Iterator[bytes] | None] | None:
    """Return the first pieces of an opening, about a page, and what gives the others, if any."""
    if resumed is not None and not until.continues(resumed):
        resumed = None
    if not view.begin(resumed, until):
        return None
    opening = view.catch_up(until)
    first = b""
    for piece in opening:
        first += piece
        if len(first) > PAGE_BYTES:
            return first, opening
    return first, None


def _newest(column: str, *kinds: EventType) -> Subquery:
    """A column of the newest fact of each task, of one of these kinds."""
    facts = TaskEvent.primary.filter(task=OuterRef("pk")).order_by("-id")
    if kinds:
        facts = facts.filter(event_type__in=kinds)
    return Subquery(facts.values(column)[:1])


async def _events(
    stack: AsyncExitStack,
    relay: Relay,
    listener: Listener,
    viewer: Viewer,
    view: View,
    first: bytes,
    opening: Iterator[bytes] | None,
) -> AsyncIterator[bytes]:
    """Send piece after piece, and read none before the last one was taken."""
    async with stack:
        yield wire.BEGINNING + first
        #: What the database has to tell, before what the relay brings.
        missed = opening
        recheck_at = time.monotonic() + RECHECK_SECONDS
        while (missed is not None or not view.ended) and not server.is_closing:
            if time.monotonic() >= recheck_at:
                try:
                    allowed = await viewer.still_reads(view.channels)
                except AWAY:
                    # Send no event before a re-check succeeds. Until then the listener keeps
                    # events, or overflows, and the database tells what was lost.
                    yield wire.KEEP_ALIVE
                    await _trouble()
                    continue
                if not allowed:
                    break
                view.narrow(allowed)
                recheck_at = time.monotonic() + RECHECK_SECONDS
            if missed is not None:
                try:
                    piece = await database_sync_to_async(next)(missed, None)
                except AWAY:
                    yield wire.KEEP_ALIVE
                    await _trouble()
                    missed = view.catch_up(relay.cursor, progress=True)
                    continue
                if piece is None:
                    missed = None
                else:
                    yield piece
                continue
            keepalive = task_settings().stream_keepalive_seconds
            try:
                # An event that comes after a re-check is due must not overtake it.
                async with asyncio.timeout(min(keepalive, recheck_at - time.monotonic())):
                    await listener.aevent.wait()
            except TimeoutError:
                yield wire.KEEP_ALIVE
                continue
            events, overflow, error = _take(listener)
            if error:
                yield sse_encode_error(error["condition"], error["text"], error["extra"]).encode()
                return
            if overflow:
                # Read what was lost from the database; of progress the newest is enough.
                missed = view.catch_up(relay.cursor, progress=True)
                continue
            for piece in pieces(view.wire_of(event) for event in events if view.admit(event)):
                yield piece
        # The clients of a server that shuts down come back to the next one.
        if not server.is_closing:
            yield wire.STREAM_END


async def _trouble() -> None:
    """Wait before asking again a database that did not answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TROUBLE_SECONDS):
            await asyncio.Event().wait()


def _take(listener: Listener) -> tuple[list[wire.Fact | wire.Report], bool, Any]:
    """Empty a listener's queues; return its events in the relay's order."""
    with get_listener_manager().lock:
        listener.aevent.clear()
        queues, listener.channel_items = listener.channel_items, {}
        overflow, listener.overflow = listener.overflow, False
    events = sorted(itertools.chain(*queues.values()), key=operator.attrgetter("order"))
    return events, overflow, listener.error
