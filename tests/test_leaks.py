"""The leak check itself detects each kind of leak, and waits for what is about to end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections

from tasks_app.live.channels import task_channel
from tasks_app.notify import SQLiteChanges
from tests.harness import ROOT
from tests.leaks import left, look
from tests.live.watching import Watching
from tests.rows import enqueued, fresh

#: Seconds to wait for something that does not end.
BRIEFLY = 0.05


def start_thread(
    end: threading.Event, call: Callable[[], object] = lambda: None
) -> threading.Thread:
    begun = threading.Event()

    def stay() -> None:
        call()
        begun.set()
        end.wait()
        connections.close_all()

    thread = threading.Thread(target=stay, name="forgotten")
    thread.start()
    assert begun.wait(20)
    return thread


def test_leaked_thread_is_reported_with_its_stack() -> None:
    before, end = look(), threading.Event()
    thread = start_thread(end)
    [leak] = left(before, BRIEFLY)
    end.set()
    thread.join()
    assert leak.startswith("thread 'forgotten':")
    assert "in stay" in leak
    assert left(before) == []


def test_thread_that_is_about_to_end_is_no_leak() -> None:
    before, end = look(), threading.Event()
    start_thread(end)
    threading.Timer(0.1, end.set).start()
    assert left(before) == []


@pytest.mark.django_db(transaction=True)
def test_connection_of_a_finished_thread_is_a_leak() -> None:
    # The check queries the server through this thread's connection, so open it first.
    task = enqueued()
    before, kept = look(), []

    def read() -> None:
        fresh(task)
        kept.append(connections["default"])

    thread = threading.Thread(target=read, name="careless")
    thread.start()
    thread.join()
    leaks = left(before, BRIEFLY)
    assert "connection 'default', which thread 'careless' opened and did not close" in leaks
    if connection.vendor == "postgresql":
        # The server lists it too.
        assert any(leak.startswith("session ") and "tasks_app_task" in leak for leak in leaks)
    kept[0].inc_thread_sharing()
    kept[0].close()
    assert left(before) == []


@pytest.mark.django_db(transaction=True)
def test_open_stream_is_a_leak() -> None:
    owner = User.objects.create_user("ada")
    channel = task_channel(enqueued(owner=owner).pk)

    async def leave_open() -> list[str]:
        async with Watching(owner, [channel]):
            return left(before, BRIEFLY)

    before = look()
    leaks = asyncio.run(leave_open())
    assert f"listener of the channels ['{channel}']" in leaks
    assert any(leak.startswith("thread 'tasks-relay' (daemon):") for leak in leaks)
    assert left(before) == []


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_open_watch_is_a_leak(tmp_path: Path) -> None:
    before = look()
    with closing(sqlite3.connect(tmp_path / "db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n)")
        with closing(SQLiteChanges(str(tmp_path / "db"))):
            [leak] = left(before, BRIEFLY)
    assert leak.startswith("open inotify descriptor")
    assert left(before) == []


def test_leaked_process_is_reported_with_its_command() -> None:
    before = look()
    process = subprocess.Popen(["sleep", "60"])
    [leak] = left(before, BRIEFLY)
    process.kill()
    process.wait()
    assert leak == f"process {process.pid}: sleep 60"
    assert left(before) == []


def test_orphaned_process_is_a_leak() -> None:
    before = look()
    shell = subprocess.run(
        ["sh", "-c", "sleep 60 >&- 2>&- & echo $!"], capture_output=True, check=True
    )
    pid = int(shell.stdout)
    assert left(before, BRIEFLY) == [f"process {pid}: sleep 60"]
    os.kill(pid, 9)
    assert left(before) == []


IMPATIENT = """
import sys

pytest_plugins = ["tests.leaks"]

def pytest_sessionstart():
    sys.modules["tests.leaks"].PATIENCE = 0.1
"""
FORGETFUL = """
import threading

end = threading.Event()

def test_first():
    threading.Thread(target=end.wait, name="forgotten").start()

def test_second():
    end.set()
"""


@pytest.mark.slow
def test_only_the_leaking_test_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(IMPATIENT)
    (tmp_path / "test_it.py").write_text(FORGETFUL)
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", "pyproject.toml", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TEST_DATABASE": "sqlite", "DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed, 1 error" in ran.stdout, ran.stdout + ran.stderr
    assert "test_first - Failed: The test left behind:" in ran.stdout
    assert "thread 'forgotten':" in ran.stdout
