"""What a worker holds of a task, and what it says of one that failed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tasks_app.exceptions import WorkerLost
from tasks_app.models import Task
from tasks_app.querysets import TaskQuerySet


class Claim(NamedTuple):
    """The right to write a running task, good for as long as the row bears the token."""

    task_id: uuid.UUID
    token: uuid.UUID


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str = ""
    #: How long the next attempt waits, where the task itself said so.
    retry_after: timedelta | None = None
    #: The task was told to stop, and its thread did not.
    stuck: bool = False
    #: The exception itself, for the log and for what reports errors from there.
    error: BaseException | None = field(default=None, repr=False, compare=False)
    #: What the task's owner reads; None for the sentence that suits any task.
    public_error: str | None = None

    def fields(self) -> dict[str, Any]:
        """What the row keeps of it."""
        return {
            "error_type": self.type,
            "error_message": self.message,
            "error_traceback": self.traceback,
            "public_error": self.public_error,
            "stuck": self.stuck,
        }

    def data(self) -> dict[str, Any]:
        """What the history keeps of it. `TaskEvent.message` says which part of that is whose."""
        told: dict[str, Any] = {"error": {"type": self.type, "message": self.message}}
        return told if self.public_error is None else told | {"public_error": self.public_error}


#: Up to so many tasks that may start are put in order by themselves.
FEW = 100


def ready(now: datetime, queues: list[str]) -> TaskQuerySet:
    """Waiting tasks that may start, the next one first, however many others are delayed.

    The index that has their order has the delayed ones too: to find few, or none, all of it would
    be read. Another one tells at once whether there are few.
    """
    tasks = Task.primary.ready(now, queues)
    due = Task.primary.waiting([]).filter(run_after__lte=now).order_by("run_after")
    few = list(due.values_list("pk", flat=True)[: FEW + 1])
    if len(few) > FEW:
        return tasks
    return tasks.filter(pk__in=few) if few else tasks.none()


def claim_of(task: Task) -> Claim:
    """Return the claim that a running row bears."""
    assert task.fencing_token  # noqa: S101 - a running row has one, by constraint
    return Claim(task.pk, task.fencing_token)


def worker_lost(task: Task) -> Failure:
    """Return why a task failed whose lease ran out."""
    if task.worker is None:
        message = "The worker that ran this task is gone, and its record with it."
    else:
        message = (
            f"Worker {task.worker} stopped responding; "
            f"its last heartbeat was at {task.worker.heartbeat_at.isoformat(timespec='seconds')}."
        )
    return Failure(WorkerLost.__name__, message)
