"""Noticing commits, with real files and real commits of other connections."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

from tasks_app.notify import Changes, announce, watch
from tasks_app.notify import sqlite as sqlite_module
from tasks_app.notify.postgresql import PostgreSQLChanges
from tasks_app.notify.sqlite import SQLiteChanges
from tests.harness import eventually

#: Longer than any event takes that these tests expect immediately.
LONG = 20.0
#: Long enough to see that nothing happens.
SHORT = 0.1


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection to the file, like that of another process."""
    found = sqlite3.connect(
        tmp_path / "some.sqlite3", isolation_level=None, check_same_thread=False, timeout=5
    )
    found.execute("PRAGMA journal_mode = WAL")
    found.execute("CREATE TABLE t (x)")
    yield found
    found.close()


#: "kernel" uses inotify. "timer" is for other systems, and if the host has no inotify watches left.
@pytest.fixture(params=["kernel", "timer"])
def changes(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    writer: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SQLiteChanges]:
    if request.param == "timer":
        monkeypatch.setattr(sys, "platform", "darwin")
    with SQLiteChanges(str(tmp_path / "some.sqlite3")) as watched:
        assert not watched.wait(0)
        yield watched


def write(writer: sqlite3.Connection) -> None:
    writer.execute("INSERT INTO t VALUES (1)")


def seconds(call: Callable[[], Any]) -> float:
    before = time.monotonic()
    call()
    return time.monotonic() - before


def meanwhile(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


# SQLite.


def test_commit_between_two_waits_ends_the_second(
    changes: SQLiteChanges, writer: sqlite3.Connection
) -> None:
    write(writer)
    assert changes.wait(LONG)
    assert not changes.wait(0)
    write(writer)
    write(writer)
    assert changes.wait(0)
    assert not changes.wait(SHORT)


def test_commit_ends_a_wait(changes: SQLiteChanges, writer: sqlite3.Connection) -> None:
    for _ in range(20):
        thread = meanwhile(lambda: write(writer))
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        thread.join()
    assert not changes.wait(SHORT)


def test_transaction_counts_at_its_commit(
    changes: SQLiteChanges, writer: sqlite3.Connection
) -> None:
    writer.execute("BEGIN IMMEDIATE")
    write(writer)
    assert not changes.wait(SHORT)
    writer.execute("COMMIT")
    assert changes.wait(LONG)


def test_rollback_does_not_count(changes: SQLiteChanges, writer: sqlite3.Connection) -> None:
    writer.execute("BEGIN IMMEDIATE")
    write(writer)
    writer.execute("ROLLBACK")
    assert not changes.wait(SHORT)


def test_file_with_an_exclusive_lock_can_be_watched(tmp_path: Path) -> None:
    """A worker that starts now waits elsewhere, as it does when the database is down."""
    path = str(tmp_path / "locked.sqlite3")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("CREATE TABLE t (x)")
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with (
            closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError),
        ):
            other.execute("PRAGMA data_version").fetchone()
        with SQLiteChanges(path) as changes:
            assert changes.wait(0)


def test_read_does_not_count(changes: SQLiteChanges, writer: sqlite3.Connection) -> None:
    writer.execute("SELECT * FROM t").fetchall()
    assert not changes.wait(SHORT)


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_commits_are_noticed_after_a_checkpoint(
    changes: SQLiteChanges, writer: sqlite3.Connection, mode: str
) -> None:
    write(writer)
    assert changes.wait(LONG)
    writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
    changes.wait(0)
    for _ in range(3):
        write(writer)
        assert changes.wait(LONG)
    assert not changes.wait(SHORT)


def test_commits_are_noticed_after_the_wal_was_deleted(
    changes: SQLiteChanges, writer: sqlite3.Connection, tmp_path: Path
) -> None:
    """Open connections continue to write to the deleted file, and inotify does not report it."""
    (tmp_path / "some.sqlite3-wal").unlink()
    for _ in range(3):
        write(writer)
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2


def test_commits_are_noticed_without_wal_mode(tmp_path: Path) -> None:
    path = tmp_path / "rollback.sqlite3"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("CREATE TABLE t (x)")
    with SQLiteChanges(str(path)) as changes:
        assert not changes.wait(SHORT)
        write(writer)
        assert changes.wait(LONG)
        assert not changes.wait(SHORT)
    writer.close()


