"""A pytest plugin: no test leaves a thread, connection, listener, watch or process behind.

Objects that exist when a test begins may stay: fixtures of wider scope, xdist's threads, the
PostgreSQL server of the run. Everything that the test itself started must be gone after its
fixtures are torn down. It gets some seconds for that, because a thread ends a moment after the
call that stops it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from asgiref.sync import SyncToAsync
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django_eventstream.views import Listener, get_listener_manager
from psycopg.pq import TransactionStatus

PATIENCE = 15.0
_PR_SET_CHILD_SUBREAPER = 36

#: Resources that the process holds. Each key identifies one thing; its value describes it.
Holdings = dict[object, Callable[[], str]]


def look() -> Holdings:
    return {
        **_threads(),
        **_connections(),
        **_sessions(),
        **_listeners(),
        **_watches(),
        **_children(),
    }


def left(before: Holdings, within: float = PATIENCE) -> list[str]:
    """Wait until nothing new is held. Return descriptions of what is still held."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while new := {key: describe for key, describe in look().items() if key not in before}:
        if time.monotonic() > deadline:
            return [describe() for describe in new.values()]
        _reap(before)
        # An executor's threads end when it is garbage collected. asgiref leaves that to chance.
        gc.collect()
        pause.wait(0.02)
    return []


def _threads() -> Holdings:
    allowed = {threading.main_thread(), *_process_wide_threads()}
    return {
        thread: partial(_describe_thread, thread)
        for thread in threading.enumerate()
        if thread not in allowed
    }


def _process_wide_threads() -> set[threading.Thread]:
    """Return the threads that by design live as long as the process."""
    return {
        # asgiref's only thread for sync code called from async code. Channels uses it too.
        *SyncToAsync.single_thread_executor._threads,
        # tqdm's thread, which refreshes bars that do not move.
        *(thread for thread in threading.enumerate() if thread.name == "tqdm_monitor"),
    }


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else "it just ended"
    return f"thread {thread.name!r}{' (daemon)' * thread.daemon}:\n{stack}"


#: Connections that other threads than the main one opened since the test began. The references keep
#: a dead thread's connections from being garbage collected, which would close them by chance.
_opened: list[tuple[BaseDatabaseWrapper, str]] = []


def _record_connection(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    thread = threading.current_thread()
    if thread is not threading.main_thread() and thread not in _process_wide_threads():
        _opened.append((connection, thread.name))


def _connections() -> Holdings:
    return {
        ("connection", id(opened)): partial(
            "connection {!r}, which thread {!r} opened and did not close".format,
            opened.alias,
            thread,
        )
        for opened, thread in _opened
        # One that was closed inside a transaction keeps the closed connection, to report that.
        if opened.connection is not None and not opened.closed_in_transaction
    }


def _sessions() -> Holdings:
    """Return PostgreSQL's sessions, including those not opened through Django or by other
    processes.
    """
    main = connection.connection if connection.vendor == "postgresql" else None
    healthy = (TransactionStatus.IDLE, TransactionStatus.INTRANS)
    if main is None or main.info.transaction_status not in healthy:
        return {}
    with suppress(psycopg.OperationalError):  # A test may have stopped the server.
        found = main.execute(
            "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return {
            ("session", pid): partial("session {} of PostgreSQL, last query: {}".format, pid, query)
            for pid, query in found.fetchall()
        }
    return {}


def _listeners() -> Holdings:
    manager = get_listener_manager()
    if not manager.listeners_by_channel:
        return {}
    with manager.lock:
        listening = set[Listener]().union(*manager.listeners_by_channel.values())
    return {
        listener: partial("listener of the channels {}".format, sorted(listener.channels))
        for listener in listening
    }


def _watches() -> Holdings:
    """Return the open inotify descriptors: each belongs to a `changes.watch`."""
    watches: Holdings = {}
    with suppress(FileNotFoundError):  # Not Linux.
        for number in os.listdir("/proc/self/fd"):
            # Already closed, as the descriptor of the listing itself is.
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/self/fd/{number}") == "anon_inode:inotify":
                    watches["watch", number] = partial("open inotify descriptor {}".format, number)
    return watches


def _children() -> Holdings:
    """Return the child processes, including orphans that this process adopted. Linux only."""
    processes: Holdings = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in children.read_text().split():
                processes["process", int(pid)] = partial(_describe_process, pid)
    return processes


def _describe_process(pid: str) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return f"process {pid}: {command or 'ended, and nobody waited for it'}"
    return f"process {pid}: it just ended"


def _reap(before: Holdings) -> None:
    """Reap dead orphans that this process adopted. No other process will."""
    for key in _children().keys() - before.keys():
        _, pid = key  # type: ignore[misc]
        with suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                os.waitpid(pid, os.WNOHANG)


_BEFORE = pytest.StashKey[Holdings]()


def pytest_configure() -> None:
    connection_created.connect(_record_connection, dispatch_uid="tests.leaks")
    if sys.platform == "linux":
        # So that a process whose parent was killed becomes our child.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> None:
    """Look after fixtures of wider scope are set up and before the test's own."""
    _opened.clear()
    request.node.stash[_BEFORE] = look()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    before = item.stash.get(_BEFORE, None)
    if before is not None and (leaks := left(before, PATIENCE)):
        pytest.fail("The test left behind:\n" + "\n".join(leaks), pytrace=False)
