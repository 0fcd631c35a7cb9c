"""Code that does not stop when asked: its thread, its event loop and its queries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, ProgrammingError, connection, transaction

from tasks_app.exceptions import TaskCancelled, TaskInterrupted
from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker.interruption import InterruptibleSection, Queries, discard, end_left_behind
from tasks_app.worker.stopping import ExitCode, enforce
from tasks_app.worker.threads import Pool
from tests.harness import begins, ends, eventually
from tests.rows import facts, last_fact, saved
from tests.stubborn_tasks import (
    Awaits,
    CleansUp,
    CountsUsers,
    LogsInALoop,
    QueriesForEver,
    Spins,
    SpinsAsync,
    SpinsInTransaction,
    SpinsShielded,
    Surroundings,
    SwallowsAll,
    WaitsInALoop,
)
from tests.tasks import Add
from tests.worker.conftest import Working
from tests.worker.runs import made

pytestmark = pytest.mark.django_db(transaction=True)

Start = Callable[..., Working]
Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def impatient(settings: Any) -> None:
    settings.TASK_INTERRUPT_GRACE_SECONDS = 0.2
    settings.TASK_HEARTBEAT_SECONDS = 0.2


@pytest.fixture
def until(tmp_path: Path) -> Any:
    """The file that ends tasks which nothing else can end."""
    path = tmp_path / "until"
    yield path
    path.touch()


def cancel_running(task: Any, **params: Any) -> Task:
    """Start a task, cancel it while it runs, and wait for its end."""
    started = task_service.start_task(task, params)
    begins(started.task_id)
    task_service.cancel_task(started.task_id)
    return ends(started.task_id)


@pytest.fixture
def patient(settings: Any) -> None:
    """Give a thread on a busy machine enough time to end by itself."""
    settings.TASK_INTERRUPT_GRACE_SECONDS = 1


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("task", [Spins, LogsInALoop])
def test_code_without_progress_calls_is_interrupted(task: Any, start: Start, log: Log) -> None:
    log.set_level(logging.INFO, "tests.stubborn")
    working = start(threads=1)
    ended = cancel_running(task)
    assert (ended.status, ended.stuck) == (Status.CANCELLED, False)
    assert "was interrupted in its thread" in log.text
    # The thread can be used again.
    again = task_service.start_task(Add, {"a": 40})
    assert ends(again.task_id).result == 42
    assert working.coordinator.pool.stuck == 0


def test_waiting_code_is_interrupted(start: Start, tmp_path: Path, settings: Any) -> None:
    """Waiting for an event loop, a query or a notification holds no lock."""
    settings.TASK_INTERRUPT_GRACE_SECONDS = 2
    working = start(threads=8)
    notes = [tmp_path / "by_asgiref", tmp_path / "by_asyncio"]
    tasks = [
        task_service.start_task(Awaits, {"note": notes[0]}),
        task_service.start_task(Awaits, {"note": notes[1], "by_asgiref": False}),
        task_service.start_task(SpinsAsync),
        task_service.start_task(WaitsInALoop),
        task_service.start_task(QueriesForEver),
        task_service.start_task(QueriesForEver, {"by_asyncio": True}),
    ]
    neighbour = task_service.start_task(QueriesForEver)
    for task in [*tasks, neighbour]:
        begins(task.task_id)
    for task in tasks:
        task_service.cancel_task(task.task_id)
    ended = [ends(task.task_id) for task in tasks]
    assert [(task.status, task.stuck) for task in ended] == [(Status.CANCELLED, False)] * 6
    assert [note.read_text() for note in notes] == ["cleaned up"] * 2
    # No other query was cancelled, and the threads can be used again.
    assert Task.objects.get(pk=neighbour.task_id).status == Status.RUNNING
    assert [ends(task_service.start_task(CountsUsers).task_id).result for _ in range(8)] == [0] * 8
    task_service.cancel_task(neighbour.task_id)
    assert not ends(neighbour.task_id).stuck
    assert working.coordinator.pool.stuck == 0


def test_late_interruption_still_gives_the_full_grace() -> None:
    """The worker was busy, or the thread ran code that must not be interrupted."""
    run = made(Spins)
    pool = Pool(0, lambda outcome: None)

    def spin() -> None:
        run.section.enter()
        try:
            while True:
                pass
        except TaskInterrupted:
            run.section.leave()

    thread = threading.Thread(target=spin)
    thread.start()
    eventually(lambda: run.section.thread, what="the thread has begun")
    run.stop(TaskCancelled(), grace=5.0)
    late = run.abandon_at + 60
    assert enforce([run], pool, late) == []
    assert run.section.interrupted
    assert run.abandon_at == late + 5.0
    thread.join(10)
    assert enforce([run], pool, run.abandon_at) == []


@pytest.mark.usefixtures("patient")
def test_clean_up_of_an_interrupted_task_runs(start: Start, tmp_path: Path) -> None:
    start(threads=1)
    note = tmp_path / "note"
    assert cancel_running(CleansUp, note=note).status == Status.CANCELLED
    assert note.read_text() == "cleaned up"


@pytest.mark.usefixtures("patient")
def test_timeout_interrupts_too(start: Start) -> None:
    start(threads=1)
    started = task_service.start_task(Spins, timeout=0.2)
    ended = ends(started.task_id)
    assert (ended.status, ended.error_type, ended.stuck) == (Status.FAILED, "TaskTimedOut", False)
    assert ended.error_message == "Timed out after 0.2 s."


def test_slow_import_of_a_task_does_not_block_others(
    start: Start, tmp_path: Path, until: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """The task times out and the worker continues, because only the task's thread imports."""
    settings.TASK_INTERRUPT_GRACE_SECONDS = 0.1
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\n"
        f"while not pathlib.Path({str(until)!r}).exists(): time.sleep(0.01)\n"
        f"from tests.tasks import Noop as Slow\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    working = start(threads=2)
    slow = saved(name="slow_to_import.Slow", timeout_seconds=0.2)
    ended = ends(slow.pk)
    assert (ended.status, ended.error_type, ended.stuck) == (Status.FAILED, "TaskTimedOut", True)
    assert ends(task_service.start_task(Add, {"a": 40}).task_id).result == 42
    until.touch()
    eventually(lambda: working.coordinator.pool.stuck == 0, what="the import ends after all")


