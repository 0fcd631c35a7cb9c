"""`manage.py cleanup_tasks` as real processes: concurrent, stopped, and killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tasks_app.models import Task, TaskEvent
from tasks_app.service import task_service
from tasks_app.states import TERMINAL_EVENTS, EventType, Status
from tests.harness import Process, ends, eventually
from tests.rows import fresh, lapse, row, saved, worker
from tests.tasks import Add

StartWorker = Callable[..., Process]
pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
OLD = 10 * DAY

#: The command with the smallest batches, so that it is still running when a signal arrives.
SLOW = """
import os, sys, django
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
django.setup()
from django.core.management import execute_from_command_line
from tasks_app.store import retention
retention.ROWS = retention.ROWS_MIN = retention.ROWS_MAX = 4
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


def finished(many: int, age: timedelta = OLD) -> list[Task]:
    """Create finished tasks with a typical history."""
    tasks = Task.objects.bulk_create(row(Status.COMPLETED, age=age) for _ in range(many))
    kinds = (EventType.QUEUED, EventType.STARTED, EventType.COMPLETED)
    TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=kind, timestamp=task.created_at)
        for task in tasks
        for kind in kinds
    )
    return tasks


@pytest.fixture
def cleanup(processes: list[Process], tmp_path: Path) -> Callable[..., Process]:
    def start(*options: str, slow: bool = False, **environment: str) -> Process:
        log = tmp_path / f"cleanup-{len(processes)}.log"
        program = ["-c", SLOW] if slow else ["manage.py"]
        command = [*program, "cleanup_tasks", "--json", *options]
        processes.append(Process(command, log, **{"LOG_LEVEL": "ERROR", **environment}))
        return processes[-1]

    return start


def summary(process: Process, code: int = 0) -> dict[str, int]:
    assert process.wait(within=100) == code, process.output
    found: dict[str, int] = json.loads(process.output)
    return found


def test_two_cleanups_share_the_work(cleanup: Callable[..., Process]) -> None:
    finished(2_000)
    stay = finished(20, age=DAY)
    both = [cleanup(), cleanup()]
    removed = [summary(one)["removed"] for one in both]
    assert sum(removed) == 2_000
    assert set(Task.objects.all()) == set(stay)
    assert TaskEvent.objects.count() == 60


def test_cleanup_next_to_a_busy_worker_loses_nothing(
    cleanup: Callable[..., Process], start_worker: StartWorker
) -> None:
    finished(2_000, age=DAY)  # the worker's own prune leaves these alone
    worker = start_worker()
    clearing = cleanup("--older-than", "12h")
    started = []
    while clearing.process.poll() is None:
        started += task_service.start_many(Add, [{"a": number} for number in range(20)])
        ends(started[-1].task_id)
    assert summary(clearing)["removed"] == 2_000
    for one in started:
        ends(one.task_id)
    assert set(Task.objects.values_list("pk", "status")) == {
        (one.task_id, Status.COMPLETED) for one in started
    }
    assert TaskEvent.objects.count() == 3 * len(started)
    assert "does not answer" not in worker.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_it_between_batches(
    cleanup: Callable[..., Process], number: signal.Signals, code: int
) -> None:
    finished(2_000)
    process = cleanup(slow=True)
    eventually(lambda: Task.objects.count() < 2_000, what="it begins")
    process.send(number)
    done = summary(process, code)
    assert done["complete"] is False
    assert 0 < done["removed"] == 2_000 - Task.objects.count()
    assert TaskEvent.objects.count() == 3 * Task.objects.count()
    assert summary(cleanup())["removed"] == 2_000 - done["removed"]


def test_signal_ends_its_wait_for_a_possibly_live_worker(
    cleanup: Callable[..., Process],
) -> None:
    lost = saved(Status.RUNNING, worker=worker())
    lapse(lost, DAY)
    process = cleanup(TASK_LEASE_SECONDS="3600", TASK_HEARTBEAT_SECONDS="600", LOG_LEVEL="INFO")
    process.says("its worker has 1200 s to renew it")
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    assert '"complete": false' in process.output
    assert fresh(lost).status == Status.RUNNING


def test_next_cleanup_continues_a_killed_one(cleanup: Callable[..., Process]) -> None:
    """Even between two batches of a long history: the task keeps its terminal event to the last."""
    [task] = finished(1)
    TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=EventType.LOG, timestamp=task.created_at)
        for _ in range(8_000)
    )
    process = cleanup(slow=True)
    eventually(lambda: task.events.count() < 8_003, what="it begins")
    process.send(signal.SIGKILL)
    process.wait()
    assert Task.objects.get() == task
    assert task.events.filter(event_type__in=TERMINAL_EVENTS).count() == 1
    assert task.events.count() > 1
    assert summary(cleanup())["removed"] == 1
    assert not TaskEvent.objects.exists()
