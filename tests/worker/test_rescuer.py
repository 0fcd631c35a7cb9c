"""The conditions under which other workers are treated as lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction

from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.worker import housekeeping as module
from tasks_app.worker.housekeeping import Rescuer, rescue_from_outside
from tests.rows import fresh, lapse, saved, worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def lost(settings: Any) -> Task:
    settings.TASK_HEARTBEAT_SECONDS = 10
    task = saved(Status.RUNNING, worker=worker())
    lapse(task, timedelta(hours=1))
    return task


def test_new_worker_does_not_rescue(lost: Task) -> None:
    rescuer = Rescuer(100.0)
    for now in (100.1, 110.1):
        rescuer.beat(now)
        assert fresh(lost).status == Status.RUNNING
        assert rescuer.waits
    rescuer.beat(120.1)
    assert fresh(lost).status == Status.FAILED
    assert not rescuer.waits


def test_worker_that_could_not_write_for_long_does_not_rescue(lost: Task) -> None:
    rescuer = Rescuer(0.0)
    Task.objects.filter(pk=lost.pk).update(lease_expires_at=lost.created_at + timedelta(days=1))
    for now in (0.1, 10.1, 20.1):
        rescuer.beat(now)
    lapse(lost, timedelta(hours=1))
    # This heartbeat is 40 seconds late: the database took no writes from anybody.
    for now in (70.0, 80.0):
        rescuer.beat(now)
        assert fresh(lost).status == Status.RUNNING
    rescuer.beat(90.0)
    assert fresh(lost).status == Status.FAILED


def test_slightly_late_heartbeat_does_not_delay_a_rescue(lost: Task) -> None:
    rescuer = Rescuer(0.0)
    for now in (0.1, 14.0, 24.0):
        rescuer.beat(now)
    assert fresh(lost).status == Status.FAILED


# From outside, as cron does.


def rest(seconds: float) -> bool:
    return not threading.Event().wait(seconds)


def test_without_expired_leases_it_does_not_wait(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 60
    saved(Status.RUNNING, worker=worker())
    began = time.monotonic()
    assert rescue_from_outside(rest) == 0
    assert time.monotonic() - began < 30


def test_expired_lease_may_be_renewed_for_two_heartbeats(lost: Task, settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 1
    renewed = saved(Status.RUNNING, worker=worker())
    lapse(renewed, timedelta(hours=1))

    def renew() -> None:
        lapse(renewed, -timedelta(hours=1))
        connections.close_all()

    late = threading.Timer(0.2, renew)
    late.start()
    assert rescue_from_outside(rest) == 1
    late.join()
    assert fresh(lost).status == Status.FAILED
    assert fresh(renewed).status == Status.RUNNING


def test_time_without_writes_does_not_count(
    lost: Task, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 0.4
    tries: list[float] = []
    write, blocked = module._write_nothing, iter([0.5])

    def slow_once() -> None:
        threading.Event().wait(next(blocked, 0.0))
        write()
        tries.append(time.monotonic())

    monkeypatch.setattr(module, "_write_nothing", slow_once)
    assert rescue_from_outside(rest) == 1
    assert tries[-1] - tries[0] >= 0.8


def test_stop_request_prevents_the_rescue(lost: Task) -> None:
    assert rescue_from_outside(lambda seconds: False) == 0
    assert fresh(lost).status == Status.RUNNING


@pytest.fixture
def other_lock(settings: Any) -> Iterator[threading.Event]:
    """Another connection holds what writers need until the event is set."""
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Worker.objects.create(
                hostname="holder",
                pid=1,
                threads=1,
                started_at="2026-01-01T00:00Z",
                heartbeat_at="2026-01-01T00:00Z",
            )
            held.set()
            release.wait(20)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    yield release
    release.set()
    thread.join()


def test_probe_waits_like_a_writer(other_lock: threading.Event) -> None:
    wrote = threading.Event()

    def write() -> None:
        module._write_nothing()
        wrote.set()
        connections.close_all()

    thread = threading.Thread(target=write)
    thread.start()
    on_sqlite = connections["default"].vendor == "sqlite"
    # Other databases lock rows, and only a write of the same row waits.
    assert wrote.wait(0.5 if on_sqlite else 10) is not on_sqlite
    other_lock.set()
    thread.join(20)
    assert wrote.is_set()
