"""Has anybody committed since I last looked?

The worker asks so that it starts new tasks at once, the relay so that it sends what is new. Where
the database can tell, an idle process costs nothing; elsewhere it looks on a timer.
"""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from django.db import connections

from tasks_app.conf import task_settings

if sys.platform == "linux":
    from inotify_simple import INotify, flags

#: With a kernel that reports writes, the look that catches a report that never came.
SAFETY_SECONDS = 1.0
#: Without, how often to look: 3 microseconds each, 2 % of a core for this many.
LOOK_SECONDS = 0.01
#: The report of a write may come a moment before its commit can be read.
SETTLE_SECONDS = (0.0002, 0.0005, 0.001, 0.002)


def watch(using: str) -> Changes:
    """Return what best tells of commits to this database. Close it when done."""
    connection = connections[using]
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite" and os.path.isfile(name):
        return SQLiteChanges(os.fspath(name))
    return Changes()


def announce(using: str) -> None:
    """Have those who watch learn that the running transaction brings something, if it commits."""


class Changes:
    """Waits for commits on a timer; subclasses know better.

    `wait` belongs to one thread; `wake` may be called from any, and from a signal handler.
    """

    def __init__(self) -> None:
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        #: Saves a system call for each of many `wake` in a row.
        self._awake = False
        self._due = 0.0

    def wait(self, timeout: float) -> bool:
        """Sleep until somebody may have committed, `wake` is called, or seconds have passed.

        Returns whether there may be something new in the database. A commit between two calls
        is never missed: it ends the second at once.
        """
        self._sleep(min(timeout, self._due - time.monotonic()))
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + task_settings().poll_interval_seconds
        return True

    def wake(self) -> None:
        """End the present or the next `wait`."""
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # Closed just now: nobody waits any more.
                self._waking.send(b"!")

    def pause(self, seconds: float) -> None:
        """Sleep for so long, whatever is committed; `wake` ends it."""
        self._sleep(seconds)

    def close(self) -> None:
        self._awake = True  # Whoever wakes it from now on finds nothing to do.
        self._waking.close()
        self._woken.close()

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _sleep(self, timeout: float, *others: Any) -> bool:
        """Sleep until woken, until one of the others is readable, or until seconds have passed.

        Returns whether `wake` was called.
        """
        ready, _, _ = select.select([self._woken, *others], [], [], max(timeout, 0))
        if self._woken not in ready:
            return False
        # In this order: the other way round, the byte of a call in between would be read with the
        # first, and its flag would keep all later calls from sending one.
        self._woken.recv(4096)
        self._awake = False
        return True


class SQLiteChanges(Changes):
    """Compares `PRAGMA data_version`, when the kernel reports a write or on a short timer.

    The pragma's value changes when another connection commits, so it is read on a connection of
    its own. The report comes from inotify on the write-ahead log, a file that SQLite keeps for as
    long as a connection is open.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._version = self._look()
        self._inotify = self._watch_log()

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._changed():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if self._inotify is None:
                if self._sleep(min(remaining, LOOK_SECONDS)):
                    return self._changed()
            elif self._sleep(min(remaining, SAFETY_SECONDS), self._inotify):
                return self._changed()
            elif self._reported():
                for pause in SETTLE_SECONDS:
                    if self._changed():
                        return True
                    if self._sleep(pause):
                        return self._changed()
        return True

    def close(self) -> None:
        super().close()
        self._connection.close()
        if self._inotify is not None:
            self._inotify.close()

    def _look(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _changed(self) -> bool:
        try:
            version = self._look()
        except sqlite3.OperationalError:
            # Locked for recovery, or out of descriptors: whoever asks the database learns which.
            return True
        changed = version != self._version
        self._version = version
        return changed

    def _watch_log(self) -> Any:
        log = f"{self._path}-wal"
        if sys.platform != "linux" or not os.path.exists(log):
            return None
        # Where the host's limit of instances or watches is reached, the timer serves.
        with suppress(OSError):
            inotify = INotify(nonblocking=True)
            try:
                inotify.add_watch(log, flags.MODIFY)
            except OSError:
                inotify.close()
                raise
            return inotify
        return None

    def _reported(self) -> bool:
        """Take the kernel's reports; return whether there were any."""
        return bool(self._inotify.read(timeout=0))
