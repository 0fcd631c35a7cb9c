"""Housekeeping of every worker: rescue lost tasks, prune old ones."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models.signals import pre_delete
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store import retention
from tasks_app.store.retention import Prune
from tasks_app.worker.housekeeping import BATCH_PAUSE, Pruner, rescue
from tests.rows import claimed, fresh, lapse, saved, worker

pytestmark = pytest.mark.django_db

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
