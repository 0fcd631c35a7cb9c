"""Rescues and prunes, beside a worker's tasks or as a command."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.signals import pre_delete
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store import retention
from tasks_app.store.retention import Prune
from tasks_app.worker import housekeeping as module
from tasks_app.worker.housekeeping import BATCH_PAUSE, Pruner, Rescuer, rescue, rescue_from_outside
from tests.rows import claimed, fresh, lapse, saved, worker

pytestmark = pytest.mark.django_db(transaction=True)


DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = 3600
    settings.TASK_FAILED_RETENTION_SECONDS = 7200
    settings.TASK_CLEANUP_INTERVAL_SECONDS = 600


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "tasks_app")
    return caplog


def test_rescue_logs_the_task_and_the_lost_worker(log: pytest.LogCaptureFixture) -> None:
    task, _ = claimed(worker(hostname="ada", pid=7))
    lapse(task, DAY)
    assert rescue() == 1
    assert fresh(task).status == Status.FAILED
    [record] = log.records
    assert (record.name, record.levelname) == ("tasks_app.cleanup", "WARNING")
    assert record.getMessage() == (
        f"Task {task.pk} (tests.tasks.Noop) was taken back from worker ada:7, "
        f"which stopped responding"
    )
    assert record.task_id == str(task.pk)  # type: ignore[attr-defined]


def test_rescue_of_nothing_logs_nothing(log: pytest.LogCaptureFixture) -> None:
    claimed()
    assert rescue() == 0
    assert log.records == []


def test_pruner_deletes_one_batch_per_step(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS", 8)
    monkeypatch.setattr(Prune, "_took", lambda self, seconds: None)
    for _ in range(3):
        saved(Status.COMPLETED, age=DAY)
    kept = [saved(Status.FAILED, age=timedelta(hours=1.5)), saved(Status.COMPLETED)]
    pruner = Pruner(100.0)
    assert pruner.next_step == 100.0
    left = []
    for now in (100.0, 101.0, 102.0):
        pruner.step(now)
        left.append((Task.objects.count() - len(kept), pruner.next_step - now))
    assert left == [(1, pytest.approx(BATCH_PAUSE)), (0, pytest.approx(BATCH_PAUSE)), (0, 600.0)]
    assert set(Task.objects.all()) == set(kept)
    [record] = log.records
    assert (record.levelname, record.getMessage()) == (
        "INFO",
        "Removed 3 finished tasks past their retention",
    )


def test_pruner_pauses_in_proportion_to_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def took(self: Prune, _seconds: float) -> None:
        self.seconds = 0.2

    monkeypatch.setattr(Prune, "_took", took)
    saved(Status.COMPLETED, age=DAY)
    pruner = Pruner(100.0)
    pruner.step(100.0)
    assert pruner.next_step == pytest.approx(100.4)


def test_pruner_continues_after_a_database_error(
    log: pytest.LogCaptureFixture,
) -> None:
    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("DELETE"):
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    saved(Status.COMPLETED, age=DAY)
    pruner = Pruner(0.0)
    with connection.execute_wrapper(fail):
        pruner.step(0.0)
        pruner.step(1.0)
    assert Task.objects.exists()
    assert pruner.next_step == 1.2
    pruner.step(2.0)
    pruner.step(3.0)
    assert not Task.objects.exists()
    hindered = "Finished tasks cannot be removed just now: database is locked"
    assert [record.getMessage().partition(" (")[0] for record in log.records] == [
        hindered,
        hindered,
        "Removed 1 finished tasks past their retention",
    ]


def test_pruner_survives_an_error_in_a_signal_of_the_site(
    log: pytest.LogCaptureFixture,
) -> None:
    def fail(**_kwargs: object) -> None:
        raise ValueError("no")

    saved(Status.COMPLETED, age=DAY)
    pruner = Pruner(0.0)
    pre_delete.connect(fail, sender=Task)
    try:
        pruner.step(0.0)
    finally:
        pre_delete.disconnect(fail, sender=Task)
    assert pruner.next_step == 600.0
    [record] = log.records
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "Finished tasks could not be removed",
    )
    pruner.step(600.0)
    assert not Task.objects.exists()


def test_pruner_starts_again_after_its_interval(log: pytest.LogCaptureFixture) -> None:
    pruner = Pruner(0.0)
    pruner.step(0.0)
    assert pruner.next_step == 600.0
    saved(Status.COMPLETED, age=DAY)
    pruner.step(600.0)
    pruner.step(600.1)
    assert not Task.objects.exists()
    assert [record.getMessage() for record in log.records] == [
        "Removed 1 finished tasks past their retention"
    ]


def test_pruner_deletes_rows_of_old_workers() -> None:
    worker(heartbeat_at=timezone.now() - DAY * 2)
    recent = worker()
    Pruner(0.0).step(0.0)
    assert list(Worker.objects.all()) == [recent]


def test_pruner_uses_changed_settings(settings: Any) -> None:
    saved(Status.COMPLETED, age=timedelta(minutes=30))
    pruner = Pruner(0.0)
    pruner.step(0.0)
    assert Task.objects.count() == 1
    settings.TASK_RETENTION_SECONDS = 60
    pruner.step(600.0)
    assert Task.objects.count() == 0


# When to rescue.


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
