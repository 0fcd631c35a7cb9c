"""Helpers for tests of listening."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections, transaction

from tasks_app.notify import Changes, announce
from tests.harness import eventually

#: Longer than any event takes that these tests expect immediately.
LONG = 20.0
#: Long enough to see that nothing happens.
SHORT = 0.1


def settled(changes: Changes) -> Changes:
    """Wait until it listens, and consume the change that it reports for that reason."""
    eventually(lambda: changes.wait(SHORT) and changes._line, within=10, what="it listens")  # type: ignore[attr-defined]
    changes.pause(0)  # Opening the line woke it.
    while changes.wait(0):
        pass
    return changes


def commit(times: int = 1) -> None:
    """Announce a change inside a transaction."""
    with transaction.atomic():
        for _ in range(times):
            announce("default")


@contextmanager
def meanwhile(call: Callable[[], Any]) -> Iterator[None]:
    """Run a call in another thread, with its own connections."""

    def run() -> None:
        try:
            call()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def seconds(call: Callable[[], Any]) -> float:
    before = time.monotonic()
    call()
    return time.monotonic() - before


def logged_outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what an operator sees in the log: the beginnings and ends of outages."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "tasks_app.notify" and record.levelno >= logging.INFO
    ]
