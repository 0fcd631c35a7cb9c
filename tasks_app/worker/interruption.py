"""Interrupt code that does not stop when asked: its thread, its event loop and its queries.

A task that makes no progress call is stopped by an exception in its thread. If the thread waits for
an event loop, the loop's task is cancelled instead. The query that it waits for is cancelled too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from types import FrameType
from typing import Any, NamedTuple
from weakref import ref

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from tasks_app.exceptions import TaskInterrupted
from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped

logger = SafeLogger("tasks_app.worker")

#: Code that holds locks of the whole process. An exception between the acquisition of such a lock
#: and the `try` that releases it would leave it locked. For logging's lock, every later log call of
#: the process would then hang.
SHIELDED = frozenset(
    {"logging", "threading", "queue", "importlib", "_frozen_importlib", "tasks_app"}
)
#: The packages that a thread is in while it waits for an event loop, or for another thread.
WAITING = frozenset({"asgiref", "asyncio", "concurrent", "queue", "selectors", "threading"})
#: The functions that run an event loop until one task is done, and their variable with that task.
ROOTS = {
    asyncio.BaseEventLoop.run_until_complete.__code__: "future",
    asyncio.Runner.run.__code__: "task",
}
#: libpq's PQTRANS_ACTIVE: a command is in progress.
ACTIVE = 1
#: The time that the coordinator waits for a connection to close that another thread uses.
CLOSE_SECONDS = 1.0


# Queries.


class Queries:
    """The database connections of one run, in its own thread or in threads that asyncio uses."""

    def begin(self) -> None:
        """Take over the connections that this thread has kept. Call it in the run's context."""
        _current.set(self)
        for connection in connections.all(initialized_only=True):
            _note(connection)

    def cancel(self) -> None:
        """Cancel the query that the run waits for. Only that query gets an error.

        Close its connections afterwards, before another run uses them: on PostgreSQL the
        cancellation may arrive late.
        """
        for connection, owner in _opened():
            raw = connection.connection
            if owner.queries is not self or raw is None:
                continue
            with suppress(sqlite3.Error):  # It was closed a moment ago.
                if connection.vendor == "sqlite":
                    raw.interrupt()
                elif connection.vendor == "postgresql" and raw.info.transaction_status == ACTIVE:
                    # This needs another connection, and the coordinator must not wait for one.
                    threading.Thread(target=_cancel, args=[raw], name="cancel", daemon=True).start()


class Owner(NamedTuple):
    thread: threading.Thread
    queries: Queries | None


_current: ContextVar[Queries | None] = ContextVar("queries", default=None)
#: Not a WeakKeyDictionary: while one thread iterates over that, no other may open a connection.
_owners: dict[ref[BaseDatabaseWrapper], Owner] = {}


