"""A worker that was away for longer than its leases comes back: its writes are refused."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import OperationalError, connection, transaction

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.chaos.tasks import Held
from tests.harness import Process, begins, ends, eventually
from tests.invariants import check_invariants
from tests.rows import facts, fresh
from tests.tasks import Noop

pytestmark = pytest.mark.django_db(transaction=True)

StartWorker = Callable[..., Process]
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "tests.chaos.settings"}
#: Columns that a heartbeat changes although nothing happens to the task.
BEATING = {"lease_expires_at"}


def state_of(task: Task) -> tuple[dict[str, object], list[str]]:
    """Return the row and the history: everything that another process could have changed."""
    row = Task.objects.filter(pk=task.pk).values().get()
    return {name: value for name, value in row.items() if name not in BEATING}, facts(task)


def order(folder: Path, worker: Process, *words: str) -> None:
    (folder / str(worker.pid)).write_text(" ".join(words))


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    folder = tmp_path / "orders"
    folder.mkdir()
    return folder


@pytest.fixture
def away(start_worker: StartWorker) -> Process:
    """Start a worker with one thread.

    Before it runs another task, it has written everything about the last one.
    """
    return start_worker("--max-workers", "1", **ENVIRONMENT)


def leave(worker: Process, task: Task) -> None:
    """Stop a worker that has started a task, as a host without free memory does.

    Not in the middle of a transaction, because its locks would block others, and no rescue helps
    against that.
    """
    begins(task.pk)

    def stopped() -> bool:
        worker.send(signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
        if not locked(task):
            return True
        worker.send(signal.SIGCONT)
        return False

    eventually(stopped, what="it stops and holds no lock")


def locked(task: Task) -> bool:
    """Return whether another session is writing to the task; on SQLite, to any row."""
    try:
        if connection.vendor == "sqlite":
            with contextlib.closing(
                sqlite3.connect(connection.settings_dict["NAME"], timeout=0, isolation_level=None)
            ) as probe:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
        else:
            with transaction.atomic():
                Task.objects.select_for_update(nowait=True).get(pk=task.pk)
    except (OperationalError, sqlite3.OperationalError):
        return True
    return False


def retaken_by(worker: Process, task: Task) -> None:
    """Wait until another worker has started the task again."""
    second_attempt = Task.objects.filter(
        pk=task.pk, attempt=2, worker__pid=worker.pid, progress_text="held"
    )
    eventually(second_attempt.exists, what=f"it starts again: {fresh(task).info()}")


@pytest.mark.parametrize(
    "words",
    [["complete"], ["fail"], ["report", "log"]],
    ids=" ".join,
)
def test_writes_of_a_stale_worker_are_refused(
    start_worker: StartWorker, away: Process, orders: Path, words: list[str]
) -> None:
    started = task_service.start_task(Held, {"orders": orders}, max_attempts=2)
    task = Task.objects.get(pk=started.task_id)
    leave(away, task)
    other = start_worker(**ENVIRONMENT)
    retaken_by(other, task)
    before = state_of(task)
    order(orders, away, *words)
    away.send(signal.SIGCONT)
    away.says(f"{task.pk} (tests.chaos.tasks.Held) was taken from this worker")
    # The thread is free again, so everything about that task has been written.
    order(orders, away, *words, "look")
    assert state_of(task) == before
    order(orders, other, "complete")
    assert ends(task.pk).result == other.pid
    assert fresh(task).attempt == 2
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    after = state_of(task)
    # The worker that was away continues to work.
    next_one = task_service.start_task(Noop)
    worker = ends(next_one.task_id).worker
    assert worker is not None
    assert worker.pid == away.pid
    assert state_of(task) == after
    check_invariants()


def test_task_reported_lost_stays_failed_when_its_worker_returns(
    start_worker: StartWorker, away: Process, orders: Path
) -> None:
    started = task_service.start_task(Held, {"orders": orders})
    task = Task.objects.get(pk=started.task_id)
    leave(away, task)
    start_worker(**ENVIRONMENT)
    assert ends(task.pk).error_type == "WorkerLost"
    before = state_of(task)
    order(orders, away, "complete")
    away.send(signal.SIGCONT)
    away.says("was taken from this worker")
    away.send(signal.SIGTERM)
    assert away.wait() == 0
    assert state_of(task) == before
    check_invariants()


def test_stale_worker_that_is_asked_to_stop_releases_nothing(
    start_worker: StartWorker, away: Process, orders: Path
) -> None:
    started = task_service.start_task(Held, {"orders": orders}, max_attempts=2)
    task = Task.objects.get(pk=started.task_id)
    leave(away, task)
    other = start_worker(**ENVIRONMENT)
    retaken_by(other, task)
    before = state_of(task)
    away.send(signal.SIGTERM)
    away.send(signal.SIGCONT)
    assert away.wait() == 0
    assert "was taken from this worker" in away.output
    assert state_of(task) == before
    order(orders, other, "complete")
    ends(task.pk)
    check_invariants()


def test_cancel_while_the_worker_was_away_is_kept(
    start_worker: StartWorker, away: Process, orders: Path
) -> None:
    started = task_service.start_task(Held, {"orders": orders}, max_attempts=2)
    task = Task.objects.get(pk=started.task_id)
    leave(away, task)
    task_service.cancel_task(task.pk)
    start_worker(**ENVIRONMENT)
    assert ends(task.pk).status == Status.CANCELLED
    before = state_of(task)
    order(orders, away, "complete")
    away.send(signal.SIGCONT)
    away.says("was taken from this worker")
    away.send(signal.SIGTERM)
    assert away.wait() == 0
    assert state_of(task) == before
    check_invariants()
