"""A database that refuses writes, and the workers and pages that wait for it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.harness import Process, Viewer, Web, begins, database_url, ends, eventually
from tests.rows import facts, saved
from tests.stubborn_tasks import (
    CopiesDatabase,
    HoldsLock,
    LargeLater,
    LeavesTransaction,
    StuckInExecutor,
    SwallowsAll,
)
from tests.tasks import Deaf, Noop, Steps

Start = Callable[..., Process]

#: Leases that expire soon compared with the locks that the tests hold.
BRIEF = {"TASK_LEASE_SECONDS": "1", "TASK_HEARTBEAT_SECONDS": "0.3"}
#: For two workers: a worker that a busy machine delays for a second is not lost.
SHARED = {"TASK_LEASE_SECONDS": "3", "TASK_HEARTBEAT_SECONDS": "1.5"}
#: Leases that do not expire.
LASTING = {"TASK_LEASE_SECONDS": "60", "TASK_HEARTBEAT_SECONDS": "2"}


def expired(task: Task) -> bool:
    task.refresh_from_db()
    assert task.status == Status.RUNNING
    assert task.lease_expires_at is not None
    return (timezone.now() - task.lease_expires_at).total_seconds() > 3


def test_task_that_holds_the_write_lock_past_its_lease_is_not_rescued(
    start_worker: Start,
    start_web: Callable[..., Web],
    watch: Callable[..., Viewer],
    owner: User,
    tmp_path: Path,
) -> None:
    """On PostgreSQL only rows are locked, so nothing happens."""
    take, until = tmp_path / "take", tmp_path / "until"
    holder = start_worker("--max-workers", "2", **SHARED)
    web = start_web(TASK_STREAM_KEEPALIVE_SECONDS="0.5")
    started = task_service.start_task(HoldsLock, {"take": take, "until": until}, owner=owner)
    viewer = watch(f"{web.url}{started.stream_url}")
    task = begins(started.task_id)
    other = start_worker(**SHARED)
    take.touch()
    if connection.vendor == "sqlite":
        eventually(lambda: expired(task), what="its lease runs out")
        assert "a transaction has held SQLite's write lock" in holder.output
        # The page gets keep-alives and nothing else.
        seen = len(viewer.events)
        eventually(lambda: len(viewer.events) > seen + 2, what="the stream says that it lives")
        assert not {"task_completed", "task_failed"} & set(viewer.facts)
    until.touch()
    ended = ends(started.task_id)
    assert (ended.status, ended.attempt, ended.result) == (Status.COMPLETED, 1, "done")
    assert facts(ended) == ["task_queued", "task_started", "task_log", "task_completed"]
    assert viewer.finish().types.count("task_completed") == 1
    assert "was taken back" not in holder.output + other.output
    assert User.objects.filter(username="written early").exists()


@pytest.mark.once
def test_thread_left_in_a_transaction_does_not_block_the_site(
    start_worker: Start, tmp_path: Path
) -> None:
    """SQLite has a single write lock. The thread would hold it until its process ends."""
    note = tmp_path / "note"
    worker = start_worker(**BRIEF)
    leaves = task_service.start_task(LeavesTransaction, {"note": note})
    assert ends(leaves.task_id).status == Status.COMPLETED
    assert "the transaction was rolled back that thread left-behind_0 of an ended" in worker.output
    assert ends(task_service.start_task(Noop).task_id).status == Status.COMPLETED
    # The thread learns that its commit failed.
    note.touch()
    eventually(lambda: note.read_text() == "not committed", what="its commit fails")
    assert not User.objects.exists()
    # Python would wait for the thread.
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """The worker's disk, which a test can fill and clear."""
    disk = Disk(tmp_path / "full")
    yield disk
    disk.clear()


class Disk:
    """A simulated disk for workers with the settings `tests.small_disk`.

    On SQLite its page limit gives the same error as a full disk. On PostgreSQL a full disk would
    stop the server, so a trigger raises the error.
    """

    def __init__(self, path: Path) -> None:
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tests.small_disk",
            "TEST_DISK_FULL": str(path),
        }
        self._path = path

    def fill(self) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(FULL)
        self._path.touch()

    def clear(self) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("DROP FUNCTION IF EXISTS no_room CASCADE")
        self._path.unlink(missing_ok=True)


