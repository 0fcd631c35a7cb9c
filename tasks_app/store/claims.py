"""A worker's claim of a task, and the failure it reports."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tasks_app.exceptions import WorkerLost
from tasks_app.models import Task, aware
from tasks_app.models.querysets import TaskQuerySet


class Claim(NamedTuple):
    """The right to write a running task, valid as long as the row has this token."""

    task_id: uuid.UUID
    token: uuid.UUID


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of an attempt."""

    type: str
    message: str
    traceback: str = ""
    #: The wait before the next attempt, if the task itself set one.
    retry_after: timedelta | None = None
    #: The task was asked to stop, and its thread did not.
    stuck: bool = False
    #: The exception itself, for the log and for error reporters that read it.
    error: BaseException | None = field(default=None, repr=False, compare=False)
    #: The message for the task's owner; None for the standard one.
    public_error: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the columns of the row."""
        return {
            "error_type": self.type,
            "error_message": self.message,
            "error_traceback": self.traceback,
            "public_error": self.public_error,
            "stuck": self.stuck,
        }

    def data(self) -> dict[str, Any]:
        """Return the data of the event. `TaskEvent.message` decides who sees which part."""
        data: dict[str, Any] = {"error": {"type": self.type, "message": self.message}}
        if self.public_error is not None:
            data["public_error"] = self.public_error
        if self.stuck:
            data["stuck"] = True
        return data


#: If at most this many tasks are due, sort only those.
FEW = 100


def ready(now: datetime, queues: list[str]) -> TaskQuerySet:
    """Return pending tasks that may start, the next one first, at a cost that ignores delayed ones.

    The index in this order also contains the delayed tasks, so finding few or no due tasks would
    read all of it. Another index shows quickly whether only few are due.
    """
    tasks = Task.primary.ready(now, queues)
    due = Task.primary.waiting([]).filter(run_after__lte=now).order_by("run_after")
    few = list(due.values_list("pk", flat=True)[: FEW + 1])
    if len(few) > FEW:
        return tasks
    return tasks.filter(pk__in=few) if few else tasks.none()


def claim_of(task: Task) -> Claim:
    """Return the claim of a running row."""
    assert task.fencing_token  # noqa: S101 - a running row has one, by constraint
    return Claim(task.pk, task.fencing_token)


def worker_lost(task: Task) -> Failure:
    """Return the failure of a task whose lease expired."""
    if task.worker is None:
        message = "The worker that ran this task is gone, and so is its record."
    else:
        last_seen = aware(task.worker.heartbeat_at).astimezone(UTC)
        message = f"Worker {task.worker} lost (last seen {last_seen:%Y-%m-%d %H:%M:%S} UTC)."
    return Failure(WorkerLost.__name__, message)