def _note(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    _owners[ref(connection, _forget)] = Owner(threading.current_thread(), _current.get())


def _forget(dead: ref[BaseDatabaseWrapper]) -> None:
    _owners.pop(dead, None)


def _opened() -> Iterator[tuple[BaseDatabaseWrapper, Owner]]:
    """Yield the connections that still exist, with the thread and run that use them."""
    for reference, owner in list(_owners.items()):
        if (connection := reference()) is not None:
            yield connection, owner


connection_created.connect(_note, dispatch_uid="tasks_app.worker.interruption")


def end_left_behind(running: Collection[Queries]) -> list[str]:
    """Roll back SQLite transactions of ended tasks' threads; return the names of these threads.

    Spares running tasks, which have limits of their own, and the main thread. If a task started a
    thread itself, that thread belongs to no run, so it is spared while any task runs. The
    connection is closed, so that its thread gets an error instead of believing that it committed.
    """
    names = []
    for connection, owner in _opened():
        raw = connection.connection
        spared = owner.queries in running if owner.queries else bool(running)
        ours = owner.thread in (threading.main_thread(), threading.current_thread())
        if connection.vendor != "sqlite" or raw is None or spared or ours:
            continue
        with suppress(sqlite3.Error):  # It was closed a moment ago.
            if raw.in_transaction:
                _close_in_use(raw)
                names.append(owner.thread.name)
    return names


def _close_in_use(raw: sqlite3.Connection) -> None:
    """Close a connection that another thread uses, so that SQLite rolls its transaction back.

    Waits up to CLOSE_SECONDS; the connection may close later. A rollback instead would be too
    early: the thread's next write would be committed immediately.
    """
    closing = threading.Thread(target=_interrupt_and_close, args=[raw], name="close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def _interrupt_and_close(raw: sqlite3.Connection) -> None:
    """Interrupt the query of a connection, close its cursors, and then the connection itself.

    SQLite keeps a closed connection, and its lock, while a cursor has a statement, even one that
    was interrupted. Only the garbage collector can list cursors. A cursor cannot be closed while
    its query runs, nor after its connection was closed.
    """
    pause = threading.Event()
    until = time.monotonic() + CLOSE_SECONDS
    with suppress(sqlite3.Error):  # Its thread has closed it.
        raw.interrupt()
    for cursor in gc.get_referrers(raw):
        while isinstance(cursor, sqlite3.Cursor) and time.monotonic() < until:
            try:
                cursor.close()
                break
            except sqlite3.ProgrammingError:
                pause.wait(0.01)
    raw.close()


def discard() -> None:
    """Close this thread's connections to PostgreSQL, instead of returning them to a pool.

    A pool would lend them to another thread, and a late cancellation could hit its query.
    """
    for connection in connections.all(initialized_only=True):
        if connection.vendor == "postgresql" and connection.connection is not None:
            connection.connection.close()


def _cancel(raw: Any) -> None:
    try:
        # psycopg 3.2 and later has the first, every psycopg the second.
        (getattr(raw, "cancel_safe", None) or raw.cancel)()
    except Exception as error:  # noqa: BLE001 - the server may be gone, or the connection closed
        logger.warning("A task's query could not be cancelled: %s", escaped(str(error).strip()))


# Asynchronous code. Frames of asyncio's and asgiref's public functions show what a thread does.


@contextmanager
def context_of_run() -> Iterator[Context]:
    """Make a context in which synchronous calls of asynchronous code have a separate thread.

    Otherwise asgiref shares one thread among all tasks, with its database connections and the
    transactions left open on them. The connections of that thread are closed at the end.
    """
    context = copy_context()
    sensitive = ThreadSensitiveContext()
    context.run(SyncToAsync.thread_sensitive_context.set, sensitive)
    try:
        yield context
    finally:
        executor = SyncToAsync.context_to_thread_executor.pop(sensitive, None)
        if executor is not None:
            executor.submit(discard).result()
            executor.submit(connections.close_all).result()
            executor.shutdown()


def _working_for(
    thread: int, frames: Mapping[int, FrameType]
) -> tuple[int, asyncio.Future[Any] | None]:
    """Find the thread that does the work of this one: itself, unless it waits for another.

    If the found thread runs an idle event loop, return the loop's task too, which can be cancelled.
    """
    for frame in _outwards(frames.get(thread)):
        if (root := _root(frame)) is not None:
            return thread, root
        if frame.f_code is AsyncToSync.__call__.__code__:
            other = _thread_of_loop(frame.f_locals.get("current_executor"), frames)
            if other is not None:
                return _working_for(other, frames)
        elif _package(frame) not in WAITING:
            break
    return thread, None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _root(frame: FrameType) -> asyncio.Future[Any] | None:
    """Return the task for which a frame runs an event loop."""
    name = ROOTS.get(frame.f_code)
    found = frame.f_locals.get(name) if name else None
    return found if isinstance(found, asyncio.Future) else None


def _thread_of_loop(executor: object, frames: Mapping[int, FrameType]) -> int | None:
    """Return the thread of the loop that async_to_sync started and waits for in this executor."""
    started = list(AsyncToSync.loop_thread_executors.items())
    loops = [loop for loop, waiting in started if waiting is executor]
    for thread, inner in frames.items():
        for frame in _outwards(inner):
            root = _root(frame)
            if root is not None and root.get_loop() in loops:
                return thread
    return None


# The thread.


class InterruptibleSection:
    """The time that a thread spends in the code of one task. Another thread may interrupt it once.

    The thread itself calls `enter` and `leave`. After `leave` has returned, no exception comes. An
    exception that was raised a moment before may surface in `leave`; then call `leave` again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The thread is in the task's code.
        self.entered = False
        self.thread: threading.Thread | None = None
        self.queries = Queries()
        #: An exception was raised in it.
        self.interrupted = False
        #: The worker does not wait for its end any more.
        self.abandoned = False

    def enter(self) -> None:
        with self._lock:
            self.thread = threading.current_thread()
            self.entered = True

    def leave(self) -> None:
        with self._lock:
            self.entered = False
        # An exception raised in the last moment surfaces here, because the interpreter checks for
        # it at each turn of a loop. To take it back by NULL is no alternative: CPython 3.11 would
        # then check at every step, and with a tracer would never stop checking.
        for _ in range(3):
            pass

    def interrupt(self, kind: type[TaskInterrupted]) -> bool:
        """Cancel the query and the asynchronous code that the thread waits for, or raise in it.

        An exception is raised as soon as the thread next runs Python code. Code that never returns
        from C, such as a socket without a timeout, is not reached. Return whether there is nothing
        left to do: the thread was interrupted, or has left. Return False if the thread is in code
        that must not be interrupted; then try again.
        """
        with self._lock:
            if not self.entered or self.interrupted:
                return True
            frames = sys._current_frames()
            thread, task = _working_for(_ident(self.thread), frames)
            if task is None and _is_shielded(frames.get(thread)):
                return False
            self.interrupted = True
            if task is None:
                _raise_in(thread, kind)
            else:
                with suppress(RuntimeError):  # The loop was closed a moment ago.
                    task.get_loop().call_soon_threadsafe(task.cancel)
            self.queries.cancel()
            return True

    def abandon(self) -> bool:
        """Stop waiting for its end; return False if it has ended already."""
        with self._lock:
            self.abandoned = self.entered
            return self.abandoned


def _is_shielded(inner: FrameType | None) -> bool:
    # Between this check and the exception, the thread can only continue if the interpreter pauses
    # this one at this point, which it does once in some milliseconds. So the exception is raised
    # where the thread was seen.
    waits = inner is not None and _waits(inner)
    for frame in _outwards(inner):
        name = _package(frame)
        if name not in SHIELDED or (name in ("queue", "threading") and waits):
            continue
        # The worker's own frames are below those of the task. They only call it.
        if name == "tasks_app" and frame is not inner:
            continue
        return name != "threading" or frame is inner
    return False


def _waits(frame: FrameType) -> bool:
    """Return whether a thread waits to be notified, which holds no lock.

    The `finally` of Condition.wait is made for an exception there. It begins after the assignment
    that is looked for here.
    """
    return frame.f_code is threading.Condition.wait.__code__ and "gotit" in frame.f_locals


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """See PyThreadState_SetAsyncExc in Python's C API."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _ident(thread: threading.Thread | None) -> int:
    return (thread and thread.ident) or 0
