"""`manage.py run_tasks` in this process. Signals are tested in tests/processes."""

from __future__ import annotations

import logging
import re
import signal
from importlib import metadata
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from tasks_app.management.commands import run_tasks
from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.worker.coordinator import Coordinator
from tests.rows import facts
from tests.tasks import Add, Fail, Noop

pytestmark = pytest.mark.django_db(transaction=True)


def statuses() -> list[str]:
    return list(Task.objects.order_by("run_after").values_list("status", flat=True))


def test_drain_runs_all_ready_tasks() -> None:
    added = task_service.start_task(Add, {"a": 40})
    task_service.start_task(Fail)
    call_command("run_tasks", "--drain")
    assert statuses() == [Status.COMPLETED, Status.FAILED]
    task = Task.objects.get(pk=added.task_id)
    assert (task.result, facts(task)) == (42, ["task_queued", "task_started", "task_completed"])


def test_drain_without_tasks() -> None:
    call_command("run_tasks", "--drain")
    assert Worker.objects.get().stopped_at is not None


@pytest.mark.parametrize(
    ("options", "threads", "queues"),
    [
        ((), 7, []),
        (("--max-workers", "2"), 2, []),
        (("--queues", "mail"), 7, ["mail"]),
        (("--queues", " mail, reports ,"), 7, ["mail", "reports"]),
    ],
)
def test_options(settings: Any, options: tuple[str, ...], threads: int, queues: list[str]) -> None:
    settings.TASK_MAX_WORKERS = 7
    call_command("run_tasks", "--drain", *options)
    worker = Worker.objects.get()
    assert (worker.threads, worker.queues) == (threads, queues)


@pytest.mark.parametrize("queues", ["", " , "])
def test_empty_queue_option_is_refused(queues: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Usually the cause is a variable that is not set."""
    with pytest.raises(CommandError, match="names no queue; leave it out to take tasks from all"):
        call_command("run_tasks", "--drain", "--queues", queues)
    assert not Worker.objects.exists()


@pytest.mark.parametrize("left", [True, False])
def test_error_ends_the_process_even_if_threads_are_running(
    left: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise Python would wait for the threads, and the supervisor would start no new worker."""

    def run(coordinator: Coordinator) -> None:
        coordinator.threads_left = left
        raise RuntimeError("a table is gone")

    def end_at_once(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(Coordinator, "run", run)
    monkeypatch.setattr(run_tasks, "end_at_once", end_at_once)
    with pytest.raises(SystemExit if left else RuntimeError) as caught:
        call_command("run_tasks")
    if left:
        assert caught.value.args == (1,)
        assert "RuntimeError: a table is gone" in capsys.readouterr().err


def test_only_named_queues_are_run() -> None:
    for queue in ("mail", "default"):
        task_service.start_task(Noop, queue=queue)
    call_command("run_tasks", "--drain", "--queues", "mail")
    assert statuses() == [Status.COMPLETED, Status.PENDING]


def test_max_tasks_ends_the_worker() -> None:
    task_service.start_many(Noop, [{}] * 5)
    call_command("run_tasks", "--max-tasks", "3")
    assert statuses() == [Status.COMPLETED] * 3 + [Status.PENDING] * 2


@pytest.mark.parametrize("option", ["--max-workers", "--max-tasks"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_value_below_one_is_refused(option: str, value: str) -> None:
    with pytest.raises(CommandError) as caught:
        call_command("run_tasks", "--drain", f"{option}={value}")
    assert str(caught.value) == f"{option} must be 1 or more, not {value}"
    assert not Worker.objects.exists()


@pytest.mark.parametrize("option", ["--max-workers", "--max-tasks"])
def test_value_that_is_no_number_is_refused(option: str) -> None:
    with pytest.raises(CommandError, match=f"argument {option}: invalid int value: 'many'"):
        call_command("run_tasks", option, "many")


NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize("nohup", [False, True])
def test_signal_handlers_are_installed_while_it_runs(
    nohup: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Any] = []

    def run(coordinator: Coordinator) -> int:
        installed.extend(signal.getsignal(number) for number in NUMBERS)
        return 0

    monkeypatch.setattr(Coordinator, "run", run)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        before = [signal.getsignal(number) for number in NUMBERS]
        call_command("run_tasks", "--drain")
        assert [signal.getsignal(number) for number in NUMBERS] == before
    finally:
        signal.signal(signal.SIGHUP, hangup)
    changed = [new is not old for new, old in zip(installed, before, strict=True)]
    assert changed == [True, True, not nohup, True]


# Output.


def output_of(*options: str) -> str:
    out = StringIO()
    call_command("run_tasks", "--drain", *options, stdout=out)
    return out.getvalue()


def test_banner_and_summary() -> None:
    task_service.start_many(Noop, [{}] * 2)
    first, database, threads, mode, ending = output_of("--max-workers", "3").splitlines()
    worker = Worker.objects.get()
    assert first == f"Worker {worker} of django-tasks-app {metadata.version('django-tasks-app')}"
    name = str(connection.settings_dict["NAME"])
    assert database.startswith(f"Database: {connection.display_name} {name}")
    assert database.endswith("('default')")
    assert threads == "Threads: 3. Queues: all."
    assert mode == "Runs the tasks that are ready, then stops."
    assert re.fullmatch(r"Worker stopped after \S+ s and 2 tasks\.", ending)
    assert "Queues: mail, reports." in output_of("--queues", "mail,reports")


@pytest.mark.parametrize(("verbosity", "records"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_verbosity(verbosity: int, records: int) -> None:
    started = task_service.start_task(Noop)
    logger = logging.getLogger("tasks_app")
    before = logger.level, list(logger.handlers)
    text = output_of("-v", str(verbosity))
    assert bool(text) is (verbosity > 0)
    assert (f"{started.task_id} (tests.tasks.Noop) completed" in text) is (records >= 1)
    assert ("claimed 1 tasks" in text) is (records >= 2)
    assert (logger.level, logger.handlers) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (0.9, "1 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7200, "2 h")],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert run_tasks.spoken(seconds) == text
