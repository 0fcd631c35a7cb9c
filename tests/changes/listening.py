"""What tests of listening ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections, transaction

from tasks_app.changes import Changes, announce
from tests.harness import eventually

#: Longer than anything takes that these tests expect to come at once.
LONG = 20.0
#: Long enough for what must not happen to happen.
SHORT = 0.1


def settled(changes: Changes) -> Changes:
    """Wait until it listens, and has said that there may be something for that reason."""
    eventually(lambda: changes.wait(SHORT) and changes._line, within=10, what="it listens")  # type: ignore[attr-defined]
    changes.pause(0)  # What opened the line woke it.
    while changes.wait(0):
        pass
    return changes


def commit(times: int = 1) -> None:
    """Announce within a transaction."""
    with transaction.atomic():
        for _ in range(times):
            announce("default")


@contextmanager
def meanwhile(call: Callable[[], Any]) -> Iterator[None]:
    """Do something in another thread, with connections of its own."""

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


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator reads: the beginnings and ends of outages."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "tasks_app.changes" and record.levelno >= logging.INFO
    ]
