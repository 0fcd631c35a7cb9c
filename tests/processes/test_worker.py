"""Real worker processes that get real signals."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.harness import PATIENCE, ROOT, Process, begins, database_url, ends, eventually
from tests.stubborn_tasks import Breaks, EndsAProcess, HoldsInterpreter
from tests.tasks import Add, Burst, Deaf, Fail, FailTwice, Noop, Quit, Steps, Stubborn, Talk

StartWorker = Callable[..., Process]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


def facts(task_id: object) -> list[str]:
    return list(
        Task.objects.get(pk=task_id).events.order_by("id").values_list("event_type", flat=True)
    )


def test_drain_runs_all_ready_tasks_and_exits(start_worker: StartWorker) -> None:
    added = task_service.start_task(Add, {"a": 40})
    failed = task_service.start_task(Fail)
    quitting = task_service.start_task(Quit)
    worker = start_worker("--drain", "-v", "2", ready=False)
    assert worker.wait() == 0, worker.output
    # The site's own handler writes to the console too.
    assert worker.output.count(f"Task {added.task_id} (tests.tasks.Add) completed") == 1
    info = task_service.get_task_status(added.task_id)
    assert (info.status, info.result, info.progress.value) == (Status.COMPLETED, 42, 1.0)
    assert facts(added.task_id) == ["task_queued", "task_started", "task_completed"]
    failure = Task.objects.get(pk=failed.task_id).info(for_staff=True)
    assert failure.error is not None
    assert (failure.error.type, failure.error.message) == ("ValueError", "it broke")
    assert failure.progress.text == "about to fail"
    assert "in execute" in Task.objects.get(pk=failed.task_id).error_traceback
    quit_error = Task.objects.get(pk=quitting.task_id).info(for_staff=True).error
    assert quit_error is not None
    assert quit_error.type == "SystemExit"


def test_worker_starts_tasks_as_they_come(start_worker: StartWorker) -> None:
    start_worker()
    for number in range(3):
        started = task_service.start_task(Add, {"a": number})
        ends(started.task_id)


def test_max_tasks_ends_the_worker(start_worker: StartWorker) -> None:
    task_service.start_many(Noop, [{}] * 5)
    worker = start_worker("--max-tasks", "3", ready=False)
    assert worker.wait() == 0
    assert Task.objects.filter(status=Status.COMPLETED).count() == 3
    assert Task.objects.filter(status=Status.PENDING).count() == 2


def test_worker_takes_only_from_named_queues(start_worker: StartWorker) -> None:
    mail = task_service.start_task(Noop, queue="mail")
    other = task_service.start_task(Noop)
    assert start_worker("--drain", "--queues", "mail, reports", ready=False).wait() == 0
    assert task_service.get_task_status(mail.task_id).status == Status.COMPLETED
    assert task_service.get_task_status(other.task_id).status == Status.PENDING


@pytest.mark.once
@pytest.mark.parametrize("option", ["--max-workers", "--max-tasks"])
def test_invalid_option_is_refused(start_worker: StartWorker, option: str) -> None:
    worker = start_worker(option, "0", ready=False)
    assert worker.wait() == 2
    assert f"{option} must be 1 or more, not 0" in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_first_signal_lets_running_tasks_finish(
    start_worker: StartWorker, reins: Path, number: signal.Signals
) -> None:
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="60")
    running = task_service.start_task(Steps, {"reins": reins})
    begins(running.task_id)
    worker.send(number)
    worker.says("is stopping")
    late = task_service.start_task(Noop)
    reins.write_text("10")
    assert worker.wait() == 0
    assert task_service.get_task_status(running.task_id).status == Status.COMPLETED
    assert task_service.get_task_status(late.task_id).status == Status.PENDING
    assert Worker.objects.get(pid=worker.pid).stopped_at is not None


#: Makes the terminal at its stdin the controlling terminal of its session, and becomes a worker.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "manage.py", "run_tasks", *sys.argv[1:]])
"""


