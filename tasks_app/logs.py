"""Loggers that survive the handlers of the site."""

from __future__ import annotations

import logging

#: Reports errors of handlers as Python's own handlers do: on stderr, unless
#: logging.raiseExceptions is off.
_fallback = logging.Handler()


class SafeLogger(logging.Logger):
    """A logger that passes records to the logger of this name and catches errors of its handlers.

    Python's own handlers never raise, but a handler of the site may. Its error would end the thread
    that logs, such as the worker's coordinator or the relay.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._logger = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - Python's name
        return self._logger.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        try:
            self._logger.handle(record)
        except Exception:  # noqa: BLE001 - a handler or a filter may raise anything
            _fallback.handleError(record)
