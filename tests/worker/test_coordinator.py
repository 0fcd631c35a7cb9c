"""The worker's one writer, in this process; tests of real processes are in tests/processes."""

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
from tasks_app.worker import capacity
from tasks_app.worker.capacity import GROUP_MAX
from tasks_app.worker.connection import Connection
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.outcomes import WRITERS
from tasks_app.worker.run import NEVER
from tests.harness import begins, ends, eventually
from tests.more_tasks import Echo, MakesUsers, StepsOnce
from tests.rows import facts, lapse, saved, worker
from tests.tasks import Add, Burst, Fail, FailTwice, Noop, Steps, Talk
from tests.worker.conftest import Working

pytestmark = pytest.mark.django_db(transaction=True)

Start = Callable[..., Working]
Log = pytest.LogCaptureFixture


def drain(hands: int = 2, **options: Any) -> int:
    return Coordinator(hands, drain=True, **options).run()


def task_of(started: Any) -> Task:
    return Task.objects.get(pk=started.task_id)


def said(log: Log, text: str) -> list[logging.LogRecord]:
    return [record for record in log.records if text in record.getMessage()]


# Draining.


def test_a_drain_runs_all_that_is_ready_and_says_how_many() -> None:
    started = task_service.start_many(Add, [{"a": number} for number in range(50)])
    failing = task_service.start_task(Fail)
    assert drain() == 51
    for number, one in enumerate(started):
        task = task_of(one)
        assert (task.status, task.result, task.progress) == (Status.COMPLETED, number + 2, 1.0)
        assert facts(task) == ["task_queued", "task_started", "task_completed"]
    assert task_of(failing).status == Status.FAILED
    assert drain() == 0


def test_a_drain_leaves_what_is_not_due() -> None:
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


def test_the_times_of_a_history_do_not_go_back() -> None:
    """Log lines and the end of a task are written in one transaction, and bear its time."""
    started = task_service.start_task(Talk, {"lines": 3})
    drain()
    times = list(task_of(started).events.order_by("id").values_list("timestamp", flat=True))
    assert times == sorted(times)


def test_the_history_tells_how_many_lines_were_dropped(settings: Any) -> None:
    settings.TASK_MAX_LOG_LINES = 3
    started = task_service.start_task(Talk, {"lines": 5})
    drain()
    told = task_of(started).events.filter(event_type=EventType.LOG).order_by("id")
    assert [event.data for event in told] == [
        {"level": "info", "message": "line 0"},
        {"level": "warning", "message": "line 1"},
        {"level": "info", "message": "line 2"},
        {"level": "warning", "message": "2 more lines were dropped (TASK_MAX_LOG_LINES: 3)"},
    ]
    assert facts(task_of(started))[-1] == "task_completed"


