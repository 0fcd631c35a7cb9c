"""Time: summer time, clock steps, leap days, naive times, microseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle, retention
from tasks_app.store.claims import Claim, claim_of
from tasks_app.store.clock import database_now
from tasks_app.store.retention import Rule
from tasks_app.worker.housekeeping import Rescuer
from tests.clocks import Clock, local
from tests.invariants import Seen, check_invariants
from tests.rows import BROKEN, enqueued, fresh, lapse, saved, worker
from tests.tasks import Noop

pytestmark = pytest.mark.django_db

BERLIN = ZoneInfo("Europe/Berlin")
#: Berlin's clocks change from 2 to 3, and from 3 to 2.
SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


@pytest.fixture(params=["aware UTC", "aware Berlin", "naive Berlin"])
def site(request: pytest.FixtureRequest, settings: Any) -> str:
    """Configure one of the ways in which a site keeps its time."""
    kind, zone = request.param.split()
    settings.USE_TZ = kind == "aware"
    settings.TIME_ZONE = {"UTC": "UTC", "Berlin": "Europe/Berlin"}[zone]
    settings.TASK_LEASE_SECONDS = 30
    settings.TASK_HEARTBEAT_SECONDS = 10
    return str(request.param)


def take(by: Worker) -> list[Claim]:
    return [claim_of(task) for task in lifecycle.claim(by, 9)]


# Summer time.


@pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
@pytest.mark.parametrize("after", [-2 * HOUR, HOUR, 5 * HOUR], ids=["before", "after", "later"])
def test_delayed_task_is_due_at_its_time(
    site: str, clock: Clock, change: datetime, after: timedelta
) -> None:
    clock.now = change - 3 * HOUR
    due = change + after
    task = task_service.start_task(Noop, run_after=local(due))
    by = worker()
    clock.now = due - INSTANT
    assert take(by) == []
    assert task_service.get_task_status(task.task_id).run_after == due
    clock.now = due
    assert [claim.task_id for claim in take(by)] == [task.task_id]
    check_invariants()


def test_both_repeated_hours_have_their_task(settings: Any, clock: Clock) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    wall = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    second = task_service.start_task(Noop, run_after=wall.replace(fold=1))
    first = task_service.start_task(Noop, run_after=wall.replace(fold=0))
    by = worker()
    for started, due in ((first, AUTUMN - 30 * MINUTE), (second, AUTUMN + 30 * MINUTE)):
        clock.now = due - INSTANT
        assert take(by) == []
        clock.now = due
        assert [claim.task_id for claim in take(by)] == [started.task_id]


def test_skipped_hour_has_its_task(settings: Any, clock: Clock) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    started = task_service.start_task(Noop, run_after=datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN))
    clock.now = SPRING + 30 * MINUTE
    assert [claim.task_id for claim in take(worker())] == [started.task_id]


@pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_task_runs_through_the_clock_change(site: str, clock: Clock, change: datetime) -> None:
    """Every step is written, and every time is reported with a zone, in all configurations."""
    seen = Seen()
    by = worker()
    clock.now = change - 3 * SECOND
    task = enqueued(max_attempts=2)
    [claim] = take(by)
    check_invariants(seen)
    clock.now = change + SECOND
    assert lifecycle.renew([claim]) == []
    assert lifecycle.retry({claim: BROKEN}) == []
    check_invariants(seen)
    # Naive clocks went back an hour, so the task is due an hour later.
    clock.now = change + 2 * HOUR
    [claim] = take(by)
    assert lifecycle.complete({claim: 1}) == []
    check_invariants(seen)
    info = task_service.get_task_status(task.pk)
    assert (info.start_time, info.end_time) == (change + 2 * HOUR, change + 2 * HOUR)
    events = [event.message() for event in TaskEvent.objects.order_by("id")]
    assert all(event.timestamp.utcoffset() is not None for event in events)


@pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_renewing_worker_is_not_lost_during_the_clock_change(
    site: str, clock: Clock, change: datetime
) -> None:
    other = worker()
    rescuer = Rescuer(0.0)
    task = enqueued()
    clock.now = start = change - 27 * SECOND
    Task.objects.update(run_after=local(start))
    [claim] = take(other)
    for beat in range(12):
        # The two workers have alternating heartbeats.
        clock.now = start + beat * 10 * SECOND
        rescuer.beat(10.0 * beat)
        clock.now += 5 * SECOND
        assert lifecycle.renew([claim]) == [], clock.now
    assert fresh(task).attempt == 1


@pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_worker_that_dies_during_the_clock_change_is_detected(
    site: str, clock: Clock, change: datetime
) -> None:
    rescuer = Rescuer(0.0)
    task = enqueued()
    clock.now = start = change - 25 * SECOND
    Task.objects.update(run_after=local(start))
    take(worker())

    def seconds_until_failed() -> float:
        for beat in range(500):
            clock.now = start + beat * 10 * SECOND
            rescuer.beat(10.0 * beat)
            if fresh(task).status == Status.FAILED:
                return beat * 10.0
        return float("inf")

    # A lease, a heartbeat and the rescuer's confirmation. Naive clocks that go back take an hour
    # more.
    naive = site.startswith("naive") and change == AUTUMN
    assert 40 < seconds_until_failed() <= (3600 if naive else 0) + 100
    check_invariants()


# Clock steps.


@pytest.mark.parametrize("step", [10 * MINUTE, -10 * MINUTE], ids=["forth", "back"])
def test_claim_survives_a_clock_step(site: str, clock: Clock, step: timedelta) -> None:
    seen = Seen()
    task = enqueued()
    [claim] = take(worker())
    check_invariants(seen)
    clock.now += step
    assert lifecycle.renew([claim]) == []
    assert fresh(task).lease_expires_at == local(clock.now + 30 * SECOND)
    assert lifecycle.rescue() == []
    clock.now -= step
    assert lifecycle.complete({claim: 1}) == []
    check_invariants(seen)


def test_wrongly_rescued_worker_writes_nothing(clock: Clock) -> None:
    """The fencing token decides, not the clock."""
    seen = Seen()
    task = enqueued(max_attempts=2)
    by = worker()
    [stale] = take(by)
    clock.now += HOUR
    assert [lost.pk for lost in lifecycle.rescue()] == [task.pk]
    clock.now += HOUR
    [claim] = take(by)
    clock.now -= 2 * HOUR
    assert lifecycle.complete({stale: "stale"}) == [stale]
    assert lifecycle.complete({claim: "right"}) == []
    assert fresh(task).result == "right"
    check_invariants(seen)


@pytest.fixture
def lost(clock: Clock, settings: Any) -> Task:
    settings.TASK_LEASE_SECONDS, settings.TASK_HEARTBEAT_SECONDS = 30, 10
    task = saved(Status.RUNNING, worker=worker())
    lapse(task, timedelta(), clock.now + 25 * SECOND)
    return task


def test_forward_step_makes_no_worker_look_lost(clock: Clock, lost: Task) -> None:
    rescuer = Rescuer(0.0)
    statuses = []
    for beat in range(1, 8):
        # A step, or the machine slept: the monotonic clock did not move with it.
        clock.now += 10 * SECOND + (HOUR if beat == 2 else timedelta())
        rescuer.beat(10.0 * beat)
        statuses.append(fresh(lost).status)
    # The step is seen at the second heartbeat. A lease later, at 50 s, another 20 s confirm the
    # loss.
    assert statuses == [*[Status.RUNNING] * 6, Status.FAILED]


def test_fast_clock_is_not_a_step(clock: Clock, lost: Task) -> None:
    rescuer = Rescuer(0.0)
    for beat in range(1, 5):
        clock.now += 10.4 * SECOND
        rescuer.beat(10.0 * beat)
    assert fresh(lost).status == Status.FAILED


# Calendar.


def test_leap_day(site: str, clock: Clock) -> None:
    clock.now = datetime(2028, 2, 28, 12, tzinfo=UTC)
    leap = datetime(2028, 2, 29, 12, tzinfo=UTC)
    task = task_service.start_task(Noop, run_after=local(leap))
    by = worker()
    clock.now = leap - INSTANT
    assert take(by) == []
    clock.now = leap
    [claim] = take(by)
    lifecycle.complete({claim: None})
    assert task_service.get_task_status(task.task_id).end_time == leap
    # 365 days after a leap day end one day before the same date of the next year.
    year = Rule(365 * 86400, 365 * 86400)
    clock.now = datetime(2029, 2, 28, 12, tzinfo=UTC)
    assert sum(retention.prune(year)) == 0
    clock.now += INSTANT
    assert sum(retention.prune(year)) == 1


def test_new_year_keeps_the_order(site: str, clock: Clock) -> None:
    # The last microsecond of the year in Berlin.
    clock.now = datetime(2026, 12, 31, 22, 59, 59, 999_999, tzinfo=UTC)
    tasks = [Task(name="tests.tasks.Noop", run_after=None) for _ in range(3)]
    lifecycle.enqueue(tasks)
    by = worker()
    assert [claim.task_id for claim in take(by)] == [tasks[0].pk]
    clock.now += 2 * INSTANT
    # The next ones are due in the new year.
    assert [claim.task_id for claim in take(by)] == [task.pk for task in tasks[1:]]
    assert lifecycle.rescue() == []
    check_invariants()


@pytest.mark.parametrize("micro", [0, 1, 100_000, 999_999])
def test_due_and_expiry_to_the_microsecond(site: str, clock: Clock, micro: int) -> None:
    """SQLite compares text, and writes a whole second without a fraction."""
    due = clock.now.replace(microsecond=micro)
    clock.now = due - MINUTE
    task = task_service.start_task(Noop, run_after=local(due))
    by = worker()
    clock.now = due - INSTANT
    assert take(by) == []
    clock.now = due
    [claim] = take(by)
    clock.now = due + 40 * SECOND
    # The lease has now been expired for exactly one heartbeat.
    assert lifecycle.rescue() == []
    clock.now += INSTANT
    assert [lost.pk for lost in lifecycle.rescue()] == [task.task_id]
    assert lifecycle.complete({claim: 1}) == [claim]
    clock.now += MINUTE
    assert sum(retention.prune(Rule(None, 60))) == 0
    clock.now += INSTANT
    assert sum(retention.prune(Rule(None, 60))) == 1


# The database's clock.


def test_database_time_matches_the_columns(site: str) -> None:
    now = database_now("default")
    assert timezone.is_aware(now) == django_settings.USE_TZ
    assert abs(now - timezone.now()) < HOUR / 2
    task = enqueued(run_after=now)
    assert fresh(task).run_after == now
