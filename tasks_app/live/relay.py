"""The relay: carries what any process commits to the open streams of this process."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from django.db import DatabaseError, InterfaceError, connections
from django_eventstream.views import Listener, get_listener_manager

from tasks_app.live import wire
from tasks_app.live.channels import channels_of
from tasks_app.live.cursor import Cursor
from tasks_app.live.pages import pages_of
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, TaskEvent
from tasks_app.notify import Changes, watch
from tasks_app.schemas import escaped
from tasks_app.states import ATTEMPT_ENDS
from tasks_app.store.database_file import DatabaseFile, DatabaseReplaced, leave_open
from tasks_app.store.ledger import alias

logger = SafeLogger("tasks_app.relay")

#: The pause after each pass. All that is committed during the pause is sent together.
PASS_SECONDS = 0.005
TROUBLE_SECONDS = 1.0
#: The longest wait for a commit, before it checks that the database is still the same file.
IDLE_SECONDS = 2.0
#: The most facts that one pass sends. If there are more, each viewer reads its own part.
FACTS_MAX = 5_000

_COLUMNS = ("pk", "task_id", "event_type", "task__owner_id")
_FactColumns = tuple[int, UUID, str, object]
_Running = list[tuple[wire.Progress, object]]


class Relay:
    """Feeds all streams of a process, by one thread and one database connection.

    Every listener gets every fact of its channels that was not visible yet when it attached, in
    order within a task, however late the fact's transaction commits. It also gets the newest
    progress of running tasks, which never overtakes a fact. The listeners are django-eventstream's.
    A process without viewers has neither the thread nor the connection.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners = 0
        self._feed: _Feed | None = None

    @property
    def cursor(self) -> Cursor:
        """The cursor of the facts sent so far. An attached listener gets all later ones."""
        if self._feed is None:
            raise RuntimeError("The relay has no listener, so it does not run. Attach one first.")
        return self._feed.cursor

    async def caught_up(self) -> None:
        """Wait until the cursor covers everything that was committed before this was called."""
        if self._feed is None:
            raise RuntimeError("The relay has no listener, so it does not run. Attach one first.")
        await asyncio.wrap_future(self._feed.next_pass())

    @asynccontextmanager
    async def attached(self, listener: Listener) -> AsyncIterator[None]:
        """Feed a listener. Once the context is entered, it misses nothing that is committed."""
        with self._lock:
            if self._feed is None:
                self._feed = _Feed()
                self._feed.start()
            feed = self._feed
            self._listeners += 1
        try:
            # Shielded: a client that leaves must not cancel the future that others wait for.
            await asyncio.shield(asyncio.wrap_future(feed.ready))
            get_listener_manager().add_listener(listener)
            try:
                yield
            finally:
                get_listener_manager().remove_listener(listener)
        finally:
            with self._lock:
                self._listeners -= 1
                if self._listeners == 0:
                    self._feed = None
                    feed.stop()


