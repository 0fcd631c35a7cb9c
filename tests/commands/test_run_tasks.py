"""`manage.py run_tasks`, in this process; tests of signals are in tests/processes."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from django.core.management import CommandError, call_command

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


def test_drain_runs_what_is_ready() -> None:
    added = task_service.start_task(Add, {"a": 40})
    task_service.start_task(Fail)
    call_command("run_tasks", "--drain")
    assert statuses() == [Status.COMPLETED, Status.FAILED]
    task = Task.objects.get(pk=added.task_id)
    assert (task.result, facts(task)) == (42, ["task_queued", "task_started", "task_completed"])


def test_drain_of_nothing() -> None:
    call_command("run_tasks", "--drain")
    assert Worker.objects.get().stopped_at is not None


@pytest.mark.parametrize(
    ("options", "hands", "queues"),
    [
        ((), 7, []),
        (("--max-workers", "2"), 2, []),
        (("--queues", "mail"), 7, ["mail"]),
        (("--queues", " mail, reports ,"), 7, ["mail", "reports"]),
    ],
)
def test_options(settings: Any, options: tuple[str, ...], hands: int, queues: list[str]) -> None:
    settings.TASK_MAX_WORKERS = 7
    call_command("run_tasks", "--drain", *options)
    worker = Worker.objects.get()
    assert (worker.hands, worker.queues) == (hands, queues)


@pytest.mark.parametrize("queues", ["", " , "])
def test_no_queue_is_not_every_queue(queues: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is most often a variable that is not set."""
    with pytest.raises(CommandError, match="names no queue; leave it out to take tasks from all"):
        call_command("run_tasks", "--drain", "--queues", queues)
    assert not Worker.objects.exists()


@pytest.mark.parametrize("left", [True, False])
def test_an_error_ends_the_process_whatever_its_hands_are_at(
    left: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python would wait for them, and no supervisor start the next worker."""

    def run(coordinator: Coordinator) -> None:
        coordinator.hands_left = left
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


def test_only_the_queues_that_are_named() -> None:
    for queue in ("mail", "default"):
        task_service.start_task(Noop, queue=queue)
    call_command("run_tasks", "--drain", "--queues", "mail")
    assert statuses() == [Status.COMPLETED, Status.PENDING]


def test_max_tasks_ends_it() -> None:
    task_service.start_many(Noop, [{}] * 5)
    call_command("run_tasks", "--max-tasks", "3")
    assert statuses() == [Status.COMPLETED] * 3 + [Status.PENDING] * 2


@pytest.mark.parametrize("option", ["--max-workers", "--max-tasks"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_nonsense_is_refused(option: str, value: str) -> None:
    with pytest.raises(CommandError) as caught:
        call_command("run_tasks", "--drain", f"{option}={value}")
    assert str(caught.value) == f"{option} must be 1 or more, not {value}"
    assert not Worker.objects.exists()


@pytest.mark.parametrize("option", ["--max-workers", "--max-tasks"])
def test_what_is_no_number_is_refused(option: str) -> None:
    with pytest.raises(CommandError, match=f"argument {option}: invalid int value: 'many'"):
        call_command("run_tasks", option, "many")


def test_signals_are_the_commands_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    heard: list[Any] = []

    def run(coordinator: Coordinator) -> int:
        heard.extend(signal.getsignal(number) for number in numbers)
        return 0

    monkeypatch.setattr(Coordinator, "run", run)
    call_command("run_tasks", "--drain")
    assert [handler.__module__ for handler in heard] == [run_tasks.__name__] * 2
    assert [signal.getsignal(number) for number in numbers] == before
