"""The pauses between tries, while a database does not answer."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError

from tasks_app.worker.trouble import PAUSE, PAUSE_MAX, Trouble, explained


def test_without_trouble_nothing_waits() -> None:
    trouble = Trouble()
    assert (trouble.pause, trouble.retry_at) == (0.0, 0.0)


def test_pauses_double_up_to_the_most(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 60
    trouble = Trouble()
    pauses = [trouble.strike(100.0) for _ in range(10)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]
    assert (PAUSE, PAUSE_MAX) == (0.1, 5.0)


def test_there_are_two_tries_in_a_heartbeat(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 1
    trouble = Trouble()
    assert [trouble.strike(100.0) for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_try_that_waited_for_a_lock_has_waited_already(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 10
    trouble = Trouble()
    assert [trouble.strike(100.0, begun=99.0) for _ in range(5)] == [
        *[0.1] * 4,
        pytest.approx(0.6),
    ]


def test_what_sqlite_means_is_said() -> None:
    said = explained(OperationalError("database is locked\n"))
    assert said.startswith("database is locked (a transaction holds SQLite's one write lock")
    assert explained(OperationalError("the server went away")) == "the server went away"
    # It may quote what a task said, and is part of one line.
    assert explained(OperationalError("no:\r\nx\x1b[2J")) == r"no:\r\nx\x1b[2J"


def test_the_next_try_is_a_pause_after_the_last() -> None:
    trouble = Trouble()
    assert trouble.strike(100.0) == trouble.pause
    assert trouble.retry_at == 100.0 + trouble.pause
    trouble.strike(200.0)
    assert trouble.retry_at == 200.2
