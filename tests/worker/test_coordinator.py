"""The worker's single writer, in this process. Real processes are tested in tests/processes."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import claim_of
from tasks_app.worker import runs
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.outcomes import WRITERS
from tasks_app.worker.runs import GROUP_MAX, NEVER
from tasks_app.worker.trouble import Connection
from tests.harness import begins, ends, eventually
from tests.more_tasks import Echo, MakesUsers, StepsOnce
from tests.rows import facts, lapse, saved, worker
from tests.tasks import Add, Burst, Fail, FailTwice, Noop, Steps, Talk
from tests.worker.conftest import Working

pytestmark = pytest.mark.django_db(transaction=True)

Start = Callable[..., Working]
Log = pytest.LogCaptureFixture


def drain(threads: int = 2, **options: Any) -> int:
    return Coordinator(threads, drain=True, **options).run()


def task_of(started: Any) -> Task:
    return Task.objects.get(pk=started.task_id)


def said(log: Log, text: str) -> list[logging.LogRecord]:
    return [record for record in log.records if text in record.getMessage()]


# Drain.


def test_drain_runs_all_ready_tasks_and_returns_their_number() -> None:
    started = task_service.start_many(Add, [{"a": number} for number in range(50)])
    failing = task_service.start_task(Fail)
    assert drain() == 51
    for number, one in enumerate(started):
        task = task_of(one)
        assert (task.status, task.result, task.progress) == (Status.COMPLETED, number + 2, 1.0)
        assert facts(task) == ["task_queued", "task_started", "task_completed"]
    assert task_of(failing).status == Status.FAILED
    assert drain() == 0


def test_drain_leaves_delayed_tasks() -> None:
    later = task_service.start_task(Noop, run_after=timezone.now() + timedelta(hours=1))
    assert drain() == 0
    assert task_of(later).status == Status.PENDING


def test_tasks_use_the_database() -> None:
    started = task_service.start_task(MakesUsers, {"names": ["ada", "bob"]})
    drain()
    assert task_of(started).result == 2
    assert set(User.objects.values_list("username", flat=True)) == {"ada", "bob"}


def test_progress_and_log_lines_are_written_before_the_end() -> None:
    started = task_service.start_task(Talk, {"lines": 4})
    burst = task_service.start_task(Burst, {"calls": 1000})
    drain()
    assert facts(task_of(started)) == [
        "task_queued", "task_started", *["task_log"] * 4, "task_completed",
    ]  # fmt: skip
    assert task_of(burst).progress_text == "bursting"
    failed = task_service.start_task(Fail)
    drain()
    assert (task_of(failed).progress, task_of(failed).progress_text) == (0.25, "about to fail")


def test_timestamps_of_a_history_never_decrease() -> None:
    """Log lines and the end of a task are written in one transaction, with its time."""
    started = task_service.start_task(Talk, {"lines": 3})
    drain()
    times = list(task_of(started).events.order_by("id").values_list("timestamp", flat=True))
    assert times == sorted(times)


def test_history_has_the_number_of_dropped_lines(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    started = task_service.start_task(Talk, {"lines": 5})
    drain()
    logged = task_of(started).events.filter(event_type=EventType.LOG).order_by("id")
    assert [event.data for event in logged] == [
        {"level": "info", "message": "line 0"},
        {"level": "warning", "message": "line 1"},
        {"level": "info", "message": "line 2"},
        {"level": "warning", "message": "2 more lines were dropped (TASK_MAX_LOG_LINES: 3)"},
    ]
    assert facts(task_of(started))[-1] == "task_completed"


def test_drain_runs_tasks_that_its_tasks_start(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Even if they start late and the database sends no notification."""
    settings.TASK_POLL_INTERVAL_SECONDS = 60
    coordinator = Coordinator(2, drain=True)

    def run(*_: object) -> None:
        eventually(lambda: not coordinator._hungry, what="the worker found nothing to claim")
        task_service.start_task(Echo)

    monkeypatch.setattr(Noop, "run", run)
    task_service.start_task(Noop)
    assert coordinator.run() == 2


