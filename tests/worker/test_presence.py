"""The row that shows others that a worker is alive."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.worker import presence
from tasks_app.worker.housekeeping import rescue_all
from tests.harness import begins, database_url, ends, eventually
from tests.rows import claimed, facts, lapse
from tests.tasks import Noop, Steps
from tests.worker.conftest import Working

pytestmark = pytest.mark.django_db


def test_worker_registers() -> None:
    before = timezone.now() - timedelta(seconds=1)
    presence.register(3, ["mail"])
    worker = Worker.objects.get()
    assert (worker.hostname, worker.pid) == (socket.gethostname(), os.getpid())
    assert (worker.threads, worker.queues) == (3, ["mail"])
    assert before < worker.started_at == worker.heartbeat_at
    assert worker.stopped_at is None


def test_heartbeats_until_the_worker_leaves() -> None:
    worker, other = presence.register(1, []), presence.register(1, [])
    now = timezone.now() + timedelta(seconds=5)
    presence.beat(worker, now)
    worker.refresh_from_db()
    assert (worker.heartbeat_at, worker.stopped_at) == (now, None)
    presence.leave(worker, now + timedelta(seconds=1))
    worker.refresh_from_db()
    assert worker.heartbeat_at == worker.stopped_at == now + timedelta(seconds=1)
    other.refresh_from_db()
    assert (other.heartbeat_at, other.stopped_at) == (other.started_at, None)


@contextmanager
def held_row(worker: Worker) -> Iterator[None]:
    """Lock a worker's row in another session, if the database has row locks."""
    if connection.vendor == "sqlite":
        yield
        return
    with psycopg.connect(database_url()) as session:
        session.execute("SELECT FROM tasks_app_worker WHERE id = %s FOR UPDATE", [worker.pk])
        yield
        session.rollback()


@pytest.mark.django_db(transaction=True)
def test_worker_with_a_locked_row_keeps_its_tasks(
    start: Callable[..., Working], reins: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tasks_app")
    settings.TASK_HEARTBEAT_SECONDS, settings.TASK_LEASE_SECONDS = 0.3, 1.5
    started = task_service.start_task(Steps, {"reins": reins})
    working = start(2)
    begins(started.task_id)
    with held_row(working.worker):
        if connection.vendor == "postgresql":
            eventually(lambda: Worker.objects.lost(timezone.now()).exists(), what="it is silent")
            assert f"Another session holds the row of worker {working.worker}" in caplog.text
        assert rescue_all() == 0
        reins.write_text("5")
        eventually(lambda: Task.objects.filter(pk=started.task_id, progress=0.5).exists())
        later = task_service.start_task(Noop)
    assert ends(later.task_id).status == Status.COMPLETED
    reins.write_text("10")
    task = ends(started.task_id)
    assert (task.result, facts(task)[1:]) == ("done", ["task_started", "task_completed"])


def test_worker_that_renews_one_lease_is_not_lost() -> None:
    """Even if its heartbeat and another lease are overdue, since other sessions lock those rows."""
    worker = presence.register(2, [])
    held, _ = claimed(worker)
    renewed, _ = claimed(worker)
    lapse(held, timedelta(days=1))
    assert not lifecycle.overdue(timezone.now()).exists()
    lapse(renewed, timedelta(days=1))
    assert lifecycle.overdue(timezone.now()).count() == 2