class _Feed(threading.Thread):
    """The relay's thread. It starts with the first listener and ends with the last."""

    def __init__(self) -> None:
        super().__init__(name="tasks-relay", daemon=True)
        self.ready: Future[None] = Future()
        self._stopping = False
        #: Held while something is sent, so that nothing is sent after `stop` has returned.
        self._sending = threading.Lock()
        #: Futures that the next pass completes when it has moved the cursor.
        self._waiting: deque[Future[None]] = deque()
        self.cursor: Cursor
        self._behind = False
        self._changes: Changes | None = None
        self._using = alias()
        self._file: DatabaseFile
        self._numbers = itertools.count(1)
        #: The last progress sent of each running task.
        self._sent: dict[UUID, wire.Progress] = {}

    def stop(self) -> None:
        """End soon, and send nothing from now on. The next listener starts another feed.

        Otherwise both feeds could send the same facts, because neither knows the other's cursor.
        """
        with self._sending:
            self._stopping = True
        if self._changes is not None:
            self._changes.wake()

    def next_pass(self) -> Future[None]:
        """Return a future that completes when a pass that begins after now has moved the cursor."""
        done: Future[None] = Future()
        self._waiting.append(done)
        if self._changes is not None:
            self._changes.wake()
        return done

    def run(self) -> None:
        try:
            self._changes = self._open()
            self.cursor = Cursor.now(self._using)
            logger.debug("The relay started at event %s", self.cursor)
            self.ready.set_result(None)
            while not self._stopping:
                self._follow(self._changes)
        except BaseException as error:
            if self.ready.done():
                raise
            self.ready.set_exception(error)
        finally:
            if self._changes is not None:
                self._changes.close()
            connections.close_all()
            logger.debug("The relay stopped: no open streams")

    def _open(self) -> Changes:
        """Open the change signal and the connection. Record the database's file, if it is one."""
        changes = watch(self._using)
        self._file = DatabaseFile(connections[self._using])
        with suppress(DatabaseError, InterfaceError):  # The first pass then waits for the database.
            self._file.opened(connections[self._using])
        return changes

    def _reopen(self, error: DatabaseReplaced, changes: Changes) -> None:
        """Continue in the file that other processes use now. Streams restart if it is another."""
        logger.error("%s; streams continue with the current file. Restart this server", error)
        if error.is_log:
            changes.close()
            connections.close_all()
        else:
            leave_open((changes, connections[self._using]))
            connections[self._using] = connections[self._using].copy()
        self._changes = self._open()
        self._behind = True

    def _follow(self, changes: Changes) -> None:
        """Wait for a commit and send what it brought. After an error, pause before the next try."""
        try:
            self._file.verify()
            if self._behind or self._waiting or changes.wait(IDLE_SECONDS) or self._waiting:
                self._behind = True
                self._behind = self._pass()
                changes.pause(PASS_SECONDS)
        except DatabaseReplaced as error:
            self._reopen(error, changes)
        except (DatabaseError, InterfaceError) as error:
            logger.warning(
                "Streams paused: the database does not answer (%s); next try in %g s",
                escaped(str(error).strip()),
                TROUBLE_SECONDS,
            )
            connections.close_all()
            self._file.closed()
            changes.pause(TROUBLE_SECONDS)
        except Exception:
            # No error may end all streams of this process.
            logger.exception("The relay failed; next try in %g s", TROUBLE_SECONDS)
            changes.pause(TROUBLE_SECONDS)

    def _pass(self) -> bool:
        """Send what is new. Return whether there may be more already.

        Progress is read before the facts and sent after them. So it never overtakes the fact that
        its attempt began. If the facts say that the attempt has ended since, its progress is left
        out, and the next pass reads the current state.
        """
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            running, until, facts = self._read()
        except Exception as error:
            for done in waiting:
                if done.set_running_or_notify_cancel():
                    done.set_exception(error)
            raise
        # Before the check of who listens: a stream that attaches later reads these facts itself.
        before, self.cursor = self.cursor, until
        for done in waiting:
            if done.set_running_or_notify_cancel():
                done.set_result(None)
        if not until.continues(before):
            logger.warning(
                "The database was replaced, or it lost its newest transactions; all streams restart"
            )
            self._sent.clear()
            self._overflow()
            return True
        if len(facts) > FACTS_MAX:
            # For example, a transaction started very many tasks. Each viewer reads its own part.
            self._sent.clear()
            self._overflow()
            return True
        try:
            self._send_facts(facts, before, until)
        except BaseException:
            # Some viewers got a part, and some nothing. Each reads the rest from the database.
            self._sent.clear()
            self._overflow()
            raise
        ended = {task_id for _, task_id, kind, _ in facts if kind in ATTEMPT_ENDS}
        for task_id in ended:
            self._sent.pop(task_id, None)
        stale = False
        for progress, owner_id in running:
            if progress.task_id in ended:
                stale = True
            elif self._sent.get(progress.task_id) != progress:
                self._sent[progress.task_id] = progress
                if channels := self._listened(progress.task_id, owner_id):
                    self._send(channels, wire.report(progress))
        return stale

    def _read(self) -> tuple[_Running, Cursor, list[_FactColumns]]:
        running = self._running()
        until = Cursor.now(self._using)
        rest = self.cursor.rest(TaskEvent.primary.all(), until).values_list(*_COLUMNS)
        return running, until, list(rest[: FACTS_MAX + 1])

    def _running(self) -> _Running:
        rows = (
            Task.primary.running()
            .order_by()
            .values_list("pk", "attempt", "progress", "progress_text", "owner_id")
        )
        return [
            (wire.Progress(task_id, attempt, value, text), owner_id)
            for task_id, attempt, value, text, owner_id in rows
        ]

    @staticmethod
    def _listened(task_id: UUID, owner_id: object) -> list[str]:
        listened = get_listener_manager().listeners_by_channel
        return [channel for channel in channels_of(task_id, owner_id) if channel in listened]

    def _send_facts(self, facts: list[_FactColumns], before: Cursor, until: Cursor) -> None:
        """Send the facts that a stream listens to. Read only those, because results may be long."""
        channels_by_fact = {
            pk: channels
            for pk, task_id, _, owner_id in facts
            if (channels := self._listened(task_id, owner_id))
        }
        # Page by page: a transaction may hold thousands of facts, each with a long result.
        for row in itertools.chain.from_iterable(pages_of(channels_by_fact)):
            if fact := wire.fact_if_known(row, before.at(row.pk, until)):
                self._send(channels_by_fact[row.pk], fact)

    def _overflow(self) -> None:
        """Make every stream read its missing events from the database, as if it were too slow."""
        manager = get_listener_manager()
        with self._sending, manager.lock:
            if self._stopping:
                return
            for listener in set().union(*manager.listeners_by_channel.values()):
                listener.overflow = True
                listener.wake_threadsafe()

    def _send(self, channels: list[str], event: wire.Fact | wire.Report) -> None:
        event.order = next(self._numbers)
        with self._sending:
            if not self._stopping:
                for channel in channels:
                    get_listener_manager().add_to_queues(channel, event)


relay = Relay()