def test_drain_rescues_tasks_of_lost_workers(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 0.2
    lost = saved(Status.RUNNING, worker=worker(hostname="gone"))
    lapse(lost, timedelta(days=1))
    drain()
    lost.refresh_from_db()
    assert (lost.status, lost.error_type) == (Status.FAILED, "WorkerLost")


def test_worker_leaves_its_row() -> None:
    drain(3, queues=["mail"])
    record = Worker.objects.get()
    assert (record.threads, record.queues) == (3, ["mail"])
    assert record.stopped_at == record.heartbeat_at


def test_every_ending_verb_has_a_writer() -> None:
    """Each writer calls the lifecycle function with the verb's name."""
    assert {verb.value: writer.__name__.strip("_") for verb, writer in WRITERS.items()} == {
        verb: verb for verb in ("complete", "fail", "cancel", "retry", "release")
    }


# Stop.


def test_worker_stopped_before_its_start_claims_nothing() -> None:
    started = task_service.start_task(Noop)
    coordinator = Coordinator(1)
    coordinator.stop()
    assert coordinator.run() == 0
    assert task_of(started).status == Status.PENDING


def test_stopped_worker_lets_tasks_finish(
    start: Start, reins: Path, log: pytest.LogCaptureFixture
) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    begins(started.task_id)
    working.coordinator.stop()
    # A claim may be in progress now, and would take the late task too.
    eventually(lambda: "is stopping" in log.text, what="it claims no more")
    late = task_service.start_task(Noop)
    reins.write_text("10")
    assert working.join() == 1
    assert task_of(started).status == Status.COMPLETED
    assert task_of(late).status == Status.PENDING


def test_after_the_grace_tasks_are_released(start: Start, reins: Path, settings: Any) -> None:
    settings.TASK_SHUTDOWN_GRACE_SECONDS = 0
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    begins(started.task_id)
    working.coordinator.stop()
    assert working.join() == 0
    task = task_of(started)
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    assert facts(task) == ["task_queued", "task_started", "task_queued"]


def test_after_the_grace_tasks_that_must_not_restart_fail(
    start: Start, reins: Path, settings: Any
) -> None:
    settings.TASK_SHUTDOWN_GRACE_SECONDS = 0
    started = task_service.start_task(StepsOnce, {"reins": reins})
    working = start()
    begins(started.task_id)
    working.coordinator.stop()
    working.join()
    task = task_of(started)
    assert (task.status, task.error_type) == (Status.FAILED, "WorkerLost")
    assert task.error_message == (
        "The worker was shut down, and this task does not start again by itself."
    )


def test_two_immediate_signals_release_unstarted_tasks(
    start: Start, reins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task is released once, although both signals cause it."""
    monkeypatch.setattr(runs, "UNBEGUN_SECONDS", 60.0)
    task_service.start_many(Noop, [{}] * 40)
    long = task_service.start_task(Steps, {"reins": reins})
    task_service.start_many(Noop, [{}] * 200)
    working = start(1)
    begins(long.task_id)
    eventually(
        lambda: any(run.began == NEVER for run in list(working.coordinator.runs.values())),
        what="it holds more tasks than it has threads",
    )
    assert working.end() == Task.objects.filter(status=Status.COMPLETED).count()
    assert not Task.objects.running().exists()


# While tasks run.


def test_progress_reaches_the_row_while_the_task_runs(start: Start, reins: Path) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    start()
    for step in (1, 2, 5):
        reins.write_text(str(step))
        eventually(
            lambda step=step: task_of(started).progress_text == f"step {step}",
            what=f"step {step}",
        )
        assert (task_of(started).status, task_of(started).progress) == (Status.RUNNING, step / 10)
    reins.write_text("10")
    ends(started.task_id)


def test_delayed_task_starts_when_due(start: Start) -> None:
    start()
    due = timezone.now() + timedelta(seconds=0.3)
    started = task_service.start_task(Noop, run_after=due)
    task = ends(started.task_id)
    assert task.started_at is not None
    assert task.started_at >= due


def test_leases_are_renewed(start: Start, reins: Path, settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 0.05
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    first = begins(started.task_id).lease_expires_at
    eventually(lambda: task_of(started).lease_expires_at > first, what="the lease is renewed")
    eventually(
        lambda: Worker.objects.get(pk=working.worker.pk).heartbeat_at > working.worker.heartbeat_at,
        what="the heart beats",
    )
    reins.write_text("10")
    ends(started.task_id)


def test_cancel_is_noticed(start: Start, reins: Path, log: Log) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    start()
    begins(started.task_id)
    task_service.cancel_task(started.task_id)
    assert ends(started.task_id).status == Status.CANCELLED
    [asked] = said(log, "is asked to cancel")
    assert asked.levelname == "INFO"


def test_timeout_is_enforced(start: Start, reins: Path, log: Log) -> None:
    started = task_service.start_task(Steps, {"reins": reins}, timeout=0.1)
    start()
    task = ends(started.task_id)
    assert (task.error_type, task.error_message) == (
        "TaskTimedOut",
        "Timed out after 0.1 s.",
    )
    [warning] = said(log, "is out of time")
    assert warning.levelname == "WARNING"


def test_failure_is_retried(start: Start, tmp_path: Path, settings: Any, log: Log) -> None:
    settings.TASK_RETRY_BACKOFF_SECONDS = 0.02
    started = task_service.start_task(FailTwice, {"ledger": tmp_path / "ledger"})
    start()
    task = ends(started.task_id)
    assert (task.status, task.attempt, task.result) == (Status.COMPLETED, 3, 3)
    assert facts(task) == [
        "task_queued",
        *["task_started", "task_retry_scheduled"] * 2,
        "task_started",
        "task_completed",
    ]
    retries = said(log, "; it will be tried again: ConnectionError: not yet")
    assert [record.levelname for record in retries] == ["ERROR", "ERROR"]


# Claims.


def test_claims_at_most_one_task_per_thread_while_tasks_are_long(start: Start, reins: Path) -> None:
    started = task_service.start_many(Steps, [{"reins": reins}] * 6)
    start(2)
    first, second = started[:2]
    begins(first.task_id)
    begins(second.task_id)
    reins.write_text("3")
    # After ten checks for changes by others it still holds no more.
    for number in range(10):
        noted = task_service.start_task(Noop, priority=-5, queue=f"q{number}")
        assert task_of(noted).status == Status.PENDING
    eventually(lambda: task_of(first).progress_text == "step 3", what="its loop went on")
    assert Task.objects.running().count() == 2
    reins.write_text("10")
    eventually(lambda: not Task.objects.unfinished().exists(), what="all have ended")


def test_claims_ahead_while_tasks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """But at most one group, because no other worker can run claimed tasks."""
    held: list[int] = []
    claim = lifecycle.claim

    def watched(by: Worker, limit: int, **options: Any) -> list[Task]:
        taken = claim(by, limit, **options)
        held.append(Task.objects.running().count())
        return taken

    monkeypatch.setattr(lifecycle, "claim", watched)
    task_service.start_many(Noop, [{}] * 1000)
    assert drain(4) == 1000
    assert held[0] == 4
    assert 4 < max(held) <= GROUP_MAX


def test_unknown_claims_are_released(start: Start, reins: Path) -> None:
    """They come from a commit whose confirmation was lost with the connection."""
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    begins(started.task_id)
    stray = saved(Status.RUNNING, worker=working.worker)
    assert ends(stray.pk).status == Status.COMPLETED
    assert facts(stray) == ["task_queued", "task_started", "task_completed"]
    assert stray.events.order_by("id")[0].data == {"reason": "released"}
    stray.refresh_from_db()
    assert stray.attempt == 1
    reins.write_text("10")
    ends(started.task_id)


def test_lost_claim_is_noticed(start: Start, reins: Path, log: Log) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    start()
    task = begins(started.task_id)
    assert lifecycle.release([claim_of(task)]) == []
    eventually(lambda: said(log, "was taken from this worker"), what="it notices")
    reins.write_text("10")
    assert ends(started.task_id).result == "done"
    assert facts(task) == [
        "task_queued", "task_started", "task_queued", "task_started", "task_completed",
    ]  # fmt: skip
    [warning] = said(log, "was taken from this worker; its further writes are refused")
    assert warning.levelname == "WARNING"


# Database trouble.

Trouble = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """Return a context manager in which the database really refuses writes."""
    if connection.vendor == "postgresql":
        return broken_connections
    options = connections["default"].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "timeout", 0.05)
    return locked_file


@contextmanager
def locked_file() -> Iterator[None]:
    """Hold the write lock in another connection for longer than the worker waits."""
    holder = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None, timeout=20)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.rollback()
        holder.close()


@contextmanager
def broken_connections() -> Iterator[None]:
    """Terminate every other session on the server."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    yield


def test_outcomes_from_an_outage_are_written_afterwards(
    start: Start, reins: Path, trouble: Trouble, log: Log
) -> None:
    failing = task_service.start_many(Steps, [{"reins": reins}] * 2)
    working = start(2)
    for one in failing:
        begins(one.task_id)
    with trouble():
        reins.write_text("10")
        waited = eventually(
            lambda: said(log, "The database does not answer"), what="it finds the database away"
        )
    for one in failing:
        task = ends(one.task_id)
        assert (task.status, task.result) == (Status.COMPLETED, "done")
        assert facts(task) == ["task_queued", "task_started", "task_completed"]
    assert waited[0].levelname == "WARNING"
    assert waited[0].getMessage().endswith("; next try in 0.1 s")
    assert working.end() == 2


def test_claims_resume_after_an_outage(
    start: Start, trouble: Trouble, reins: Path, log: Log
) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    start(2)
    begins(started.task_id)
    with trouble():
        reins.write_text("5")
        eventually(lambda: said(log, "The database does not answer"), what="it finds it away")
    later = task_service.start_task(Add, {"a": 1})
    assert ends(later.task_id).result == 3
    reins.write_text("10")
    assert ends(started.task_id).result == "done"


# Log.


def test_every_record_about_a_task_has_its_id(log: Log, start: Start, reins: Path) -> None:
    done = task_service.start_task(Noop)
    failed = task_service.start_task(Fail)
    out_of_time = task_service.start_task(Steps, {"reins": reins}, timeout=0.05)
    cancelled = task_service.start_task(Steps, {"reins": reins})
    start(4)
    begins(cancelled.task_id)
    task_service.cancel_task(cancelled.task_id)
    for one in (done, failed, out_of_time, cancelled):
        ends(one.task_id)
    eventually(lambda: said(log, "was cancelled after"), what="the last record")
    for one in (done, failed, out_of_time, cancelled):
        about = eventually(lambda one=one: (found := said(log, str(one.task_id)))[1:] and found)
        assert {record.task_id for record in about} == {str(one.task_id)}  # type: ignore[attr-defined]


def test_start_and_end_of_a_task_are_logged_as_info(log: Log) -> None:
    done = task_service.start_task(Noop, max_attempts=2)
    drain()
    first, last = said(log, str(done.task_id))
    assert (first.levelname, first.getMessage()) == (
        "INFO",
        f"Task {done.task_id} (tests.tasks.Noop) started: attempt 1 of 2",
    )
    assert last.levelname == "INFO"
    assert last.getMessage().startswith(f"Task {done.task_id} (tests.tasks.Noop) completed after ")


def test_start_and_stop_of_a_worker_are_logged_as_info(log: Log) -> None:
    task_service.start_many(Noop, [{}] * 3)
    drain(2)
    drain(2, queues=["mail", "reports"])
    record = Worker.objects.all()[0]
    lives = [
        (found.levelname, found.getMessage())
        for found in log.records
        if found.name == "tasks_app.worker" and f"Worker {record}" in found.getMessage()
        and found.levelname != "DEBUG"
    ]  # fmt: skip
    assert lives == [
        ("INFO", f"Worker {record} started: 2 threads, all queues"),
        ("INFO", f"Worker {record} stopped (tasks ended: 3)"),
        ("INFO", f"Worker {record} started: 2 threads, queues mail, reports"),
        ("INFO", f"Worker {record} stopped (tasks ended: 0)"),
    ]


def test_log_handler_that_raises_does_not_end_the_worker() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("nobody takes records")

    started = [task_service.start_task(task) for task in (Fail, Noop)]
    broken = Broken()
    logging.getLogger("tasks_app").addHandler(broken)
    try:
        assert drain() == 2
    finally:
        logging.getLogger("tasks_app").removeHandler(broken)
    assert [task_of(one).status for one in started] == [Status.FAILED, Status.COMPLETED]


def test_outage_does_not_delay_a_shutdown() -> None:
    coordinator = Coordinator(1)
    coordinator._connection = Connection(coordinator.using)
    coordinator._connection.trouble.pause = 5.0
    coordinator._connection.trouble.retry_at = time.monotonic() + 5.0
    assert coordinator._patience() > 4.0
    coordinator.shutdown.interrupt_at = time.monotonic() + 1.0
    assert coordinator._patience() <= 1.0
