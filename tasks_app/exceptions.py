"""Every error this app raises, in two trees: what is wrong, and what stops a running task.

A class docstring is its default message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from tasks_app.states import Status


#: The longest that a task may have its next attempt wait: a year, in seconds.
AFTER_MAX = 365 * 24 * 60 * 60


class TaskError(Exception):
    """Something is wrong with a task."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)

    @property
    def public_error(self) -> str | None:
        """What the owner of a task reads that fails with this; None for nothing.

        An exception of any class may have one. A task raises TaskError, or a subclass of its own,
        to fail with words for its owner.
        """
        return str(self)


class StaffError(TaskError):
    """Something is wrong that only staff can put right."""

    @property
    def public_error(self) -> None:
        return None


def by_field(errors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return faults as Pydantic lists them by field, dotted where it is nested.

    What stood in the fields is left out: it may be secret, and others read errors.
    """
    return {".".join(str(part) for part in error["loc"]): str(error["msg"]) for error in errors}


def told(faults: Mapping[str, str], whole: str = "") -> str:
    return "; ".join(
        f"{field}: {fault}" if field else f"{whole}{fault}" for field, fault in faults.items()
    )


class UnknownTask(StaffError):
    """There is no task class of this name."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self.why = why
        super().__init__(
            f"There is no task {name!r}: {why}. Name a subclass of BaseTask by its dotted path, "
            f"such as 'shop.tasks.ImportOrders'."
        )


class InvalidTask(StaffError):
    """A task class is declared in a way that cannot run."""


class InvalidParams(StaffError):
    """The parameters do not fit the task.

    `errors` maps each field, dotted where it is nested and empty for all of them, to its fault.
    `faults` are the same as Pydantic lists them, without what stood in the fields.
    """

    def __init__(self, task_name: str, errors: Iterable[Mapping[str, Any]]) -> None:
        self.faults = [
            {key: error[key] for key in ("type", "loc", "msg", "ctx") if key in error}
            for error in errors
        ]
        self.errors = by_field(self.faults)
        super().__init__(f"Parameters of {task_name} are wrong: {told(self.errors, 'params: ')}")


class InvalidResult(StaffError):
    """A task returned something else than it declared, or something JSON cannot hold."""

    def __init__(self, task_name: str, errors: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(f"{task_name} returned a wrong result: {told(by_field(errors))}")


class TaskNotFound(StaffError):
    """There is no such task."""

    def __init__(self, task_id: UUID | str) -> None:
        self.task_id = task_id
        super().__init__(f"There is no task {task_id}. It may have been removed by clean-up.")


class DuplicateTask(StaffError):
    """An unfinished task has this unique key already.

    Which one, `task_id` says, for those who may see it; the words do not. None where a key was
    given twice at once.
    """

    def __init__(self, unique_key: str, task_id: UUID | None = None) -> None:
        self.unique_key = unique_key
        self.task_id = task_id
        super().__init__(
            f"Another task with the unique key {unique_key!r} has not finished. "
            f"Wait for it, cancel it, or use another key."
        )

    #: The same without the key.
    without_key = (
        "Another task with the same unique key has not finished. Wait for it, or cancel it."
    )


class IdempotencyKeyReused(StaffError):
    """The owner started something else by this idempotency key."""

    def __init__(self, key: str, task_id: UUID) -> None:
        self.key = key
        self.task_id = task_id
        super().__init__(
            f"The idempotency key {key!r} started task {task_id}, which is another one, or has "
            f"other parameters. Use a new key for each new start."
        )


class IllegalTransition(StaffError):
    """The task's status does not allow this."""

    def __init__(self, task_id: UUID, status: Status, wanted: str) -> None:
        self.task_id = task_id
        self.status = status
        super().__init__(f"Task {task_id} is {status.value} and cannot be {wanted}.")


class TaskProtected(StaffError):
    """Other rows of the site refer to the task, and keep it."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        super().__init__(
            f"Task {task_id} cannot be removed: other rows of this site refer to it. "
            f"Remove those first."
        )


class AlreadyRetried(IllegalTransition):
    """The task was started anew already.

    As which one, `retried_as` says, for those who may see it; the words do not.
    """

    def __init__(self, task_id: UUID, status: Status, retried_as: UUID) -> None:
        super().__init__(task_id, status, "retried twice")
        self.retried_as = retried_as
        self.args = (f"Task {task_id} was retried already. Retry its repetition instead.",)


class Retry(StaffError):
    """Raised by a task: this attempt came to nothing, and the next should come after a while.

    `after` is in seconds, or a timedelta; left out, the wait grows with each attempt, as after any
    error. Counts as an attempt: a task that has none left fails with this.
    """

    def __init__(self, message: str | None = None, *, after: float | timedelta | None = None):
        super().__init__(message or "The task asked to be tried again.")
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        # Past a year it is a mistake, such as milliseconds; and a date has an end.
        if seconds is not None and not 0 <= seconds <= AFTER_MAX:
            raise ValueError(f"after must be from 0 to {AFTER_MAX} seconds (a year), not {after!r}")
        self.after = None if seconds is None else timedelta(seconds=float(seconds))


class WorkerLost(StaffError):
    """The worker that ran this task disappeared."""


class TaskInterrupted(BaseException):
    """The running task must stop now.

    Derived from BaseException so that `except Exception` in a task does not swallow it.
    Raised by the task's next progress call; let it pass, or clean up and re-raise.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class TaskCancelled(TaskInterrupted):
    """Somebody asked for this task to be cancelled."""


class TaskTimedOut(TaskInterrupted):
    """The task ran longer than it may."""

    @property
    def public_error(self) -> str:
        return str(self)


class LeaseLost(TaskInterrupted):
    """The task was taken from this worker, so nothing it does counts any more."""


class TaskReleased(TaskInterrupted):
    """The worker shuts down, and another one will run this task from its start."""
