"""Real workers whose clocks are wrong, and real workers of a site with naive times."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from tasks_app.models import Worker
from tasks_app.schemas import TaskStartResponse
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store.clock import database_now
from tests.harness import Process, begins, ends, eventually
from tests.invariants import Seen, check_invariants
from tests.rows import facts
from tests.tasks import Noop, Steps

pytestmark = pytest.mark.django_db(transaction=True)

MINUTES = 600
#: Longer than a busy machine delays a worker, and shorter than MINUTES.
LEASE = {"TASK_LEASE_SECONDS": "6", "TASK_HEARTBEAT_SECONDS": "0.5"}
Skewed = Callable[[Path], Process]


@pytest.fixture
def skewed(processes: list[Process], tmp_path: Path) -> Skewed:
    """Start a worker with one thread, whose clock is wrong by the seconds in a file."""

    def start(clock: Path) -> Process:
        log = tmp_path / f"skewed-{len(processes)}.log"
        command = ["-m", "tests.skewed", "run_tasks", "--max-workers", "1"]
        worker = Process(command, log, CLOCK=str(clock), **LEASE)
        processes.append(worker)
        eventually(lambda: Worker.objects.filter(pid=worker.pid).exists(), what=worker.output)
        return worker

    return start


def set_to(number: int, path: Path) -> Path:
    # Atomically, so that no worker reads half of it.
    path.with_suffix(".new").write_text(str(number))
    return path.with_suffix(".new").rename(path)


def wait_for_heartbeats(*workers: Process, times: int = 4) -> None:
    """Wait until each worker had a number of heartbeats."""
    for _ in range(times):
        for worker in workers:
            row = Worker.objects.get(pid=worker.pid)
            eventually(
                lambda row=row: Worker.objects.get(pk=row.pk).heartbeat_at != row.heartbeat_at,  # type: ignore[misc]
                what="it beats",
            )


def steps(reins: Path) -> TaskStartResponse:
    task = task_service.start_task(Steps, {"reins": reins})
    begins(task.task_id)
    return task


def assert_completes_in_first_attempt(task: TaskStartResponse) -> None:
    row = ends(task.task_id)
    assert (row.status, row.attempt) == (Status.COMPLETED, 1)
    assert facts(row) == ["task_queued", "task_started", "task_completed"]


def test_hosts_with_clocks_minutes_apart(skewed: Skewed, reins: Path, tmp_path: Path) -> None:
    """No task is rescued wrongly, and a killed worker is detected in time."""
    # All processes that use an SQLite database are on one host.
    apart = MINUTES if connection.vendor == "postgresql" else 0
    late = skewed(set_to(-apart, tmp_path / "late"))
    first = steps(reins)
    early = skewed(set_to(apart, tmp_path / "early"))
    second = steps(set_to(0, tmp_path / "reins of the second"))
    seen = Seen()
    wait_for_heartbeats(late, early)
    check_invariants(seen)
    reins.write_text("10")
    assert_completes_in_first_attempt(first)
    # All workers wrote the database's time.
    now = database_now("default")
    for worker in Worker.objects.all():
        assert abs(now - worker.heartbeat_at) < timedelta(seconds=MINUTES / 2)
    # The task of a killed worker is rescued, whichever clock the other worker has.
    reins.write_text("0")
    third = steps(reins)
    late.send(signal.SIGKILL)
    assert ends(third.task_id).error_type == "WorkerLost"
    set_to(10, tmp_path / "reins of the second")
    assert_completes_in_first_attempt(second)
    check_invariants(seen)


def test_host_whose_clock_is_stepped(skewed: Skewed, reins: Path, tmp_path: Path) -> None:
    clock = set_to(0, tmp_path / "clock")
    one = skewed(clock)
    first = steps(reins)
    other = skewed(clock)
    second = steps(reins)
    seen = Seen()
    for seconds in (MINUTES, 0, -MINUTES, 0):
        set_to(seconds, clock)
        wait_for_heartbeats(one, other)
        assert check_invariants(seen) == 2
    reins.write_text("10")
    assert_completes_in_first_attempt(first)
    assert_completes_in_first_attempt(second)
    check_invariants(seen)


def test_site_with_naive_times(
    start_worker: Callable[..., Process], settings: Any, reins: Path
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    naive = {"DJANGO_SETTINGS_MODULE": "tests.naive", "TASK_RETRY_BACKOFF_SECONDS": "0.1"}
    doomed = start_worker(**naive)
    seen = Seen()
    first = task_service.start_task(Steps, {"reins": reins}, max_attempts=2)
    begins(first.task_id)
    wait_for_heartbeats(doomed)
    check_invariants(seen)
    doomed.send(signal.SIGKILL)
    start_worker(**naive)
    due = timezone.now() + timedelta(seconds=1)
    delayed = task_service.start_task(Noop, run_after=due)
    row = ends(delayed.task_id)
    assert row.status == Status.COMPLETED
    assert row.started_at is not None
    assert due <= row.started_at < due + timedelta(minutes=1)
    reins.write_text("10")
    row = ends(first.task_id)
    assert (row.status, row.attempt) == (Status.COMPLETED, 2)
    check_invariants(seen)
    info = task_service.get_task_status(first.task_id)
    assert info.end_time is not None
    assert info.end_time.utcoffset() is not None
