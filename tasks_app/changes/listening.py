"""Waiting for a server's notices."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from tasks_app.changes.outage import Outage
from tasks_app.changes.timer import Changes
from tasks_app.conf import task_settings


class Line(Protocol):
    """A connection on which a server tells of commits."""

    def fileno(self) -> int:
        """Return what becomes readable when a notice comes, or when the line is cut."""
        ...

    def take(self) -> bool:
        """Take in what came, without waiting. Return whether there was a notice.

        Raises whatever its library does if the line is cut.
        """
        ...

    def close(self) -> None: ...


class Listening(Changes):
    """Sleeps until a notice comes over a line to a server, and looks now and then all the same.

    While there is no line it looks on the timer, and tries for another. A line is opened in a
    thread of its own, since that may block for as long as a network can; and when it stands, there
    may be something new: nobody heard what was told meanwhile.
    """

    #: How the log names the server.
    service: str
    #: With a line, the look that catches a notice that never came.
    safety_seconds: float

    def __init__(self) -> None:
        super().__init__()
        self._line: Line | None = None
        self._outage = Outage(self.service, "looking for changes on a timer meanwhile")
        #: Guards what the opening thread and this one both write.
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
        """Return whether there may be something: told, missed, or due for a look."""
        told = self._listen() if self._line else self._has_line_now()
        if told or time.monotonic() >= self._due:
            seconds = self.safety_seconds if self._line else task_settings().poll_interval_seconds
            self._due = time.monotonic() + seconds
            return True
        return False

    def _listen(self) -> bool:
        assert self._line  # noqa: S101 - asked of a line only
        try:
            return self._line.take()
        except Exception as error:  # noqa: BLE001 - of any library; another line is opened
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
        except Exception as error:  # noqa: BLE001 - of any library; the timer serves meanwhile
            opened = error
        with self._lock:
            self._opening = False
            if not self._closed:
                self._opened = opened
                self.wake()
            elif not isinstance(opened, Exception):
                opened.close()