def test_a_drain_runs_what_its_tasks_start(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """Also what they start late, where the database tells nothing of it."""
    settings.TASK_POLL_INTERVAL_SECONDS = 60
    coordinator = Coordinator(2, drain=True)

    def run(*_: object) -> None:
        eventually(lambda: not coordinator._hungry, what="the worker looked and found nothing")
        task_service.start_task(Echo)

    monkeypatch.setattr(Noop, "run", run)
    task_service.start_task(Noop)
    assert coordinator.run() == 2


def test_a_drain_takes_back_what_a_lost_worker_ran(settings: Any) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 0.2
    lost = saved(Status.RUNNING, worker=worker(hostname="gone"))
    lapse(lost, timedelta(days=1))
    drain()
    lost.refresh_from_db()
    assert (lost.status, lost.error_type) == (Status.FAILED, "WorkerLost")


def test_a_worker_leaves_its_record() -> None:
    drain(3, queues=["mail"])
    record = Worker.objects.get()
    assert (record.hands, record.queues) == (3, ["mail"])
    assert record.stopped_at == record.heartbeat_at


def test_what_ended_has_its_writer() -> None:
    """Every verb that ends a claim, by the function of its name."""
    assert {verb.value: writer.__name__.strip("_") for verb, writer in WRITERS.items()} == {
        verb: verb for verb in ("complete", "fail", "cancel", "retry", "release")
    }


# Stopping.


def test_a_worker_that_is_stopped_before_it_starts_claims_nothing() -> None:
    started = task_service.start_task(Noop)
    coordinator = Coordinator(1)
    coordinator.stop()
    assert coordinator.run() == 0
    assert task_of(started).status == Status.PENDING


def test_a_stopped_worker_lets_tasks_finish(
    start: Start, reins: Path, log: pytest.LogCaptureFixture
) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    begins(started.task_id)
    working.coordinator.stop()
    # A claim may be under way at this moment, and would take the late task too.
    eventually(lambda: "is stopping" in log.text, what="it claims no more")
    late = task_service.start_task(Noop)
    reins.write_text("10")
    assert working.join() == 1
    assert task_of(started).status == Status.COMPLETED
    assert task_of(late).status == Status.PENDING


def test_after_the_grace_it_releases_them(start: Start, reins: Path, settings: Any) -> None:
    settings.TASK_SHUTDOWN_GRACE_SECONDS = 0
    started = task_service.start_task(Steps, {"reins": reins})
    working = start()
    begins(started.task_id)
    working.coordinator.stop()
    assert working.join() == 0
    task = task_of(started)
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    assert facts(task) == ["task_queued", "task_started", "task_queued"]


def test_after_the_grace_it_fails_what_must_not_run_twice(
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


def test_two_signals_at_once_release_what_no_hand_has_begun(
    start: Start, reins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them once, though both signals ask for it."""
    monkeypatch.setattr(capacity, "UNBEGUN_SECONDS", 60.0)
    task_service.start_many(Noop, [{}] * 40)
    long = task_service.start_task(Steps, {"reins": reins})
    task_service.start_many(Noop, [{}] * 200)
    working = start(1)
    begins(long.task_id)
    eventually(
        lambda: any(run.began == NEVER for run in list(working.coordinator.runs.values())),
        what="it holds more than it has hands",
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


def test_a_delayed_task_starts_when_it_is_due(start: Start) -> None:
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


def test_a_cancel_is_noticed(start: Start, reins: Path, log: Log) -> None:
    started = task_service.start_task(Steps, {"reins": reins})
    start()
    begins(started.task_id)
    task_service.cancel_task(started.task_id)
    assert ends(started.task_id).status == Status.CANCELLED
    [asked] = said(log, "is asked to cancel")
    assert asked.levelname == "INFO"


def test_a_timeout_is_enforced(start: Start, reins: Path, log: Log) -> None:
    started = task_service.start_task(Steps, {"reins": reins}, timeout=0.1)
    start()
    task = ends(started.task_id)
    assert (task.error_type, task.error_message) == (
        "TaskTimedOut",
        "The task ran longer than its 0.1 s.",
    )
    [warning] = said(log, "is out of time")
    assert warning.levelname == "WARNING"


def test_a_failure_is_tried_again(start: Start, tmp_path: Path, settings: Any, log: Log) -> None:
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


def test_it_claims_no_more_than_it_has_hands_while_tasks_are_long(
    start: Start, reins: Path
) -> None:
    started = task_service.start_many(Steps, [{"reins": reins}] * 6)
    start(2)
    first, second = started[:2]
    begins(first.task_id)
    begins(second.task_id)
    reins.write_text("3")
    # Ten looks into changes of others later it holds no more.
    for number in range(10):
        noted = task_service.start_task(Noop, priority=-5, queue=f"q{number}")
        assert task_of(noted).status == Status.PENDING
    eventually(lambda: task_of(first).progress_text == "step 3", what="its loop went on")
    assert Task.objects.running().count() == 2
    reins.write_text("10")
    eventually(lambda: not Task.objects.unfinished().exists(), what="all have ended")


def test_it_claims_ahead_while_tasks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """But never more than a group: what a worker holds, no other one can run."""
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


def test_it_releases_claims_that_it_knows_nothing_of(start: Start, reins: Path) -> None:
    """Those of a commit whose answer was lost with the connection."""
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


def test_it_notices_that_a_claim_was_taken_from_it(start: Start, reins: Path, log: Log) -> None:
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
    [warning] = said(log, "was taken from this worker; what it still does is void")
    assert warning.levelname == "WARNING"


# Trouble with the database.

Trouble = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """The database answers nobody who writes; made by what really does it."""
    if connection.vendor == "postgresql":
        return broken_connections
    options = connections["default"].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "timeout", 0.05)
    return locked_file


@contextmanager
def locked_file() -> Iterator[None]:
    """Another process writes, for longer than the worker waits."""
    holder = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None, timeout=20)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.rollback()
        holder.close()


@contextmanager
def broken_connections() -> Iterator[None]:
    """The server ends every session but this one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    yield


def test_what_was_delivered_while_the_database_was_away_is_written_afterwards(
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


def test_it_claims_again_once_the_database_is_back(
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


# Its log.


def test_every_record_of_a_task_bears_its_id(log: Log, start: Start, reins: Path) -> None:
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


def test_the_life_of_a_task_is_information(log: Log) -> None:
    done = task_service.start_task(Noop, max_attempts=2)
    drain()
    first, last = said(log, str(done.task_id))
    assert (first.levelname, first.getMessage()) == (
        "INFO",
        f"Task {done.task_id} (tests.tasks.Noop) started: attempt 1 of 2",
    )
    assert last.levelname == "INFO"
    assert last.getMessage().startswith(f"Task {done.task_id} (tests.tasks.Noop) completed after ")


def test_the_life_of_the_worker_is_information(log: Log) -> None:
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
        ("INFO", f"Worker {record} started: 2 hands, all queues"),
        ("INFO", f"Worker {record} stopped (tasks ended: 3)"),
        ("INFO", f"Worker {record} started: 2 hands, queues mail, reports"),
        ("INFO", f"Worker {record} stopped (tasks ended: 0)"),
    ]


def test_a_log_handler_that_raises_ends_no_worker() -> None:
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


def test_a_database_that_is_away_delays_no_step_of_a_shutdown() -> None:
    coordinator = Coordinator(1)
    coordinator._connection = Connection(coordinator.using)
    coordinator._connection.trouble.pause = 5.0
    coordinator._connection.trouble.retry_at = time.monotonic() + 5.0
    assert coordinator._patience() > 4.0
    coordinator.shutdown.interrupt_at = time.monotonic() + 1.0
    assert coordinator._patience() <= 1.0
