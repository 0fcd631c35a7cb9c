"""The pauses between tries, while a database does not answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from tasks_app.ledger import LOCK_MILLISECONDS
from tasks_app.worker.trouble import PAUSE, PAUSE_MAX, Trouble, connect, explained


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


@pytest.mark.django_db(transaction=True)
def test_a_worker_stands_in_no_line_for_a_connection() -> None:
    """It is none of a pool's, which its own hands may use up."""

    def connected() -> list[Any]:
        pooled = connections["default"] = connections["default"].copy()
        pooled.settings_dict["OPTIONS"]["pool"] = pool
        try:
            connect("default")
            own = connections["default"]
            found = [one.settings_dict["OPTIONS"].get("pool") for one in (pooled, own)]
            return [*found, own.is_usable()]
        finally:
            connections.close_all()

    pool = {"max_size": 1}
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(connected).result() == [pool, None, True]


@pytest.mark.django_db(transaction=True)
def test_a_worker_waits_and_reads_as_it_must() -> None:
    def connected() -> Any:
        try:
            connect("default")
            own = connections["default"]
            with transaction.atomic(), own.cursor() as cursor:
                if own.vendor == "sqlite":
                    cursor.execute("PRAGMA busy_timeout")
                else:
                    cursor.execute("SHOW transaction_isolation")
                return own.vendor, cursor.fetchone()[0]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(connected).result() in [
            ("sqlite", LOCK_MILLISECONDS),
            ("postgresql", "read committed"),
        ]


def test_the_next_try_is_a_pause_after_the_last() -> None:
    trouble = Trouble()
    assert trouble.strike(100.0) == trouble.pause
    assert trouble.retry_at == 100.0 + trouble.pause
    trouble.strike(200.0)
    assert trouble.retry_at == 200.2
