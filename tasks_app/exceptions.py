"""Every error this app raises, in two trees: errors, and interruptions of a running task.

A class docstring is the default message of the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from tasks_app.states import Status


#: The longest wait a task may ask for before its next attempt, in seconds: one year.
AFTER_MAX = 365 * 24 * 60 * 60


class TaskError(Exception):
    """A task could not be handled."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)

    @property
    def public_error(self) -> str | None:
        """The text the owner of the task reads if it fails with this error; None for no text.

        Any exception class may define one. A task raises TaskError, or its own subclass of it, to
        fail with a message for its owner.
        """
        return str(self)


class StaffError(TaskError):
    """A task could not be handled, and only staff can fix it."""

    @property
    def public_error(self) -> None:
        return None


def by_field(errors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return Pydantic's errors by field, with dots between the names of nested fields.

    The values are left out: they may be secret, and other people read errors.
    """
    return {".".join(str(part) for part in error["loc"]): str(error["msg"]) for error in errors}


def joined(faults: Mapping[str, str], whole: str = "") -> str:
    return "; ".join(
        f"{field}: {fault}" if field else f"{whole}{fault}" for field, fault in faults.items()
    )


class UnknownTask(StaffError):
    """No task class has this name."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self.why = why
        super().__init__(
            f"There is no task {name!r}: {why}. Name a subclass of BaseTask by its dotted path, "
            f"such as 'shop.tasks.ImportOrders'."
        )


class InvalidTask(StaffError):
    """The task class is declared in a way that cannot run."""


class InvalidParams(StaffError):
    """The parameters do not fit the task.

    `errors` maps each field to its fault. Names of nested fields have dots between them; the empty
    name means the parameters as a whole. `faults` lists the same errors as Pydantic does, without
    the values.
    """

    def __init__(self, task_name: str, errors: Iterable[Mapping[str, Any]]) -> None:
        self.faults = [
            {key: error[key] for key in ("type", "loc", "msg", "ctx") if key in error}
            for error in errors
        ]
        self.errors = by_field(self.faults)
        super().__init__(f"Invalid parameters for {task_name}: {joined(self.errors, 'params: ')}")


class InvalidResult(StaffError):
    """The task returned something other than it declared, or something JSON cannot hold."""

    def __init__(self, task_name: str, errors: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(f"{task_name} returned an invalid result: {joined(by_field(errors))}")


class TaskNotFound(StaffError):
    """The task does not exist."""

    def __init__(self, task_id: UUID | str) -> None:
        self.task_id = task_id
        super().__init__(f"There is no task {task_id}. It may have been removed by clean-up.")


class DuplicateTask(StaffError):
    """An unfinished task already has this unique key.

    `task_id` is that task, for users who may see it; the message does not name it. It is None if
    one call gave the same key twice.
    """

    def __init__(self, unique_key: str, task_id: UUID | None = None) -> None:
        self.unique_key = unique_key
        self.task_id = task_id
        super().__init__(
            f"Another task with the unique key {unique_key!r} has not finished. "
            f"Wait for it, cancel it, or use another key."
        )

    #: The same message without the key.
    without_key = (
        "Another task with the same unique key has not finished. Wait for it, or cancel it."
    )


class IdempotencyKeyReused(StaffError):
    """The owner used this idempotency key to start something else."""

    def __init__(self, key: str, task_id: UUID) -> None:
        self.key = key
        self.task_id = task_id
        super().__init__(
            f"The idempotency key {key!r} was already used to start task {task_id}, with another "
            f"class or other parameters. Use a new key for each new start."
        )


class IllegalTransition(StaffError):
    """The task's status does not allow this."""

    def __init__(self, task_id: UUID, status: Status, wanted: str) -> None:
        self.task_id = task_id
        self.status = status
        super().__init__(f"Task {task_id} is {status.value} and cannot be {wanted}.")


class TaskProtected(StaffError):
    """Other rows of the site refer to the task and protect it."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        super().__init__(
            f"Task {task_id} cannot be removed: other rows of this site refer to it. "
            f"Remove those first."
        )


class AlreadyRetried(IllegalTransition):
    """The task was already retried.

    `retried_as` is the new task, for users who may see it; the message does not name it.
    """

    def __init__(self, task_id: UUID, status: Status, retried_as: UUID) -> None:
        super().__init__(task_id, status, "retried twice")
        self.retried_as = retried_as
        self.args = (f"Task {task_id} was already retried. Retry the new task instead.",)


class Retry(StaffError):
    """The attempt failed, and the task asks for another one.

    A task raises this. `after` is the wait, in seconds or as a timedelta; without it, the wait
    grows with each attempt, as after any error. The attempt counts: a task that has no attempt left
    fails with this error.
    """

    def __init__(self, message: str | None = None, *, after: float | timedelta | None = None):
        super().__init__(message or "The task asked for another attempt.")
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        # More than a year is a mistake, such as milliseconds, and could pass the last date.
        if seconds is not None and not 0 <= seconds <= AFTER_MAX:
            raise ValueError(f"after must be from 0 to {AFTER_MAX} seconds (a year), not {after!r}")
        self.after = None if seconds is None else timedelta(seconds=float(seconds))


class WorkerLost(StaffError):
    """The worker that ran this task disappeared."""


class TaskInterrupted(BaseException):
    """The running task must stop now.

    Derives from BaseException, so that `except Exception` in a task does not swallow it. The task's
    next progress call raises it; let it pass, or clean up and re-raise.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class TaskCancelled(TaskInterrupted):
    """The task was cancelled."""


class TaskTimedOut(TaskInterrupted):
    """The task ran longer than its timeout."""

    @property
    def public_error(self) -> str:
        return str(self)


class LeaseLost(TaskInterrupted):
    """The task was taken from this worker, so its writes are refused."""


class TaskReleased(TaskInterrupted):
    """The worker is shutting down. Another worker will run this task from the start."""
