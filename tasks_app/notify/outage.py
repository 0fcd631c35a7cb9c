"""Pauses between tries while a server does not answer."""

from __future__ import annotations

import threading
import time

from tasks_app.logs import SafeLogger
from tasks_app.schemas import escaped

logger = SafeLogger("tasks_app.notify")

#: The pause between two tries. It doubles with each failure.
PAUSE_SECONDS, PAUSE_MAX_SECONDS = 0.1, 5.0


class Outage:
    """Decides when to try a server again, and logs the beginning and the end of an outage.

    Any thread may call its methods.
    """

    def __init__(self, service: str, meanwhile: str) -> None:
        self._service = service
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._lasts = False
        self._pause = 0.0
        #: Times of the monotonic clock.
        self._retry_at = self._over_at = 0.0

    def may_try(self) -> bool:
        """Return whether to try now. During an outage, one caller per pause gets True."""
        with self._lock:
            now = time.monotonic()
            if now < self._retry_at:
                return False
            if self._lasts:
                self._retry_at = now + self._pause
            return True

    def strike(self, error: BaseException) -> None:
        """Note that the server does not answer."""
        with self._lock:
            now = time.monotonic()
            # Keep the long pause if the last outage ended only a short time ago.
            if not self._lasts and now - self._over_at > PAUSE_MAX_SECONDS:
                self._pause = 0.0
            self._pause = min(max(self._pause * 2, PAUSE_SECONDS), PAUSE_MAX_SECONDS)
            self._retry_at = now + self._pause
            if not self._lasts:
                self._lasts = True
                logger.warning(
                    "%s does not answer (%s); %s",
                    self._service,
                    escaped(str(error).strip()) or type(error).__name__,
                    self._meanwhile,
                )

    def end(self) -> None:
        """Note that the server answers."""
        if self._lasts:
            with self._lock:
                self._lasts = False
                self._over_at = time.monotonic()
            logger.info("%s answers again", self._service)
