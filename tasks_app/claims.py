"""What a worker holds of a task, and what it says of one that failed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from tasks_app.exceptions import WorkerLost
from tasks_app.models import Task


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

    def public(self) -> dict[str, str]:
        return {"type": self.type, "message": self.message}


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
