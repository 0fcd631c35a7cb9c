"""The timer as a change signal for any database, and the base of all change signals."""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from tasks_app.conf import task_settings


class Changes:
    """Waits for commits on a timer. Subclasses use better signals.

    Call `wait` from one thread only. `wake` may be called from any thread or a signal handler.
    """

    def __init__(self) -> None:
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        #: Saves a system call for repeated calls of `wake`.
        self._awake = False
        self._due = 0.0

    def wait(self, timeout: float) -> bool:
        """Sleep until there may be a commit, `wake` is called, or the timeout is over.

        Return whether there may be something new in the database. A commit between two calls is
        never missed: the second call returns immediately.
        """
        self._sleep(min(timeout, self._due - time.monotonic()))
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + task_settings().poll_interval_seconds
        return True

    def wake(self) -> None:
        """End the current or the next `wait`."""
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # It was just closed, so no thread waits any more.
                self._waking.send(b"!")

    def pause(self, seconds: float) -> None:
        """Sleep for this long, even if something is committed. `wake` ends it."""
        self._sleep(seconds)

    def close(self) -> None:
        self._awake = True  # Later calls of `wake` do nothing.
        self._waking.close()
        self._woken.close()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _sleep(self, timeout: float, *others: Any) -> bool:
        """Sleep until woken, until one of the others is readable, or until the timeout is over.

        Return whether `wake` was called.
        """
        if self._woken not in _readable([self._woken, *others], max(timeout, 0)):
            return False
        # Clear the bytes before the flag. In the other order, a call in between would set the flag
        # and lose its byte, and then no later call would send one.
        self._woken.recv(4096)
        self._awake = False
        return True


def _readable(sources: Sequence[Any], timeout: float) -> Collection[Any]:
    try:
        return select.select(sources, [], [], timeout)[0]
    except ValueError:
        # A descriptor is above 1023, in a process with that many open streams. Selectors take
        # those, but only count in milliseconds, which is too coarse to use always.
        with selectors.DefaultSelector() as selector:
            for source in sources:
                selector.register(source, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select(timeout)]