FULL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'database or disk is full' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON tasks_app_taskevent
    FOR EACH ROW EXECUTE FUNCTION no_room();
"""


def test_outcome_on_a_full_disk_is_written_when_there_is_space(
    start_worker: Start, disk: Disk, tmp_path: Path
) -> None:
    if connection.vendor == "sqlite":
        # Leave no free pages in the file, where the outcome would still fit.
        with closing(sqlite3.connect(connection.settings_dict["NAME"])) as database:
            database.execute("VACUUM")
    until = tmp_path / "until"
    worker = start_worker(**BRIEF, **disk.environment)
    started = task_service.start_task(LargeLater, {"until": until})
    begins(started.task_id)
    disk.fill()
    until.touch()
    worker.says("database or disk is full")
    worker.says("; 1 outcomes wait")
    assert Task.objects.get(pk=started.task_id).status == Status.RUNNING
    disk.clear()
    ended = ends(started.task_id)
    assert (ended.status, ended.attempt, len(ended.result)) == (Status.COMPLETED, 1, 900_000)
    worker.says("The database answers again")


class Lock:
    """Another session that holds what every write to a task waits for."""

    def __init__(self) -> None:
        if connection.vendor == "sqlite":
            name = connection.settings_dict["NAME"]
            self._outsider: Any = sqlite3.connect(name, isolation_level=None)
            self._take = "BEGIN IMMEDIATE"
        else:
            self._outsider = psycopg.connect(database_url())
            self._take = "LOCK TABLE tasks_app_task, tasks_app_worker IN EXCLUSIVE MODE"

    def take(self) -> None:
        self._outsider.execute(self._take)

    def give_back(self) -> None:
        self._outsider.rollback()

    def close(self) -> None:
        self._outsider.close()


@pytest.fixture
def lock() -> Iterator[Lock]:
    with closing(Lock()) as outsider:
        yield outsider


def test_worker_that_finds_the_database_locked_waits_and_starts(
    start_worker: Start, lock: Lock
) -> None:
    lock.take()
    worker = start_worker(ready=False, **BRIEF)
    worker.says("The database does not answer")
    lock.give_back()
    started = task_service.start_task(Noop)
    assert ends(started.task_id).status == Status.COMPLETED


def test_worker_that_cannot_release_its_tasks_still_ends(
    start_worker: Start, lock: Lock, tmp_path: Path
) -> None:
    """The exit code reports it. The leases expire, and others rescue the tasks."""
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="0.1", **BRIEF)
    started = task_service.start_task(Deaf, {"until": tmp_path / "until"})
    begins(started.task_id)
    lock.take()
    worker.send(signal.SIGTERM)
    worker.says("with 1 tasks not released")
    assert worker.wait() == 74


@pytest.mark.parametrize("completes", [True, False])
def test_task_that_ends_while_its_release_waits_is_not_run_again(
    start_worker: Start, lock: Lock, tmp_path: Path, completes: bool
) -> None:
    until = tmp_path / "until"
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="0.1", **BRIEF)
    started = task_service.start_task(Deaf, {"until": until})
    task = begins(started.task_id)
    lock.take()
    worker.send(signal.SIGTERM)
    worker.says("; 1 outcomes wait")
    if completes:
        until.touch()
        eventually(until.with_suffix(".heard").exists, what="it ends")
        tries = worker.output.count("; 1 outcomes wait")
        eventually(lambda: worker.output.count("; 1 outcomes wait") > tries)
    lock.give_back()
    assert worker.wait() == 0, worker.output
    task.refresh_from_db()
    assert facts(task)[2:] == ["task_completed" if completes else "task_queued"]
    assert task.attempt == int(completes)
    assert "was taken from this worker" not in worker.output


def test_completed_task_does_not_time_out_during_an_outage(
    start_worker: Start, lock: Lock, tmp_path: Path
) -> None:
    until, seconds = tmp_path / "until", 5
    worker = start_worker(**LASTING)
    started = task_service.start_task(Deaf, {"until": until}, timeout=seconds)
    begins(started.task_id)
    lock.take()
    until.touch()
    worker.says("; 1 outcomes wait")
    over = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > over, what="its time is over")
    tries = worker.output.count("does not answer")
    eventually(lambda: worker.output.count("does not answer") > tries + 1)
    lock.give_back()
    assert ends(started.task_id).status == Status.COMPLETED
    assert "out of time" not in worker.output


@pytest.mark.parametrize("task", [SwallowsAll, StuckInExecutor])
def test_too_many_stuck_threads_set_the_exit_code(
    start_worker: Start, tmp_path: Path, task: Any
) -> None:
    """Even if Python would wait for the threads."""
    until = tmp_path / "until"
    worker = start_worker(
        TASK_INTERRUPT_GRACE_SECONDS="0.2", TASK_MAX_STUCK="1", TASK_HEARTBEAT_SECONDS="0.5"
    )
    started = task_service.start_task(task, {"until": until})
    begins(started.task_id)
    task_service.cancel_task(started.task_id)
    assert worker.wait() == 75
    assert ends(started.task_id).stuck
    assert Worker.objects.get(pid=worker.pid).stuck == 1


def back_up(database: str | Path, to: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)


STATUSES = "SELECT status FROM tasks_app_task ORDER BY priority"


@pytest.mark.once
def test_worker_ends_if_its_database_file_is_cut_off(
    processes: list[Process], reins: Path, tmp_path: Path
) -> None:
    """A task's copy of the file drops the worker's locks.

    The next process to close the file then deletes the -wal file.
    """
    task_service.start_task(CopiesDatabase, {"to": tmp_path / "backup"}, priority=2)
    running = task_service.start_task(Steps, {"reins": reins}, priority=1)
    waiting = task_service.start_task(Noop)
    path = tmp_path / "own.sqlite3"

    def ask(query: str) -> list[Any]:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            return database.execute(query).fetchall()

    back_up(connection.settings_dict["NAME"], path)
    worker = Process(
        ["manage.py", "run_tasks", "--max-workers", "1"],
        tmp_path / "log",
        DATABASE_URL=f"sqlite:///{path}",
        TASK_HEARTBEAT_SECONDS="0.5",
    )
    processes.append(worker)
    worker.says(f"Task {running.task_id} (tests.tasks.Steps) started")
    assert eventually(lambda: ask(STATUSES) and worker.process.poll(), what="it ends") == 72
    assert "own.sqlite3-wal was deleted while it was open" in worker.output
    assert f"Not recorded: task {running.task_id} (tests.tasks.Steps)" in worker.output
    # The state that other processes see.
    assert ask(STATUSES)[1:] == [("running",), ("completed",)]
    assert f"Task {waiting.task_id} (tests.tasks.Noop) completed" not in worker.output


@pytest.mark.once
def test_streams_continue_in_a_restored_file(
    start_web: Callable[..., Web],
    watch: Callable[..., Viewer],
    owner: User,
    cookie: str,
    tmp_path: Path,
) -> None:
    task = saved(Status.RUNNING, owner=owner, progress_text="before")
    path, backup = tmp_path / "own.sqlite3", tmp_path / "backup.sqlite3"
    back_up(connection.settings_dict["NAME"], path)
    back_up(path, backup)
    with closing(sqlite3.connect(backup)) as database, database:
        database.execute("UPDATE tasks_app_task SET progress_text = 'restored', progress = 0.5")
    web = start_web(DATABASE_URL=f"sqlite:///{path}")
    viewer = watch(f"{web.url}/tasks/{task.pk}/stream/")
    assert viewer.sees("task_status")["data"]["progress"]["text"] == "before"
    for file in (f"{path}-wal", f"{path}-shm"):
        Path(file).unlink()
    os.replace(backup, path)
    eventually(lambda: viewer.values(task.pk)[-1:] == [0.5], what="it gets the restored progress")
    web.says("own.sqlite3 was replaced by another file while it was open; streams continue")