def test_context_of_a_task_does_not_reach_the_next(start: Start) -> None:
    start(threads=1)
    before = ends(task_service.start_task(Surroundings).task_id).result
    ends(task_service.start_task(Surroundings, {"change": True}).task_id)
    assert ends(task_service.start_task(Surroundings).task_id).result == before


@pytest.mark.parametrize("by_class", [True, False])
def test_interruption_can_be_disabled(
    by_class: bool, start: Start, settings: Any, log: Log
) -> None:
    # Only their loop is left of these threads. The process must not wait for them.
    settings.TASK_INTERRUPT = by_class
    working = start(threads=1)
    ended = cancel_running(SpinsShielded if by_class else Spins)
    assert (ended.status, ended.stuck) == (Status.CANCELLED, True)
    assert "was interrupted" not in log.text
    end_stuck(working)


def test_task_that_catches_everything_is_abandoned(start: Start, until: Path, log: Log) -> None:
    working = start(threads=1)
    started = task_service.start_task(SwallowsAll, {"until": until})
    begins(started.task_id)
    task_service.cancel_task(started.task_id)
    ended = ends(started.task_id)
    assert (ended.status, ended.stuck, ended.result) == (Status.CANCELLED, True, None)
    assert last_fact(ended).data["stuck"] is True
    assert "does not stop; its thread is given up as stuck" in log.text
    eventually(lambda: Worker.objects.get().stuck == 1, what="its worker tells of it")
    # A new thread has taken its place.
    assert ends(task_service.start_task(Add, {"a": 40}).task_id).result == 42
    before = Task.objects.filter(pk=ended.pk).values().get()
    until.touch()
    eventually(lambda: working.coordinator.pool.stuck == 0, what="the thread ends after all")
    eventually(lambda: Worker.objects.get().stuck == 0, what="its worker tells of that, too")
    assert Task.objects.filter(pk=ended.pk).values().get() == before
    assert facts(ended)[-1] == "task_cancelled"


def test_abandoned_timed_out_task_is_not_retried(start: Start, until: Path) -> None:
    start(threads=1)
    started = task_service.start_task(SwallowsAll, {"until": until}, timeout=0.2, max_attempts=3)
    ended = ends(started.task_id)
    assert (ended.status, ended.error_type, ended.attempt) == (Status.FAILED, "TaskTimedOut", 1)
    assert ended.stuck


def test_too_many_stuck_threads_end_the_worker(
    start: Start, until: Path, settings: Any, log: Log
) -> None:
    settings.TASK_MAX_STUCK = 2
    working = start(threads=3)
    other = task_service.start_task("tests.tasks.Deaf", {"until": until})
    begins(other.task_id)
    for _ in range(2):
        cancel_running(SwallowsAll, until=until)
    eventually(lambda: working.coordinator.exit is ExitCode.RECYCLE, what="it recycles")
    waiting = task_service.start_task(Add, {"a": 1})
    assert "has 2 stuck threads: it claims no more, and ends with code 75" in log.text
    assert Task.objects.get(pk=other.task_id).status == Status.RUNNING
    until.touch()
    working.join()
    assert Task.objects.get(pk=other.task_id).status == Status.COMPLETED
    assert Task.objects.get(pk=waiting.task_id).status == Status.PENDING
    assert Worker.objects.get().stopped_at is not None


