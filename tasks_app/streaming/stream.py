"""One viewer's stream: where it opens, what follows, when it ends."""

from __future__ import annotations

import asyncio
import itertools
import operator
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, cast
from uuid import UUID

from channels.db import database_sync_to_async
from django.db import InterfaceError, OperationalError
from django.db.models import OuterRef, QuerySet, Subquery
from django_eventstream.utils import sse_encode_error
from django_eventstream.views import Listener, get_listener_manager

from tasks_app.conf import task_settings
from tasks_app.models import Task, TaskEvent
from tasks_app.states import ATTEMPT_ENDS, TERMINAL_EVENTS, Status
from tasks_app.streaming import wire
from tasks_app.streaming.channels import ALL_TASKS, OWNER_PREFIX, task_of
from tasks_app.streaming.cursor import Cursor
from tasks_app.streaming.relay import TROUBLE_SECONDS, Relay
from tasks_app.streaming.storage import facts_of
from tasks_app.streaming.viewer import Viewer

#: The most states that a stream of an owner, or of all, opens with: the newest unfinished.
OPENING_TASKS = 100
#: The most facts that such a stream sends to somebody who was away.
MISSED_MAX = 1_000
#: How often an open stream asks whether its viewer may still read it.
RECHECK_SECONDS = 60.0
#: What is raised where the database does not answer.
AWAY = (OperationalError, InterfaceError)


class View:
    """What one viewer has been sent, which decides what to send next.

    Every fact of the channels goes out once, and in order within a task. Progress goes only
    forward within an attempt, and not after its end.
    """

    def __init__(self, channels: Iterable[str]) -> None:
        self.channels = channels = frozenset(channels)
        self._watched = {task_id for channel in channels if (task_id := task_of(channel))}
        #: The tasks whose end it waits for; None where it follows an owner, or all, for ever.
        self.open_tasks = set(self._watched) if self._watched else None
        #: Which facts the viewer had.
        self.had = Cursor(0)
        self._progress: dict[UUID, wire.Progress] = {}
        #: Tasks whose state, as it was last sent, tells more than the facts sent so far: up to
        #: which fact it does.
        self._ahead: dict[UUID, int] = {}

    @property
    def ended(self) -> bool:
        return self.open_tasks is not None and not self.open_tasks

    def open(self, resumed: Cursor | None, until: Cursor) -> bytes | None:
        """Return what to send first, after facts up to `until` were committed.

        The present state of each task; then, to a viewer who resumes, the facts since; to a new
        one, for whom the state tells all that was, the end of those that have ended. Returns None
        if a viewer who resumes had everything, the end too.
        """
        # In one statement with the state: which facts it includes.
        tasks: list[Any] = list(
            self._tasks().annotate(newest=_newest("id"), newest_transaction=_newest("transaction"))
        )
        self._ahead = {
            task.pk: task.newest
            for task in tasks
            if task.newest and not until.covers(task.newest, task.newest_transaction)
        }
        finished = [task.pk for task in tasks if task.is_terminal]
        ends = [
            row
            for row in TaskEvent.primary.filter(
                task__in=finished, event_type__in=TERMINAL_EVENTS
            ).order_by("id")
            if until.covers(row.pk, row.transaction)
        ]
        if self.open_tasks is not None:
            self.open_tasks = {task.pk for task in tasks} - {row.task_id for row in ends}
        self._progress = {
            task.pk: wire.Progress(task.pk, task.attempt, task.progress, task.progress_text)
            for task in tasks
            if task.status == Status.RUNNING
        }
        self.had = until
        if resumed is not None and self.open_tasks is None:
            # Who was away for very long is told the state, like somebody new.
            missed = resumed.rest(self._facts(), until)
            resumed = None if missed[MISSED_MAX:].exists() else resumed
        if resumed is None:
            # Until the ends are out, nothing to resume from: who is cut off here begins again.
            seen, none = (None if ends else until), until.beginning()
            facts = [(row, none.at(row.pk, until)) for row in ends]
        else:
            seen, facts = resumed, resumed.replay(self._facts(), until)
            if self.ended and not facts:
                return None
        return b"".join(
            [
                *(wire.status(task, seen) for task in tasks),
                *(wire.fact(row, cursor).wire for row, cursor in facts),
            ]
        )

    def narrow(self, allowed: Collection[str]) -> None:
        """Follow only what the viewer may still read, and what still exists."""
        if self.open_tasks is None:
            self.open_tasks = None if allowed else set()
        else:
            self._watched &= {task_id for channel in allowed if (task_id := task_of(channel))}
            self.open_tasks &= self._watched

    def admit(self, event: wire.Fact | wire.Report) -> bool:
        """Whether an event that the relay brought is news to this viewer. Takes it for sent."""
        if isinstance(event, wire.Report):
            return self._admit_progress(event.progress)
        if self.open_tasks is not None and event.task_id not in self._watched:
            return False
        if self.had.covers(event.id, event.transaction):
            return False
        self.had = event.cursor
        ahead = self._ahead.get(event.task_id, 0)
        if event.id >= ahead:
            self._ahead.pop(event.task_id, None)
        # An end that the state had told of is not that of the attempt it told of.
        if event.type in ATTEMPT_ENDS and event.id > ahead:
            self._progress.pop(event.task_id, None)
        if event.type in TERMINAL_EVENTS and self.open_tasks is not None:
            self.open_tasks.discard(event.task_id)
        return True

    def _admit_progress(self, progress: wire.Progress) -> bool:
        if self.open_tasks is not None and progress.task_id not in self.open_tasks:
            return False
        if progress.task_id in self._ahead:
            # Of before the state, which the viewer has.
            return False
        known = self._progress.get(progress.task_id)
        if known is not None and not progress.follows(known):
            return False
        self._progress[progress.task_id] = progress
        return True

    def _tasks(self) -> QuerySet[Task]:
        if self.open_tasks is not None:
            return Task.primary.filter(pk__in=self.open_tasks)
        unfinished = Task.primary.unfinished().order_by("-created_at")
        if self.channels != {ALL_TASKS}:
            [channel] = self.channels
            unfinished = unfinished.filter(owner__pk=channel.removeprefix(OWNER_PREFIX))
        return unfinished[:OPENING_TASKS]

    def _facts(self) -> QuerySet[TaskEvent]:
        if self.open_tasks is not None:
            return TaskEvent.primary.filter(task__in=self._watched)
        [channel] = self.channels
        return facts_of(channel)


