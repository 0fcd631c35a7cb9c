"""Workers whose database clock is stepped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.clocks import Clock
from tests.harness import begins, ends, eventually
from tests.invariants import Seen, check_invariants
from tests.tasks import Noop, Steps

pytestmark = pytest.mark.django_db(transaction=True)

INSTANT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def test_workers_survive_clock_steps(
    clock: Clock, settings: Any, start: Callable[..., Any], reins: Path
) -> None:
    """Two workers have a task each. The clock moves an hour forward and back."""
    settings.TASK_HEARTBEAT_SECONDS, settings.TASK_LEASE_SECONDS = 0.2, 5
    start(1)
    start(1)
    eventually(lambda: Worker.objects.count() == 2, what="both register")
    workers = list(Worker.objects.all())
    tasks = [task_service.start_task(Steps, {"reins": reins}, timeout=900) for _ in workers]
    for task in tasks:
        begins(task.task_id)
    seen = Seen()
    for step in (HOUR, -HOUR, -HOUR, HOUR):
        clock.now += step
        for one in workers:
            wait_for_heartbeats(one, clock)
        assert check_invariants(seen) == 2
        assert {found(task.task_id).status for task in tasks} == {Status.RUNNING}
    reins.write_text("10")
    for task in tasks:
        ended = ends(task.task_id)
        assert (ended.status, ended.attempt) == (Status.COMPLETED, 1)


def wait_for_heartbeats(one: Worker, clock: Clock) -> None:
    """Wait for some heartbeats with the current time of the clock."""
    for _ in range(4):
        clock.now += INSTANT
        moment = clock.now
        eventually(
            lambda moment=moment: Worker.objects.get(pk=one.pk).heartbeat_at == moment,  # type: ignore[misc]
            what="the worker beats",
        )


def found(task_id: UUID) -> Task:
    return Task.objects.get(pk=task_id)


def test_task_due_after_a_step_starts_soon(
    clock: Clock, settings: Any, start: Callable[..., Any]
) -> None:
    """A worker waits for a delayed task by the monotonic clock. Each heartbeat checks again."""
    settings.TASK_HEARTBEAT_SECONDS = 0.2
    start(1)
    task = task_service.start_task(Noop, run_after=clock.now + HOUR)
    eventually(lambda: Worker.objects.get().heartbeat_at, what="it works")
    clock.now += HOUR
    assert ends(task.task_id).status == Status.COMPLETED


def test_backward_step_only_delays(clock: Clock, settings: Any, start: Callable[..., Any]) -> None:
    settings.TASK_HEARTBEAT_SECONDS = 0.2
    task = task_service.start_task(Noop)
    clock.now -= 10 * MINUTE
    start(1)
    wait_for_heartbeats(Worker.objects.get(), clock)
    assert found(task.task_id).status == Status.PENDING
    clock.now += 10 * MINUTE
    assert ends(task.task_id).status == Status.COMPLETED
