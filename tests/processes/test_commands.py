"""The commands as processes: pipes, terminals, encodings, signals, and database outages."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.harness import PATIENCE, ROOT, Process, begins, database_url, eventually
from tests.rows import row, saved
from tests.servers import PostgreSQL

StartWorker = Callable[..., Process]
Run = Callable[..., Process]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

#: Runs many commands in one process, and prints the exit code and output of each.
MANY = """
import contextlib, io, json, sys
from django.core.management import execute_from_command_line
ends = []
for arguments in json.loads(sys.argv[1]):
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            execute_from_command_line(["manage.py", *arguments])
        except SystemExit as error:
            code = error.code
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""


def environment(**changes: str) -> dict[str, str]:
    settings = {"DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "project.settings"}
    return {**os.environ, **settings, **changes}


def many(*commands: list[str], **changes: str) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(commands)],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


@pytest.fixture
def run(processes: list[Process], tmp_path: Path) -> Run:
    def start(*arguments: str) -> Process:
        log = tmp_path / f"command-{len(processes)}.log"
        processes.append(Process(["manage.py", *arguments], log))
        return processes[-1]

    return start


# Pipes and encodings.


@pytest.mark.once
@pytest.mark.parametrize("limit", [1, 2000])
def test_closed_pipe_is_not_an_error(limit: int) -> None:
    """The command may notice it at the end or before."""
    Task.objects.bulk_create(row(Status.COMPLETED) for _ in range(limit))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "manage.py", "list_tasks", "--limit", str(limit)],
            cwd=ROOT,
            env=environment(PYTHONUNBUFFERED=""),
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.once
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_works_in_every_encoding(encoding: str) -> None:
    task = saved(Status.COMPLETED, progress_text="caf\xe9 \u2192 \x85", result="\u2192\x9b")
    for arguments in (["show_task", str(task.pk)], ["list_tasks", "--json"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=environment(PYTHONIOENCODING=encoding, PYTHONUTF8="0"),
            capture_output=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        if "--json" in arguments:
            assert done.stdout.isascii()
            assert json.loads(done.stdout)[0]["result"] == "\u2192\x9b"
        else:
            arrow = {"utf-8": "\u2192".encode()}.get(encoding, b"\\u2192")
            accent = b"\\xe9" if encoding == "ascii" else "\xe9".encode(encoding)
            assert b"caf%b %b" % (accent, arrow) in done.stdout


# Signals.


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "Interrupted. Tasks that were asked to stop will still stop."),
        (signal.SIGTERM, -signal.SIGTERM, ""),
    ],
)
def test_signal_ends_the_wait_for_a_cancel(
    number: signal.Signals,
    code: int,
    message: str,
    start_worker: StartWorker,
    run: Run,
    tmp_path: Path,
) -> None:
    start_worker(TASK_INTERRUPT_GRACE_SECONDS="600")
    started = task_service.start_task("tests.tasks.Deaf", {"until": str(tmp_path / "until")})
    begins(started.task_id)
    waiting = run("cancel_task", str(started.task_id), "--wait")
    eventually(Task.objects.exclude(cancel_requested_at=None).first, what="it is asked to stop")
    waiting.send(number)
    assert waiting.wait() == code
    assert waiting.output == (f"CommandError: {message}\n" if message else "")
    (tmp_path / "until").touch()


def test_wait_ends_if_the_task_is_removed(run: Run) -> None:
    waiting = run("start_task", "tests.tasks.Noop", "--wait")
    task_id = eventually(Task.objects.first, what="it starts").pk
    waiting.says("No worker is running")
    Task.objects.all().delete()
    assert waiting.wait() == 1
    assert waiting.output.endswith(f"CommandError: Task {task_id} was removed in the meantime.\n")


# A terminal.


@pytest.fixture
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """The end of a terminal for a process to write to, and a function that reads the screen."""
    shows, writes = pty.openpty()
    termios.tcsetwinsize(writes, (24, 80))
    os.set_blocking(shows, False)
    shown: list[bytes] = []

    def read() -> str:
        with contextlib.suppress(BlockingIOError):
            while read := os.read(shows, 4096):
                shown.append(read)
        return b"".join(shown).decode()

    yield writes, read
    os.close(writes)
    os.close(shows)


@pytest.mark.once
def test_terminal_shows_a_bar_with_the_log_above_it(
    terminal: tuple[int, Callable[[], str]], start_worker: StartWorker, reins: Path
) -> None:
    writes, shown = terminal
    start_worker()
    params = json.dumps({"reins": str(reins), "steps": 2})
    arguments = ["start_task", "tests.tasks.Steps", "--params-json", params, "--follow"]
    following = subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=writes,
    )
    try:
        eventually(lambda: "Steps:   0%|" in shown() and ", ready" in shown(), what="a bar")
        reins.write_text("1")
        eventually(lambda: "Steps:  50%|" in shown() and ", step 1" in shown(), what="half of it")
        reins.write_text("2")
        out, _ = following.communicate(timeout=PATIENCE)
    finally:
        following.kill()
        following.wait()
    assert (following.returncode, out) == (0, b'Completed: "done"\n')
    assert "Steps: 100%|" in shown()


# No database.


def test_database_without_tables_is_reported(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    if connection.vendor == "postgresql":
        url = database_url().replace(f"/{connection.settings_dict['NAME']}?", "/postgres?")
    commands = [
        ["start_task", "tests.tasks.Noop"],
        ["start_task", "tests.tasks.Noop", "--owner", "ada"],
        ["list_tasks"],
        ["show_task", "12345678"],
        ["cancel_task", "12345678"],
        ["retry_task", "12345678"],
        ["cleanup_tasks", "--dry-run"],
    ]
    for command, (code, out, err) in zip(commands, many(*commands, DATABASE_URL=url), strict=True):
        assert (code, out) == (75, ""), (command, err)
        assert err.startswith("CommandError: The database lacks a table or a column: "), command
        assert err.endswith(". Run manage.py migrate\n"), command
        assert err.count("\n") == 1, command
    [(code, out, err)] = many(["tasks_health", "--json"], DATABASE_URL=url)
    assert (code, json.loads(out)["healthy"]) == (1, False)
    assert json.loads(out)["problems"] == [err.removeprefix("CommandError: ").strip()]


def test_database_outage_is_waited_for_or_reported(
    server: PostgreSQL, start_worker: StartWorker, run: Run
) -> None:
    waiting = run("start_task", "tests.tasks.Noop", "--wait")
    task = eventually(Task.objects.first, what="it starts")
    waiting.says("No worker is running")
    connection.close()
    server.stop()
    waiting.says("The database does not answer: ")
    one = str(task.pk)
    commands = [
        ["start_task", "tests.tasks.Noop"],
        ["list_tasks"],
        ["show_task", one],
        ["cancel_task", one, one],
        ["retry_task", one],
        ["cleanup_tasks", "--dry-run"],
    ]
    for command, (code, out, err) in zip(commands, many(*commands), strict=True):
        assert (code, out) == (75, ""), (command, err)
        assert "The database d" in err
        assert "Traceback" not in err
    [(code, out, _)] = many(["tasks_health", "--json"])
    found = json.loads(out)
    assert (code, list(found), found["healthy"]) == (1, ["healthy", "problems"], False)
    server.start()
    start_worker("--drain")
    assert waiting.wait() == 0
    assert waiting.output.count("The database does not answer: ") == 1
    assert waiting.output.endswith("Completed.\n")