@contextmanager
def on_a_terminal(*options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a worker, and yield the other end of its terminal and its process."""
    own, terminal = pty.openpty()
    worker = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *options],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url(), "TASK_SHUTDOWN_GRACE_SECONDS": "60"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield own, worker
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


@pytest.mark.once
def test_worker_whose_terminal_closes_stops_gracefully(reins: Path) -> None:
    """It gets SIGHUP, and its output goes nowhere from then on."""
    with on_a_terminal() as (terminal, worker):
        assert os.read(terminal, 100).startswith(b"Worker ")
        running = task_service.start_task(Steps, {"reins": reins})
        begins(running.task_id)
        os.close(terminal)
        reins.write_text("10")
        assert worker.wait(PATIENCE) == 0
    assert task_service.get_task_status(running.task_id).status == Status.COMPLETED


@pytest.mark.once
def test_reloading_worker_keeps_its_terminal(reins: Path) -> None:
    """A task can be debugged there, and Ctrl-C counts once."""
    with on_a_terminal("--reload") as (terminal, worker):
        shown = b""

        def shows(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                assert select.select([terminal], [], [], PATIENCE)[0], shown
                shown += os.read(terminal, 4096)

        debugged = task_service.start_task(Breaks)
        shows(b"(Pdb)")
        os.write(terminal, b"c\n")
        assert ends(debugged.task_id).result == "went on"
        running = task_service.start_task(Steps, {"reins": reins})
        begins(running.task_id)
        os.write(terminal, b"\x03")
        shows(b"Stopping: 1 running task has up to 60 s")
        reins.write_text("10")
        shows(b"Worker stopped after")
        assert worker.wait(PATIENCE) == 0
        os.close(terminal)
    assert task_service.get_task_status(running.task_id).status == Status.COMPLETED
    assert b"Stopping at once" not in shown


@pytest.mark.once
def test_worker_reports_what_it_waits_for_and_what_it_did(
    start_worker: StartWorker, reins: Path
) -> None:
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="60")
    running = task_service.start_task(Steps, {"reins": reins})
    begins(running.task_id)
    worker.send(signal.SIGINT)
    worker.says("Stopping: 1 running task has up to 60 s to finish. Press Ctrl-C again")
    worker.send(signal.SIGINT)
    worker.says("Stopping at once.")
    assert worker.wait() == 0
    assert re.search(r"^Worker stopped after \S+ s and 0 tasks\.$", worker.output, re.M)


RELOADED = """
from tasks_app.tasks.base import BaseTask

class Reloaded(BaseTask):
    def execute(self, progress):
        return {number}
"""


@pytest.mark.once
def test_worker_restarts_when_its_code_changes(
    processes: list[Process],
    reins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tmp_path / "reloaded_tasks.py"
    module.write_text(RELOADED.format(number=1))
    monkeypatch.syspath_prepend(tmp_path)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    worker = Process(
        ["manage.py", "run_tasks", "--reload"],
        tmp_path / "log",
        PYTHONPATH=path,
        TASK_SHUTDOWN_GRACE_SECONDS="0.2",
    )
    processes.append(worker)
    saved = itertools.count(1)

    def is_told_of_a_change() -> bool:
        """Save the file again, because a file that was just imported is not watched yet."""
        module.write_text(RELOADED.format(number=2))
        moment = time.time() + next(saved)
        os.utime(module, (moment, moment))
        return "reloaded_tasks.py changed. Restarting: 1 running task has up to" in worker.output

    try:
        first = task_service.start_task("reloaded_tasks.Reloaded")
        assert ends(first.task_id).result == 1
        running = task_service.start_task(Steps, {"reins": reins})
        begins(running.task_id)
        eventually(is_told_of_a_change)
        second = task_service.start_task("reloaded_tasks.Reloaded")
        assert ends(second.task_id).result == 2
        # The running task was released, and the new process runs it.
        reins.write_text("10")
        assert ends(running.task_id).status == Status.COMPLETED
        assert facts(running.task_id).count("task_queued") == 2
    finally:
        # The worker's child process would continue without it.
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    assert worker.output.count("Worker stopped after") == 2


def test_after_the_grace_tasks_are_released(start_worker: StartWorker, reins: Path) -> None:
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="0.2")
    running = task_service.start_task(Steps, {"reins": reins})
    begins(running.task_id)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    task = Task.objects.get(pk=running.task_id)
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    assert facts(task.pk) == ["task_queued", "task_started", "task_queued"]
    reins.write_text("10")
    assert start_worker("--drain", ready=False).wait() == 0
    task.refresh_from_db()
    assert (task.status, task.attempt, task.result) == (Status.COMPLETED, 1, "done")


def test_second_signal_ends_immediately(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker(TASK_SHUTDOWN_GRACE_SECONDS="600")
    deaf = task_service.start_task(Deaf, {"until": tmp_path / "never"})
    begins(deaf.task_id)
    worker.send(signal.SIGTERM)
    worker.says("is stopping")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert Task.objects.get(pk=deaf.task_id).status == Status.PENDING


def test_process_forked_by_a_task_can_be_terminated(start_worker: StartWorker) -> None:
    """It inherits the worker's own signal handler, which lets tasks finish."""
    worker = start_worker()
    task = task_service.start_task(EndsAProcess)
    assert ends(task.task_id).result == -signal.SIGTERM
    assert "is stopping" not in worker.output


@pytest.mark.once
def test_code_that_holds_the_interpreters_lock_ends_the_worker(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """In that state no timeout can be enforced, and no signal handled."""
    worker = start_worker()
    hold = tmp_path / "hold"
    task = task_service.start_task(HoldsInterpreter, {"hold": hold}, timeout=0.5)
    begins(task.task_id)
    hold.touch()
    worker.send(signal.SIGTERM)
    assert worker.wait() == -signal.SIGABRT
    assert "some code holds the interpreter's lock" in worker.output
    assert "Fatal Python error: Aborted" in worker.output
    assert 'stubborn_tasks.py", line' in worker.output
    assert "coordinator.py" in worker.output


@pytest.mark.once
def test_process_1_of_a_container_warns() -> None:
    started = task_service.start_task(Noop)
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "manage.py", "run_tasks", "--drain"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0
    assert "This worker is process 1 of its container" in done.stdout
    assert task_service.get_task_status(started.task_id).status == Status.COMPLETED


def test_killed_workers_task_fails_with_a_reason(start_worker: StartWorker, reins: Path) -> None:
    doomed = start_worker()
    task = task_service.start_task(Steps, {"reins": reins})
    begins(task.task_id)
    doomed.send(signal.SIGKILL)
    start_worker()
    ends(task.task_id)
    row = Task.objects.get(pk=task.task_id)
    assert row.error_type == "WorkerLost"
    assert f":{doomed.pid} lost (last seen " in row.error_message


def test_killed_workers_task_is_retried_if_allowed(start_worker: StartWorker, reins: Path) -> None:
    doomed = start_worker()
    task = task_service.start_task(Steps, {"reins": reins}, max_attempts=2)
    begins(task.task_id)
    doomed.send(signal.SIGKILL)
    reins.write_text("10")
    start_worker(TASK_RETRY_BACKOFF_SECONDS="0.1")
    ends(task.task_id)
    assert facts(task.task_id) == [
        "task_queued",
        "task_started",
        "task_retry_scheduled",
        "task_started",
        "task_completed",
    ]


def test_running_task_is_cancelled_at_its_next_call(start_worker: StartWorker, reins: Path) -> None:
    start_worker()
    task = task_service.start_task(Steps, {"reins": reins})
    begins(task.task_id)
    assert task_service.cancel_task(task.task_id).cancel_requested
    ends(task.task_id)
    assert facts(task.task_id)[-2:] == ["task_cancel_requested", "task_cancelled"]


def test_except_exception_does_not_swallow_a_cancel(start_worker: StartWorker) -> None:
    start_worker()
    task = task_service.start_task(Stubborn)
    eventually(lambda: Task.objects.get(pk=task.task_id).progress_text == "still here")
    task_service.cancel_task(task.task_id)
    eventually(lambda: Task.objects.get(pk=task.task_id).status == Status.CANCELLED)


def test_timeout_is_enforced_at_the_next_call(start_worker: StartWorker, reins: Path) -> None:
    start_worker()
    task = task_service.start_task(Steps, {"reins": reins}, timeout=0.3)
    ends(task.task_id)
    row = Task.objects.get(pk=task.task_id)
    assert (row.error_type, row.error_message) == (
        "TaskTimedOut",
        "Timed out after 0.3 s.",
    )


def test_failed_task_is_retried_up_to_its_limit(start_worker: StartWorker, tmp_path: Path) -> None:
    start_worker(TASK_RETRY_BACKOFF_SECONDS="0.05")
    task = task_service.start_task(FailTwice, {"ledger": tmp_path / "ledger"})
    ends(task.task_id)
    row = Task.objects.get(pk=task.task_id)
    assert (row.status, row.attempt, row.result) == (Status.COMPLETED, 3, 3)


def test_log_lines_keep_their_order(start_worker: StartWorker) -> None:
    task = task_service.start_task(Talk, {"lines": 5})
    assert start_worker("--drain", ready=False).wait() == 0
    assert facts(task.task_id) == [
        "task_queued",
        "task_started",
        *["task_log"] * 5,
        "task_completed",
    ]
    lines = Task.objects.get(pk=task.task_id).events.filter(event_type="task_log").order_by("id")
    assert [line.data for line in lines][:2] == [
        {"level": "info", "message": "line 0"},
        {"level": "warning", "message": "line 1"},
    ]


def test_burst_of_progress_is_coalesced(start_worker: StartWorker) -> None:
    task = task_service.start_task(Burst, {"calls": 200_000})
    assert start_worker("--drain", ready=False).wait() == 0
    assert task_service.get_task_status(task.task_id).result == 200_000
    assert len(facts(task.task_id)) == 3


def test_short_tasks_do_not_wait_behind_long_ones(start_worker: StartWorker, reins: Path) -> None:
    """Another worker runs what a worker claimed ahead and cannot start."""
    task_service.start_many(Noop, [{}] * 200)
    long = task_service.start_many(Steps, [{"reins": reins}] * 4)
    task_service.start_many(Noop, [{}] * 50)
    start_worker("--max-workers", "4")
    eventually(lambda: Task.objects.filter(status=Status.RUNNING).count() == 4)
    start_worker("--max-workers", "1")
    eventually(lambda: Task.objects.filter(status=Status.COMPLETED).count() == 250)
    reins.write_text("10")
    for started in long:
        ends(started.task_id)