def test_commits_that_the_kernel_does_not_report_are_noticed(
    writer: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network share. A periodic check notices them."""
    monkeypatch.setattr(sqlite_module, "SAFETY_SECONDS", 0.02)
    with SQLiteChanges(str(tmp_path / "some.sqlite3")) as changes:
        if changes._inotify is not None:
            changes._inotify.rm_watch(1)  # The kernel numbers watches from 1.
            changes._inotify.read(timeout=0)
        thread = meanwhile(lambda: write(writer))
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_timer_is_used_if_no_inotify_watches_are_left(
    writer: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no descriptor is left open, which would cause a ResourceWarning."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(sqlite_module.INotify, "add_watch", refuse)
    with SQLiteChanges(str(tmp_path / "some.sqlite3")) as changes:
        write(writer)
        assert seconds(lambda: changes.wait(LONG)) < LONG / 2
    gc.collect()
    assert unraisable == []


# Any database.


@pytest.fixture
def timer(settings: Any) -> Iterator[Changes]:
    """Changes of a database without notifications, with a very long interval."""
    settings.TASK_POLL_INTERVAL_SECONDS = LONG * 2
    with Changes() as changes:
        assert changes.wait(0)
        yield changes


@pytest.fixture(params=["timer", "kernel"])
def any_changes(
    request: pytest.FixtureRequest, timer: Changes, tmp_path: Path, writer: sqlite3.Connection
) -> Iterator[Changes]:
    """Both kinds of changes, with no commits."""
    if request.param == "timer":
        yield timer
    else:
        with SQLiteChanges(str(tmp_path / "some.sqlite3")) as changes:
            yield changes


def test_wait_ends_at_its_timeout(any_changes: Changes) -> None:
    assert SHORT * 0.9 < seconds(lambda: any_changes.wait(SHORT)) < LONG / 2
    assert not any_changes.wait(0)
    assert not any_changes.wait(-1)


def test_wake_ends_a_wait(any_changes: Changes) -> None:
    for _ in range(20):
        thread = meanwhile(any_changes.wake)
        assert seconds(lambda: any_changes.wait(LONG)) < LONG / 2
        thread.join()


def test_many_wakes_end_only_the_next_wait(any_changes: Changes) -> None:
    for _ in range(1000):
        any_changes.wake()
    assert seconds(lambda: any_changes.wait(LONG)) < LONG / 2
    assert seconds(lambda: any_changes.wait(SHORT)) > SHORT * 0.9


class Woken:
    """A socket that gets another wake just as it is read."""

    def __init__(self, wake: Callable[[], None], whole: socket.socket) -> None:
        self.wake = wake
        self.whole = whole

    def fileno(self) -> int:
        return self.whole.fileno()

    def recv(self, size: int) -> bytes:
        self.wake()
        return self.whole.recv(size)


def test_wake_during_a_read_of_the_last_one_is_not_lost(
    any_changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(any_changes, "_woken", Woken(any_changes.wake, any_changes._woken))
        any_changes.wake()
        any_changes.pause(LONG)
    any_changes.pause(0)
    any_changes.wake()
    assert seconds(lambda: any_changes.pause(LONG)) < LONG / 2


def test_wake_is_not_a_commit(any_changes: Changes) -> None:
    any_changes.wake()
    assert not any_changes.wait(LONG)


def test_signal_handler_may_wake(any_changes: Changes) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: any_changes.wake())
    try:
        thread = meanwhile(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert seconds(lambda: any_changes.wait(LONG)) < LONG / 2
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_pause_ends_at_its_timeout_or_wake(any_changes: Changes) -> None:
    assert seconds(lambda: any_changes.pause(SHORT)) > SHORT * 0.9
    any_changes.wake()
    assert seconds(lambda: any_changes.pause(LONG)) < LONG / 2
    any_changes.pause(-1)


def test_commit_does_not_end_a_pause(changes: SQLiteChanges, writer: sqlite3.Connection) -> None:
    write(writer)
    assert seconds(lambda: changes.pause(SHORT)) > SHORT * 0.9
    assert changes.wait(0)


def test_wake_after_close_does_nothing(any_changes: Changes) -> None:
    any_changes.close()
    any_changes.wake()


def test_close_releases_descriptors(writer: sqlite3.Connection, tmp_path: Path) -> None:
    """Compares the lowest free descriptor."""

    def lowest() -> int:
        with socket.socket() as probe:
            return probe.fileno()

    gc.collect()
    before = lowest()
    for _ in range(5):
        with SQLiteChanges(str(tmp_path / "some.sqlite3")), Changes():
            pass
    # Descriptors left by others may be collected during the test.
    assert lowest() <= before


# The timer.


def test_timer_reports_a_possible_change_at_its_interval(settings: Any) -> None:
    settings.TASK_POLL_INTERVAL_SECONDS = 1
    with Changes() as changes:
        assert changes.wait(LONG)
        # The interval began before the first wait ended.
        assert SHORT < seconds(lambda: changes.wait(LONG)) < LONG / 2
        assert not changes.wait(0)


def test_wake_does_not_advance_the_timer(timer: Changes) -> None:
    timer.wake()
    assert not timer.wait(LONG)
    assert not timer.wait(0)


# The site's database.


@pytest.mark.django_db(transaction=True)
def test_site_database_is_watched_by_the_best_means() -> None:
    best = {"sqlite": SQLiteChanges, "postgresql": PostgreSQLChanges}[connection.vendor]
    with watch("default") as changes:
        assert type(changes) is best
        changes.wait(0)

        def commit() -> None:
            with transaction.atomic():
                User.objects.create(username="ada")
                announce("default")
            connections.close_all()

        thread = meanwhile(commit)
        assert eventually(lambda: changes.wait(LONG))
        thread.join()


@pytest.mark.django_db
def test_sqlite_needs_no_announcement(
    django_assert_num_queries: Callable[[int], AbstractContextManager[object]],
) -> None:
    with django_assert_num_queries(0 if connection.vendor == "sqlite" else 1):
        announce("default")
        announce("default")


def test_in_memory_database_is_watched_by_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "sqlite")
    monkeypatch.setitem(connections["default"].settings_dict, "NAME", ":memory:")
    with watch("default") as changes:
        assert type(changes) is Changes
