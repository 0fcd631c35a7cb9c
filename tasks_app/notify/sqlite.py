"""Change signals of SQLite: a counter that changes with every commit, read after each write."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import suppress
from typing import Any

from tasks_app.notify.timer import Changes

if sys.platform == "linux":
    from inotify_simple import INotify, flags

#: The interval between looks, in case the kernel's report of a write is lost.
SAFETY_SECONDS = 1.0
#: The interval if the kernel reports nothing. A look takes 3 microseconds; at this interval, they
#: use 2 % of a core.
LOOK_SECONDS = 0.01
#: A look waits this long if another process locks out even readers.
LOCKED_SECONDS = 0.5
#: Pauses after a report: it may come a moment before the commit is visible.
SETTLE_SECONDS = (0.0002, 0.0005, 0.001, 0.002)


class SQLiteChanges(Changes):
    """Compares `PRAGMA data_version` after the kernel reports a write, or on a short timer.

    The value changes when another connection commits, so it is read on a separate connection. The
    report comes from inotify on the write-ahead log. SQLite keeps that file as long as a connection
    is open.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._connection = sqlite3.connect(
            path, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._version: int | None = None
        self._changed()
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
            # Locked for recovery, or no descriptors left. The caller's own query will show which.
            return True
        changed = version != self._version
        self._version = version
        return changed

    def _watch_log(self) -> Any:
        log = f"{self._path}-wal"
        if sys.platform != "linux" or not os.path.exists(log):
            return None
        # If the host's limit of inotify instances or watches is reached, the timer is used.
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
        """Take the kernel's reports. Return whether there were any."""
        return bool(self._inotify.read(timeout=0))
