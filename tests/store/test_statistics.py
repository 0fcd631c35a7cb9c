"""Statistics of all tasks and workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store import statistics
from tasks_app.store.statistics import Presence, overview
from tests.rows import row, saved, worker
from tests.test_query_plans import plan, statements

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 5, 4, 12, 30, 45, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "database_now", lambda _using: NOON)


def ended(status: Status, at: datetime) -> Task:
    return saved(status, created_at=at, run_after=at, finished_at=at)


def waiting(at: datetime, **fields: Any) -> Task:
    return saved(created_at=NOON - DAY, run_after=at, **fields)


def test_empty_database() -> None:
    found = overview()
    assert (found.ready, found.later, found.running) == (0, 0, 0)
    assert (found.queues, found.workers) == ([], [])
    assert (found.last_hour.total, found.last_day.total) == (0, 0)
    assert len(found.last_hour.periods) == 60
    assert len(found.last_day.periods) == 24
    assert (found.threads, found.stuck) == (0, 0)


def test_queues_with_the_longest_wait_come_first() -> None:
    waiting(NOON - 2 * MINUTE, queue="a")
    waiting(NOON, queue="a")
    waiting(NOON + MINUTE, queue="a")
    waiting(NOON - HOUR, queue="b", attempt=1, max_attempts=2)
    waiting(NOON + HOUR, queue="later")
    saved(Status.RUNNING, queue="busy")
    saved(Status.RUNNING, queue="b")
    saved(Status.COMPLETED, queue="done")
    found = overview()
    assert [
        (queue.name, queue.ready, queue.oldest, queue.later, queue.running)
        for queue in found.queues
    ] == [
        ("b", 1, NOON - HOUR, 0, 1),
        ("a", 2, NOON - 2 * MINUTE, 1, 0),
        ("busy", 0, None, 0, 1),
        ("later", 0, None, 1, 0),
    ]
    assert (found.ready, found.later, found.running) == (3, 2, 2)


def test_number_of_queues_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "QUEUES", 2)
    for number in range(5):
        waiting(NOON - MINUTE * number, queue=f"q{number}")
    found = overview()
    assert [queue.name for queue in found.queues] == ["q4", "q3"]
    assert (found.other_queues, found.ready) == (3, 5)


def test_finished_tasks_per_minute_and_per_hour() -> None:
    ended(Status.COMPLETED, NOON)
    ended(Status.COMPLETED, NOON - timedelta(seconds=45))
    ended(Status.FAILED, NOON - timedelta(seconds=46))
    ended(Status.CANCELLED, NOON - timedelta(minutes=59, seconds=45))
    ended(Status.COMPLETED, NOON - HOUR)  # One minute too old.
    ended(Status.FAILED, NOON - timedelta(hours=23))
    ended(Status.FAILED, NOON - timedelta(hours=23, minutes=31))
    found = overview()

    hour = found.last_hour
    assert (hour.since, hour.periods[-1].start) == (
        datetime(2026, 5, 4, 11, 31, tzinfo=UTC),
        datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
    )
    assert [period.total for period in hour.periods] == [1, *[0] * 57, 1, 2]
    assert hour.periods[-2].failed == 1
    assert (hour.total, hour.failed) == (4, 1)
    assert hour.ended == {Status.COMPLETED: 2, Status.FAILED: 1, Status.CANCELLED: 1}

    day = found.last_day
    assert (day.since, day.periods[-1].start) == (
        datetime(2026, 5, 3, 13, tzinfo=UTC),
        datetime(2026, 5, 4, 12, tzinfo=UTC),
    )
    assert [period.total for period in day.periods] == [1, *[0] * 21, 2, 3]
    assert (day.total, day.failed) == (6, 2)


def test_alive_lost_and_stopped_workers() -> None:
    conf_lease_and_heartbeat = timedelta(seconds=13)  # settings of this project
    alive = worker(hostname="alive", heartbeat_at=NOON - conf_lease_and_heartbeat, stuck=2)
    worker(
        hostname="lost",
        heartbeat_at=NOON - conf_lease_and_heartbeat - timedelta(milliseconds=1),
        stuck=9,
    )
    worker(hostname="stopped", heartbeat_at=NOON - HOUR, stopped_at=NOON - HOUR)
    worker(hostname="earlier", heartbeat_at=NOON - 2 * HOUR, stopped_at=NOON - 2 * HOUR)
    for _ in range(3):
        saved(Status.RUNNING, worker=alive)
    found = overview()
    assert [(seen.worker.hostname, seen.presence, seen.running) for seen in found.workers] == [
        ("lost", Presence.LOST, 0),
        ("alive", Presence.ALIVE, 3),
        ("stopped", Presence.STOPPED, 0),
        ("earlier", Presence.STOPPED, 0),
    ]
    assert [found.presences[presence] for presence in Presence] == [1, 1, 2]
    assert (found.threads, found.stuck) == (4, 2)


def test_number_of_workers_is_limited_but_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "WORKERS", 3)
    for number in range(3):
        worker(hostname="stopped", heartbeat_at=NOON, stopped_at=NOON, threads=100)
        worker(hostname=f"alive{number}", heartbeat_at=NOON - timedelta(seconds=number), stuck=1)
    for number in range(2):
        worker(
            hostname=f"lost{number}", heartbeat_at=NOON - HOUR * (1 + number), threads=100, stuck=9
        )
    found = overview()
    assert [seen.worker.hostname for seen in found.workers] == ["lost1", "lost0", "alive2"]
    assert found.other_workers == 5
    assert [found.presences[presence] for presence in Presence] == [3, 2, 3]
    assert (found.threads, found.stuck) == (12, 3)


def test_number_of_queries_is_constant() -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as executed:
            overview()
        return len(executed)

    before = queries()
    by = worker()
    Task.objects.bulk_create(
        row(status, age=MINUTE * number, queue=f"q{number % 7}", worker=by)
        for status in Status
        for number in range(50)
    )
    assert queries() == before == 5


def test_queries_use_their_indexes() -> None:
    """And none reads finished tasks row by row."""
    now = timezone.now()
    Task.objects.bulk_create(
        row(status, age=now - NOON + HOUR * number) for status in Status for number in range(200)
    )
    for _ in range(20):
        Worker.objects.create(
            hostname="x", pid=1, threads=1, started_at=now, heartbeat_at=now, stopped_at=now
        )
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    with statements() as executed:
        overview()
    plans = [plan(*statement) for statement in executed]
    used = set().union(*(indexes for indexes, _ in plans))
    assert {"tasks_finished", "tasks_leased"} <= used
    # Any index without finished tasks will do.
    assert used & {
        "tasks_waiting_in_queue",
        "tasks_waiting",
        "tasks_due",
        "tasks_unique_key_unfinished",
        "tasks_unfinished_of_owner",
    }
    assert [scanned for _, scanned in plans if scanned] == []
