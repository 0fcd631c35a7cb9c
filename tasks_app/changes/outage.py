"""Leaving alone for a while what does not answer."""

from __future__ import annotations

import threading
import time

from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped

logger = SafeLogger("tasks_app.changes")

#: Between two tries: doubles with each that fails.
PAUSE_SECONDS, PAUSE_MAX_SECONDS = 0.1, 5.0


class Outage:
    """When to try again, and what to tell the log: once when it begins, once when it is over.

    Any thread may call.
    """

    def __init__(self, service: str, meanwhile: str) -> None:
        self._service = service
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._lasts = False
        self._pause = 0.0
        #: By the monotonic clock.
        self._retry_at = self._over_at = 0.0

    def may_try(self) -> bool:
        """Return whether the time has come. While it lasts, that is one caller's in each pause."""
        with self._lock:
            moment = time.monotonic()
            if moment < self._retry_at:
                return False
            if self._lasts:
                self._retry_at = moment + self._pause
            return True

    def strike(self, error: BaseException) -> None:
        """Take note that it does not answer."""
        with self._lock:
            moment = time.monotonic()
            # What fails again just after it answered is tried no more often for that.
            if not self._lasts and moment - self._over_at > PAUSE_MAX_SECONDS:
                self._pause = 0.0
            self._pause = min(max(self._pause * 2, PAUSE_SECONDS), PAUSE_MAX_SECONDS)
            self._retry_at = moment + self._pause
            if not self._lasts:
                self._lasts = True
                logger.warning(
                    "%s does not answer (%s); %s",
                    self._service,
                    escaped(str(error).strip()) or type(error).__name__,
                    self._meanwhile,
                )

    def end(self) -> None:
        """Take note that it answers."""
        if self._lasts:
            with self._lock:
                self._lasts = False
                self._over_at = time.monotonic()
            logger.info("%s answers again", self._service)