async def open_stream(
    relay: Relay, viewer: Viewer, channels: Iterable[str], resumed: Cursor | None
) -> AsyncIterator[bytes] | None:
    """Return what a viewer is sent, as bytes of server-sent events; None if there is nothing left.

    Ends after the terminal event of every task it watches. Holds a listener from the first byte
    asked for to the last, so it must be closed.
    """
    listener = Listener()
    listener.assign_loop()
    view = View(channels)
    # django-eventstream's kick compares it with the primary key, whatever its type.
    listener.user_id = cast(Any, viewer.user.pk)
    listener.channels = set(view.channels)
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(relay.attached(listener))
        # What came meanwhile, the opening tells.
        _take(listener)
        opening = await database_sync_to_async(view.open)(resumed, relay.cursor)
        if opening is None:
            await stack.aclose()
            return None
    except BaseException:
        await stack.aclose()
        raise
    return _events(stack, relay, listener, viewer, view, opening)


def _newest(column: str) -> Subquery:
    """A column of the newest fact of each task."""
    facts = TaskEvent.primary.filter(task=OuterRef("pk")).order_by("-id")
    return Subquery(facts.values(column)[:1])


async def _events(
    stack: AsyncExitStack,
    relay: Relay,
    listener: Listener,
    viewer: Viewer,
    view: View,
    opening: bytes,
) -> AsyncIterator[bytes]:
    async with stack:
        yield wire.BEGINNING + opening
        recheck_at = time.monotonic() + RECHECK_SECONDS
        while not view.ended:
            if time.monotonic() >= recheck_at:
                recheck_at = time.monotonic() + RECHECK_SECONDS
                # Where the database is away, there is nothing to be read either.
                with suppress(*AWAY):
                    view.narrow(await database_sync_to_async(viewer.still_reads)(view.channels))
                continue
            try:
                async with asyncio.timeout(task_settings().stream_keepalive_seconds):
                    await listener.aevent.wait()
            except TimeoutError:
                yield wire.KEEP_ALIVE
                continue
            events, overflow, error = _take(listener)
            if error:
                yield sse_encode_error(error["condition"], error["text"], error["extra"]).encode()
                return
            if overflow:
                async with aclosing(_heal(view, relay)) as healing:
                    async for chunk in healing:
                        yield chunk
            elif news := b"".join(event.wire for event in events if view.admit(event)):
                yield news
        yield wire.STREAM_END


async def _heal(view: View, relay: Relay) -> AsyncGenerator[bytes]:
    """Send a viewer slower than the events what it missed, as soon as the database tells.

    Of progress the newest is enough.
    """
    had = view.had
    while True:
        try:
            yield await database_sync_to_async(view.open)(had, relay.cursor) or b""
        except AWAY:
            yield wire.KEEP_ALIVE
            with suppress(TimeoutError):
                async with asyncio.timeout(TROUBLE_SECONDS):
                    await asyncio.Event().wait()
        else:
            return


def _take(listener: Listener) -> tuple[list[wire.Fact | wire.Report], bool, Any]:
    """Empty a listener's queues; return its events in the relay's order."""
    with get_listener_manager().lock:
        listener.aevent.clear()
        queues, listener.channel_items = listener.channel_items, {}
        overflow, listener.overflow = listener.overflow, False
    events = sorted(itertools.chain(*queues.values()), key=operator.attrgetter("order"))
    return events, overflow, listener.error
