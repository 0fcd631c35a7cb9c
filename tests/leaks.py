"""A pytest plugin: no test leaves a thread, connection, listener, watch or process behind.

What lives when a test begins may go on: fixtures of wider scope, xdist's threads, the PostgreSQL
server of the run. What the test itself started must be gone once its fixtures are torn down. It is
given some seconds, for a thread ends a moment after the call that ends it.
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

#: What the process holds: what tells each thing from all others, and how to say what it is.
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
    """Wait until nothing is held that was not held before; say what is held all the same."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while new := {key: say for key, say in look().items() if key not in before}:
        if time.monotonic() > deadline:
            return [say() for say in new.values()]
        _bury(before)
        # The threads of an executor end when it is collected, which asgiref leaves to chance.
        gc.collect()
        pause.wait(0.02)
    return []


def _threads() -> Holdings:
    allowed = {threading.main_thread(), *_for_the_process()}
    return {
        thread: partial(_say_thread, thread)
        for thread in threading.enumerate()
        if thread not in allowed
    }


def _for_the_process() -> set[threading.Thread]:
    """Threads that stay as long as the process does, by design of whoever starts them."""
    return {
        # asgiref's one thread for the synchronous code of asynchronous callers, Channels' too.
        *SyncToAsync.single_thread_executor._threads,
        # tqdm's, which wakes bars that stand still.
        *(thread for thread in threading.enumerate() if thread.name == "tqdm_monitor"),
    }


def _say_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else "it just ended"
    return f"thread {thread.name!r}{' (daemon)' * thread.daemon}:\n{stack}"


#: What threads other than the main one opened since the test began. The references keep what a
#: thread took with it from being collected, which would close it by chance.
_opened: list[tuple[BaseDatabaseWrapper, str]] = []


def _note(connection: BaseDatabaseWrapper, **_kwargs: object) -> None:
    thread = threading.current_thread()
    if thread is not threading.main_thread() and thread not in _for_the_process():
        _opened.append((connection, thread.name))


def _connections() -> Holdings:
    return {
        ("connection", id(opened)): partial(
            "connection {!r}, which thread {!r} opened and did not close".format,
            opened.alias,
            thread,
        )
        for opened, thread in _opened
        # One that was closed within a transaction keeps the closed connection to say so.
        if opened.connection is not None and not opened.closed_in_transaction
    }


def _sessions() -> Holdings:
    """What PostgreSQL knows of: also what is no connection of Django's, or another process's."""
    main = connection.connection if connection.vendor == "postgresql" else None
    healthy = (TransactionStatus.IDLE, TransactionStatus.INTRANS)
    if main is None or main.info.transaction_status not in healthy:
        return {}
    with suppress(psycopg.OperationalError):  # A test may have ended the server.
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
    """Descriptors of inotify: each belongs to a `changes.watch`."""
    found: Holdings = {}
    with suppress(FileNotFoundError):  # No Linux.
        for number in os.listdir("/proc/self/fd"):
            # Closed meanwhile, as the listing's own is.
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/self/fd/{number}") == "anon_inode:inotify":
                    found["watch", number] = partial("open inotify descriptor {}".format, number)
    return found


def _children() -> Holdings:
    """Processes started here, and those whose parents died and which came to us. Linux only."""
    found: Holdings = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in children.read_text().split():
                found["process", int(pid)] = partial(_say_process, pid)
    return found


def _say_process(pid: str) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return f"process {pid}: {command or 'ended, and nobody waited for it'}"
    return f"process {pid}: it just ended"


def _bury(before: Holdings) -> None:
    """Collect orphans that came to us and died: nobody else will."""
    for key in _children().keys() - before.keys():
        _, pid = key  # type: ignore[misc]
        with suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                os.waitpid(pid, os.WNOHANG)


_BEFORE = pytest.StashKey[Holdings]()


def pytest_configure() -> None:
    connection_created.connect(_note, dispatch_uid="tests.leaks")
    if sys.platform == "linux":
        # So that a process whose parent was killed is not lost from sight.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> None:
    """Look after the fixtures that outlive the test were set up, and before its own."""
    _opened.clear()
    request.node.stash[_BEFORE] = look()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    before = item.stash.get(_BEFORE, None)
    if before is not None and (leaks := left(before, PATIENCE)):
        pytest.fail("The test left behind:\n" + "\n".join(leaks), pytrace=False)
