"""The pauses between attempts while the database does not respond."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError

from tasks_app.worker.trouble import PAUSE, PAUSE_MAX, Trouble, explained


def test_without_trouble_there_is_no_pause() -> None:
    trouble = Trouble()
    assert (trouble.pause, trouble.retry_at) == (0.0, 0.0)


def test_pauses_double_up_to_the_limit(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 60
    trouble = Trouble()
    pauses = [trouble.strike(100.0) for _ in range(10)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]
    assert (PAUSE, PAUSE_MAX) == (0.1, 5.0)


def test_at_least_two_attempts_per_heartbeat(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 1
    trouble = Trouble()
    assert [trouble.strike(100.0) for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_time_spent_waiting_for_a_lock_counts_as_pause(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 10
    trouble = Trouble()
    assert [trouble.strike(100.0, begun=99.0) for _ in range(5)] == [
        *[0.1] * 4,
        pytest.approx(0.6),
    ]


def test_sqlite_error_is_explained() -> None:
    message = explained(OperationalError("database is locked\n"))
    assert message.startswith("database is locked (a transaction has held SQLite's write lock")
    assert explained(OperationalError("the server went away")) == "the server went away"
    # The message may quote a task's text, and must fit into one log line.
    assert explained(OperationalError("no:\r\nx\x1b[2J")) == r"no:\r\nx\x1b[2J"


def test_next_attempt_follows_after_the_pause() -> None:
    trouble = Trouble()
    assert trouble.strike(100.0) == trouble.pause
    assert trouble.retry_at == 100.0 + trouble.pause
    trouble.strike(200.0)
    assert trouble.retry_at == 200.2
