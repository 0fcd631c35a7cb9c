"""The database connections that threads of a worker have open, and what is done about them."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import ref

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped

logger = SafeLogger("tasks_app.worker")

#: libpq's PQTRANS_ACTIVE: a command is in progress.
ACTIVE = 1
#: How long the coordinator waits for a connection to close that another thread uses.
CLOSE_SECONDS = 1.0


class Queries:
    """What one run asks databases, from its own thread or from one that asyncio gave it."""

    def begin(self) -> None:
        """Take over the connections that this thread has kept. Belongs into the run's context."""
        _current.set(self)
        for connection in connections.all(initialized_only=True):
            _note(connection)

    def cancel(self) -> None:
        """Cancel the query that the run waits for. It gets an error; others notice nothing.

        Its connections must be closed afterwards, before another run uses them: on PostgreSQL the
        cancellation may arrive late.
        """
        for connection, owner in _opened():
            raw = connection.connection
            if owner.queries is not self or raw is None:
                continue
            with suppress(sqlite3.Error):  # Closed just now.
                if connection.vendor == "sqlite":
                    raw.interrupt()
                elif connection.vendor == "postgresql" and raw.info.transaction_status == ACTIVE:
                    # It takes a connection of its own, which the coordinator must not wait for.
                    threading.Thread(target=_cancel, args=[raw], name="cancel", daemon=True).start()


class Owner(NamedTuple):
    thread: threading.Thread
    queries: Queries | None


_current: ContextVar[Queries | None] = ContextVar("queries", default=None)
#: Not a WeakKeyDictionary: while one thread goes through that, no other may open a connection.
_owners: dict[ref[BaseDatabaseWrapper], Owner] = {}


def _note(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    _owners[ref(connection, _forget)] = Owner(threading.current_thread(), _current.get())


def _forget(dead: ref[BaseDatabaseWrapper]) -> None:
    _owners.pop(dead, None)


def _opened() -> Iterator[tuple[BaseDatabaseWrapper, Owner]]:
    """Yield the connections that are alive, with who opened them or uses them now."""
    for reference, owner in list(_owners.items()):
        if (connection := reference()) is not None:
            yield connection, owner


connection_created.connect(_note, dispatch_uid="tasks_app.worker.queries")


def end_left_behind(going_on: Collection[Queries]) -> list[str]:
    """Roll back SQLite transactions that threads of ended tasks hold; return these threads' names.

    Spares runs that go on, whose own limits end them, and the main thread. A thread that a task
    started by itself belongs to no run, so it is spared for as long as any run goes on. The
    connection is closed, so that its thread gets an error instead of believing that it committed.
    """
    names = []
    for connection, owner in _opened():
        raw = connection.connection
        spared = owner.queries in going_on if owner.queries else bool(going_on)
        ours = owner.thread in (threading.main_thread(), threading.current_thread())
        if connection.vendor != "sqlite" or raw is None or spared or ours:
            continue
        with suppress(sqlite3.Error):  # Closed just now.
            if raw.in_transaction:
                _give_up(raw)
                names.append(owner.thread.name)
    return names


def _give_up(raw: sqlite3.Connection) -> None:
    """Close a connection that another thread uses, so that SQLite rolls its transaction back.

    Waits up to CLOSE_SECONDS; the connection may close later. A rollback would come too early:
    what the thread writes next would be committed immediately.
    """
    closing = threading.Thread(target=_close, args=[raw], name="close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def _close(raw: sqlite3.Connection) -> None:
    """Interrupt the query of a connection, close its cursors, and then the connection itself.

    SQLite keeps a closed connection, and its lock, while a cursor has a statement, even one that
    was interrupted. Only the garbage collector can list cursors. One whose query still runs cannot
    be closed yet, and none can be closed once the connection is.
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
    """Close this thread's connections to PostgreSQL, and not only hand them back to a pool.

    A pool would lend them to another thread, whose query a late cancellation could hit.
    """
    for connection in connections.all(initialized_only=True):
        if connection.vendor == "postgresql" and connection.connection is not None:
            connection.connection.close()


def _cancel(raw: Any) -> None:
    try:
        # psycopg 3.2 and later, else any psycopg.
        (getattr(raw, "cancel_safe", None) or raw.cancel)()
    except Exception as error:  # noqa: BLE001 - the server may be gone, or the connection closed
        logger.warning("A task's query could not be cancelled: %s", escaped(str(error).strip()))