def test_interrupted_transaction_is_rolled_back(start: Start, owner: User) -> None:
    """On SQLite it held the lock that all writers need, including its own worker."""
    start(threads=1)
    started = task_service.start_task(SpinsInTransaction, timeout=0.5)
    assert ends(started.task_id).error_type == "TaskTimedOut"
    # The same thread continues with a working connection.
    made = task_service.start_task("tests.more_tasks.MakesUsers", {"names": ["ben"]})
    assert ends(made.task_id).status == Status.COMPLETED
    assert User.objects.filter(username="ben").exists()


# The section by itself.


def test_left_stretch_is_not_interrupted() -> None:
    section = InterruptibleSection()
    section.enter()
    section.leave()
    assert section.interrupt(TaskCancelled)
    assert not section.interrupted
    assert not section.abandon()


def test_stretch_not_entered_is_not_interrupted() -> None:
    section = InterruptibleSection()
    assert section.interrupt(TaskCancelled)
    assert not section.interrupted


def test_thread_outside_task_code_is_not_interrupted_yet() -> None:
    section = InterruptibleSection()
    section.enter()
    try:
        assert not section.interrupt(TaskCancelled)
    finally:
        section.leave()


def test_exception_never_arrives_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is raised just before the thread leaves, it arrives there or not at all."""
    monkeypatch.setattr("tasks_app.worker.interruption._is_shielded", lambda thread: False)
    surfaced = after = 0

    def one() -> None:
        nonlocal surfaced, after
        section = InterruptibleSection()
        section.enter()
        interrupter = threading.Thread(target=section.interrupt, args=[TaskCancelled])
        try:
            try:
                interrupter.start()
                for _ in range(200):
                    pass
                section.leave()
            except TaskInterrupted:
                surfaced += 1
                section.leave()
        except TaskInterrupted:
            after += 1
        interrupter.join()

    def many() -> None:
        nonlocal after
        try:
            for _ in range(500):
                one()
        except TaskInterrupted:
            after += 1

    thread = threading.Thread(target=many)
    thread.start()
    thread.join()
    assert after == 0
    assert surfaced > 0


def end_stuck(working: Working) -> None:
    """End threads that only an exception can end."""
    for thread in working.coordinator.pool._stuck:
        section = InterruptibleSection()
        section.thread, section.entered = thread, True
        assert eventually(lambda one=section: one.interrupt(TaskCancelled), what="it can be hit")
        thread.join(10)
        assert not thread.is_alive()


# Queries and connections.


FOR_EVER = "n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def test_thread_of_a_running_task_is_not_rolled_back() -> None:
    """It belongs to no run, so its owner is unknown."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1").fetchall()
            begun.set()
            done.wait(30)
        connection.close()

    thread = threading.Thread(target=work, name="own")
    thread.start()
    try:
        assert begun.wait(30)
        assert end_left_behind([Queries()]) == []
    finally:
        done.set()
        thread.join()


@pytest.mark.once
@pytest.mark.parametrize("rows_unread", [False, True])
@pytest.mark.parametrize("query_runs", [False, True])
def test_transaction_of_an_ended_task_releases_its_lock(
    rows_unread: bool, query_runs: bool
) -> None:
    """The thread may be doing anything, and continues."""
    begun, done = threading.Event(), threading.Event()
    failed: list[str] = []

    def work() -> None:
        try:
            with transaction.atomic():
                User.objects.create(username="left open")
                with connection.cursor() as many, connection.cursor() as other:
                    many.execute(f"WITH RECURSIVE {FOR_EVER} SELECT i FROM n")
                    many.fetchone() if rows_unread else many.close()
                    if query_runs:
                        connection.connection.set_progress_handler(begun.set, 1000)
                        with suppress(OperationalError):
                            other.execute(f"WITH RECURSIVE {FOR_EVER} SELECT count(*) FROM n")
                    begun.set()
                    done.wait(30)
        except ProgrammingError as error:
            failed.append(str(error))
        connection.close()

    thread = threading.Thread(target=work, name="left-behind")
    thread.start()
    try:
        assert begun.wait(30)
        assert end_left_behind([]) == ["left-behind"]
        # Waits for the lock up to the site's timeout.
        User.objects.create(username="written")
    finally:
        done.set()
        thread.join()
    assert failed == ["Cannot operate on a closed database."]
    assert [user.username for user in User.objects.all()] == ["written"]


def test_discarded_connection_does_not_return_to_a_pool() -> None:
    """SQLite has no pool, and an in-memory database would be lost with its connection."""
    connection.ensure_connection()
    discard()
    assert connection.is_usable() is (connection.vendor == "sqlite")
    connection.close()
