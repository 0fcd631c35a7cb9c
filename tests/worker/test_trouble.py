"""A worker's database connection, and its pauses if the database does not answer."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store.ledger import LOCK_MILLISECONDS
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.trouble import PAUSE, PAUSE_MAX, Connection, Trouble, explained
from tests.harness import eventually
from tests.more_tasks import CountsQueries, Large
from tests.tasks import Noop

pytestmark = pytest.mark.django_db(transaction=True)


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


# Connection.


def test_worker_connection_is_not_from_the_pool() -> None:
    """Otherwise its own threads could use up the pool."""

    def connected() -> list[Any]:
        pooled = connections["default"] = connections["default"].copy()
        pooled.settings_dict["OPTIONS"]["pool"] = pool
        try:
            Connection("default").open()
            own = connections["default"]
            found = [one.settings_dict["OPTIONS"].get("pool") for one in (pooled, own)]
            return [*found, own.is_usable()]
        finally:
            connections.close_all()

    pool = {"max_size": 1}
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(connected).result() == [pool, None, True]


def test_connection_settings_of_a_worker() -> None:
    def connected() -> Any:
        try:
            Connection("default").open()
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


def test_worker_inside_a_transaction_raises() -> None:
    with transaction.atomic():
        User.objects.create_user("ada")
        task_service.start_task(Noop)
        with pytest.raises(TransactionManagementError, match="use TransactionTestCase"):
            Coordinator(1, drain=True).run()
    assert User.objects.filter(username="ada").exists()
    assert Coordinator(1, drain=True).run() == 1


def resident() -> int:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


@pytest.mark.slow
@pytest.mark.once
def test_results_are_freed_after_they_are_written() -> None:
    Coordinator(4, drain=True).run()
    before = resident()
    task_service.start_many(Large, [{"size": 500_000}] * 80)
    assert Coordinator(4, drain=True).run() == 80
    assert resident() - before < 40


@pytest.mark.parametrize(
    ("table", "change", "undo"),
    [
        ("tasks_app_worker", "RENAME TO gone", "ALTER TABLE gone RENAME TO tasks_app_worker"),
        (
            "tasks_app_task",
            "RENAME COLUMN progress_text TO gone",
            "ALTER TABLE tasks_app_task RENAME COLUMN gone TO progress_text",
        ),
    ],
)
def test_worker_waits_for_a_migration(
    table: str, change: str, undo: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tasks_app")
    started = task_service.start_task(Noop)

    def work() -> int:
        try:
            return Coordinator(1, drain=True).run()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} {change}")
        try:
            working = thread.submit(work)
            eventually(lambda: "Run manage.py migrate; 0 outcomes wait" in caplog.text)
        finally:
            with connection.cursor() as cursor:
                cursor.execute(undo)
        assert working.result() == 1
    assert Task.objects.get(pk=started.task_id).status == Status.COMPLETED


def test_query_log_of_debug_is_cleared(settings: Any) -> None:
    settings.DEBUG = True
    task_service.start_many(CountsQueries, [{"make": 50}, *[{"make": 0}] * 99])
    assert Coordinator(1, drain=True).run() == 100
    assert max(Task.objects.values_list("result", flat=True)) == 0
    assert len(connection.queries) < 100
