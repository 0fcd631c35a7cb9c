"""Rows for tests: made by the lifecycle if its behaviour matters, otherwise directly."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from tasks_app.conf import task_settings
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, Failure, claim_of

#: The fields that the constraints require for each status.
FIELDS: dict[Status, dict[str, Any]] = {
    Status.PENDING: {},
    Status.RUNNING: {"attempt": 1},
    Status.COMPLETED: {"attempt": 1, "progress": 1.0},
    Status.FAILED: {"attempt": 1, "error_type": "ValueError", "error_message": "it broke"},
    Status.CANCELLED: {},
}

BROKEN = Failure("ValueError", "it broke", "Traceback: it broke")


def row(status: Status = Status.PENDING, *, age: timedelta = timedelta(), **fields: Any) -> Task:
    """Return an unsaved task. Its age is the time since its creation or, if finished, its end."""
    now = timezone.now() - age
    values: dict[str, Any] = {"name": "tests.tasks.Noop", "created_at": now, "run_after": now}
    if status == Status.RUNNING:
        values |= {
            "started_at": now,
            "fencing_token": uuid.uuid4(),
            "lease_expires_at": now + timedelta(seconds=30),
        }
    if status.is_terminal:
        values["finished_at"] = now
    return Task(**values | FIELDS[status] | fields, status=status)


def saved(status: Status = Status.PENDING, **fields: Any) -> Task:
    task = row(status, **fields)
    task.save(force_insert=True)
    return task


def worker(**fields: Any) -> Worker:
    # By the clock that the test may control.
    now = lifecycle.database_now("default")
    values: dict[str, Any] = {"hostname": "host", "pid": 1, "threads": 4}
    return Worker.objects.create(**values | {"started_at": now, "heartbeat_at": now} | fields)


def enqueued(**fields: Any) -> Task:
    task = Task(**{"name": "tests.tasks.Noop", "run_after": None} | fields)
    lifecycle.enqueue([task])
    return task


def claimed(by: Worker | None = None, **fields: Any) -> tuple[Task, Claim]:
    """Enqueue and claim a task. No other task may be waiting."""
    task = enqueued(**fields)
    [taken] = lifecycle.claim(by or worker(), 1)
    assert taken.pk == task.pk
    return taken, claim_of(taken)


def ended(status: Status, **fields: Any) -> Task:
    """Return a task that the lifecycle has brought to its end."""
    task, claim = claimed(**fields)
    match status:
        case Status.COMPLETED:
            assert lifecycle.complete({claim: None}) == []
        case Status.FAILED:
            assert lifecycle.fail({claim: BROKEN}) == []
        case Status.CANCELLED:
            assert lifecycle.cancel({claim: False}) == []
    return fresh(task)


def fresh(task: Task) -> Task:
    return Task.objects.get(pk=task.pk)


def snapshot() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return all rows, to compare with later."""
    return (
        list(Task.objects.order_by("pk").values()),
        list(TaskEvent.objects.order_by("pk").values()),
    )


def facts(task: Task) -> list[str]:
    """Return the types of the task's events, in order."""
    return list(
        TaskEvent.objects.filter(task=task).order_by("id").values_list("event_type", flat=True)
    )


def last_fact(task: Task) -> TaskEvent:
    event = TaskEvent.objects.filter(task=task).order_by("id").last()
    assert event is not None
    return event


def lapse(task: Task, by: timedelta, now: datetime | None = None) -> None:
    """Make the task's lease expired for this long, as if heartbeats had stopped."""
    expired = (now or timezone.now()) - by
    Task.objects.filter(pk=task.pk).update(lease_expires_at=expired)
    beat = expired - timedelta(seconds=task_settings().lease_seconds)
    Worker.objects.filter(tasks=task.pk, heartbeat_at__gt=beat).update(heartbeat_at=beat)
