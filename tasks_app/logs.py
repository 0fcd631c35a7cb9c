"""Loggers that survive the handlers of the site."""

from __future__ import annotations

import logging

#: Tells of an error in a handler as Python's own handlers do: on stderr, and to nobody if
#: logging.raiseExceptions is off.
_fallback = logging.Handler()


class SafeLogger(logging.Logger):
    """Hands records to the logger of this name, and keeps the errors of its handlers to itself.

    Python's own handlers never raise. One of the site's may, and would then end the worker, the
    relay, or whatever else just logs.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._logger = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - Python's name
        return self._logger.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        try:
            self._logger.handle(record)
        except Exception:  # noqa: BLE001 - whatever a handler or a filter raises
            _fallback.handleError(record)
