"""The timer, which serves every database, and what all ways to wait have in common."""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from tasks_app.conf import task_settings


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
        if self._woken not in _readable([self._woken, *others], max(timeout, 0)):
            return False
        # In this order: the other way round, the byte of a call in between would be read with the
        # first, and its flag would keep all later calls from sending one.
        self._woken.recv(4096)
        self._awake = False
        return True


def _readable(sources: Sequence[Any], timeout: float) -> Collection[Any]:
    try:
        return select.select(sources, [], [], timeout)[0]
    except ValueError:
        # A descriptor above 1023, in a process with that many streams open. What takes those
        # counts in milliseconds, which is too coarse where it need not be.
        with selectors.DefaultSelector() as selector:
            for source in sources:
                selector.register(source, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select(timeout)]
