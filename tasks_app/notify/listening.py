"""Change signals that arrive as notices over a connection to a server."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from tasks_app.conf import task_settings
from tasks_app.notify.outage import Outage
from tasks_app.notify.timer import Changes


class Line(Protocol):
    """A connection on which a server sends a notice of each commit."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable on a notice, or when the connection is lost."""
        ...

    def take(self) -> bool:
        """Take the notices that arrived, without waiting. Return whether there was one.

        Raises an error of the client library if the connection is lost.
        """
        ...

    def close(self) -> None: ...


class Listening(Changes):
    """Waits for notices from a server, and also looks now and then.

    Without a line, it looks on a timer and tries to open one. A line is opened in a separate
    thread, because connecting may block for long. Once it is open, there may be something new:
    notices sent before that were not received.
    """

    #: The server's name in the log.
    service: str
    #: With a line, how often to look in case a notice was lost.
    safety_seconds: float

    def __init__(self) -> None:
        super().__init__()
        self._line: Line | None = None
        self._outage = Outage(self.service, "looking for changes on a timer until it does")
        #: Guards what both this thread and the opening thread write.
        self._lock = threading.Lock()
        self._closed = self._opening = False
        self._opened: Line | Exception | None = None
        self._open_soon()

    def open(self) -> Line:
        """Open a line. Called in a thread that may block."""
        raise NotImplementedError

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._maybe():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            lines = [self._line] if self._line else []
            if self._sleep(min(remaining, self._due - time.monotonic()), *lines):
                return self._maybe()
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        for line in (self._line, opened):
            if line and not isinstance(line, Exception):
                line.close()
        self._line = None
        super().close()

    def _maybe(self) -> bool:
        """Return whether there may be something new: after a notice, a lost line, or some time."""
        noticed = self._listen() if self._line else self._has_line_now()
        if noticed or time.monotonic() >= self._due:
            seconds = self.safety_seconds if self._line else task_settings().poll_interval_seconds
            self._due = time.monotonic() + seconds
            return True
        return False

    def _listen(self) -> bool:
        assert self._line  # noqa: S101 - only called with a line
        try:
            return self._line.take()
        except Exception as error:  # noqa: BLE001 - any library's error; another line is opened
            self._line.close()
            self._line = None
            self._outage.strike(error)
            return True

    def _has_line_now(self) -> bool:
        with self._lock:
            opened, self._opened = self._opened, None
        if isinstance(opened, Exception):
            self._outage.strike(opened)
        elif opened:
            self._outage.end()
            self._line = opened
        elif not self._opening and self._outage.may_try():
            self._open_soon()
        return self._line is not None

    def _open_soon(self) -> None:
        self._opening = True
        threading.Thread(target=self._try_to_open, name="tasks-listen", daemon=True).start()

    def _try_to_open(self) -> None:
        opened: Line | Exception
        try:
            opened = self.open()
        except Exception as error:  # noqa: BLE001 - any library's error; the timer takes over
            opened = error
        with self._lock:
            self._opening = False
            if not self._closed:
                self._opened = opened
                self.wake()
            elif not isinstance(opened, Exception):
                opened.close()
