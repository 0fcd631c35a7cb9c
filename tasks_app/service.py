"""The service by which application code starts, watches and cancels tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import quote
from uuid import UUID

from django.conf import settings
from django.core.signals import setting_changed
from django.db import IntegrityError
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.module_loading import import_string
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from tasks_app.conf import PREFIX, task_settings
from tasks_app.exceptions import (
    DuplicateTask,
    IdempotencyKeyReused,
    InvalidTask,
    TaskNotFound,
)
from tasks_app.models import Task
from tasks_app.schemas import ATTEMPTS_MAX, KEY_MAX, QUEUE_MAX, TaskInfo, TaskStartResponse
from tasks_app.store import lifecycle, retention
from tasks_app.store.clock import within_the_calendar
from tasks_app.tasks.base import UNSET, BaseTask, Unset, task_class

if TYPE_CHECKING:
    from tasks_app.permissions import User

Params = Mapping[str, Any] | BaseModel


class TaskService:
    """Starts, shows and ends tasks.

    It does not check permissions: the caller does that (see `permissions`). Every call joins the
    caller's transaction. Use the configured instance, `task_service`. To replace it, subclass this
    and name the class in TASK_SERVICE.
    """

    def start_task(
        self,
        task: type[BaseTask] | str,
        params: Params | None = None,
        *,
        owner: User | None = None,
        queue: str | None = None,
        priority: int | None = None,
        run_after: datetime | None = None,
        unique_key: str | None = None,
        timeout: float | Unset | None = UNSET,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
    ) -> TaskStartResponse:
        """Enqueue a task, given as a class or its dotted path.

        The task exists exactly if the surrounding transaction commits, and starts after that.
        Options that are not given are the class's own. While a task with the same `unique_key` is
        unfinished, no second one can be started. `timeout` is in seconds per attempt; None means no
        limit.

        The first start by an owner with an `idempotency_key` makes the task. Later starts with the
        same key return that task, even if they come at the same time.

        Raises UnknownTask, InvalidTask, InvalidParams, DuplicateTask, IdempotencyKeyReused if the
        key started something else, and Pydantic's ValidationError (a ValueError) for an invalid
        option. In all these cases, nothing is written.
        """
        options: dict[str, Any] = {
            "owner": owner,
            "queue": queue,
            "priority": priority,
            "run_after": run_after,
            "unique_key": unique_key,
            "timeout": timeout,
            "max_attempts": max_attempts,
        }
        if idempotency_key is None:
            [started] = self.start_many(task, [params or {}], **options)
            return started
        cls = task_class(task)
        chosen = StartOptions.of(cls, options | {"idempotency_key": idempotency_key})
        return _start_once(chosen.row(cls, params or {}))

    def start_many(
        self, task: type[BaseTask] | str, many: Iterable[Params], **options: Any
    ) -> list[TaskStartResponse]:
        """Enqueue one task for each set of parameters: all of them, or none.

        Takes the options of `start_task` except the idempotency key, which belongs to one start.
        The tasks start in the given order. Raises what `start_task` raises; a `unique_key` for
        several tasks is therefore a DuplicateTask.
        """
        cls = task_class(task)
        chosen = StartOptions.of(cls, options)
        if chosen.idempotency_key is not None:
            raise ValueError(
                "start_many makes many tasks, and an idempotency_key belongs to one start. "
                "Use start_task for each task, with its own key."
            )
        rows = [chosen.row(cls, params) for params in many]
        if rows:
            lifecycle.enqueue(rows)
        return [row.started() for row in rows]

    def get_task_status(self, task_id: UUID) -> TaskInfo:
        """Return the current state of a task. Raises TaskNotFound."""
        try:
            task: Task = Task.primary.get(pk=task_id)
            return task.info()
        except Task.DoesNotExist:
            raise TaskNotFound(task_id) from None

    def cancel_task(self, task_id: UUID, *, by: User | None = None) -> TaskInfo:
        """Cancel a pending task, or ask a running one to stop.

        A running task stops at its next progress call; the returned TaskInfo has
        `cancel_requested`. Raises TaskNotFound, and IllegalTransition if the task has finished.
        """
        return lifecycle.request_cancel(task_id, by.get_username() if by else "").info()

    def retry_task(self, task_id: UUID, *, by: User | None = None) -> TaskStartResponse:
        """Retry a failed or cancelled task, as a new task with the same parameters.

        The old task stays, with its history, and is the new one's `retried_from`. If several
        callers ask at the same time, only one starts it. Raises TaskNotFound; IllegalTransition if
        the task has not failed or been cancelled; AlreadyRetried (an IllegalTransition) with the
        task it was retried as; UnknownTask if its class no longer exists; and DuplicateTask.
        """
        return lifecycle.enqueue_again(task_id, by.get_username() if by else "").started()

    def remove_completed_task(self, task_id: UUID) -> None:
        """Delete a finished task and its history.

        Raises TaskNotFound; IllegalTransition if it has not finished; and TaskProtected if other
        rows of the site refer to it and protect it.
        """
        retention.remove(task_id)


def users_key(user: User, key: str) -> str:
    """Return the unique key for a key in a user's request.

    Each user has a separate key space. So a request cannot block a start by the site's own code or
    by another user, and cannot find out which keys those use.
    """
    own = f"by-user:{quote(str(user.pk), safe='')}:{key}"
    return own if len(own) <= KEY_MAX else f"by-user:{sha256(own.encode()).hexdigest()}"


def _start_once(row: Task) -> TaskStartResponse:
    """Enqueue a task, or return the one that its owner started with the same idempotency key."""
    if earlier := _started_before(row):
        return earlier
    try:
        lifecycle.enqueue([row])
    except (DuplicateTask, IntegrityError):
        # Another start with this key may have come first, at the same time.
        if earlier := _started_before(row):
            return earlier
        raise
    return row.started()


def _started_before(row: Task) -> TaskStartResponse | None:
    key = str(row.idempotency_key)
    earlier = Task.primary.filter(owner_id=row.owner_id, idempotency_key=key).first()
    if earlier is None:
        return None
    if earlier.name != row.name or not _alike(earlier.params, row.params):
        raise IdempotencyKeyReused(key, earlier.pk)
    return earlier.started(replayed=True)


def _alike(stored: Any, given: Any) -> bool:
    """Return whether stored and given JSON are equal.

    PostgreSQL returns a float written with an exponent, such as 1e+16, as an integer.
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        return stored.keys() == given.keys() and all(
            _alike(value, given[key]) for key, value in stored.items()
        )
    if isinstance(stored, list) and isinstance(given, list):
        return len(stored) == len(given) and all(map(_alike, stored, given))
    if type(stored) is int and type(given) is float:
        return "e" in repr(given) and Decimal(repr(given)) == stored
    # In Python, True == 1 == 1.0, but they are different parameters.
    return type(stored) is type(given) and bool(stored == given)


_OF_CLASS = ("queue", "priority", "timeout", "max_attempts")


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character, which databases cannot store")
    return text


QueueName = Annotated[str, Field(min_length=1, max_length=QUEUE_MAX), AfterValidator(_storable)]
Key = Annotated[str, Field(min_length=1, max_length=KEY_MAX), AfterValidator(_storable)]


class StartOptions(BaseModel):
    """The options of a start: those given, and those of the class for the rest."""

    model_config = ConfigDict(extra="forbid")

    owner: Any = None
    queue: QueueName
    priority: int = Field(ge=-100, le=100)
    run_after: datetime | None = None
    unique_key: Key | None = None
    timeout: Annotated[PositiveFloat, Field(allow_inf_nan=False)] | None
    max_attempts: int = Field(ge=1, le=ATTEMPTS_MAX)
    idempotency_key: Key | None = None

    @classmethod
    def of(cls, task: type[BaseTask], given: Mapping[str, Any]) -> Self:
        """Return the options of a start. Raises Pydantic's ValidationError, with the option."""
        options = {name: getattr(task, name) for name in _OF_CLASS}
        options |= {
            name: value
            for name, value in given.items()
            # None means "not given", except for a timeout, where it means "no limit".
            if value is not UNSET and (value is not None or name == "timeout")
        }
        if options["timeout"] is UNSET:
            options["timeout"] = task_settings().timeout_seconds
        return cls(**options)

    @field_validator("owner")
    @classmethod
    def is_a_user(cls, owner: Any) -> Any:
        if owner is not None and not hasattr(owner, "pk"):
            raise ValueError("must be a user, such as request.user, or None")
        return owner

    @field_validator("run_after")
    @classmethod
    def fits_the_site(cls, time: datetime | None) -> datetime | None:
        if time is not None and timezone.is_aware(time) is not settings.USE_TZ:
            raise ValueError(
                "must be an aware datetime, as django.utils.timezone.now() returns"
                if settings.USE_TZ
                else "must be a naive datetime, because USE_TZ is off"
            )
        return None if time is None else within_the_calendar(time)

    @model_validator(mode="after")
    def has_whose_key_it_is(self) -> Self:
        if self.idempotency_key is not None and getattr(self.owner, "pk", None) is None:
            raise ValueError("an idempotency_key belongs to an owner: give the owner, too")
        return self

    def row(self, cls: type[BaseTask], params: Params) -> Task:
        """Return the unsaved row of a new task. Raises InvalidTask and InvalidParams."""
        if cls.execute is BaseTask.execute:
            raise InvalidTask(f"{cls.__name__} has no execute() of its own, so it cannot run.")
        cls.result_type()  # If it cannot be built, the task would fail only after its work.
        return Task(
            name=cls.name(),
            params=cls.validate_params(params),
            owner_id=getattr(self.owner, "pk", None),
            queue=self.queue,
            priority=self.priority,
            run_after=self.run_after,  # type: ignore[misc]  # enqueue() fills in None
            unique_key=self.unique_key,
            idempotency_key=self.idempotency_key,
            timeout_seconds=self.timeout,
            max_attempts=self.max_attempts,
        )


def _configured() -> TaskService:
    service = import_string(task_settings().service)
    return service()  # type: ignore[no-any-return]


#: The site's service. It is created at its first use, from the class that TASK_SERVICE names.
task_service: TaskService = SimpleLazyObject(_configured)  # type: ignore[assignment]


def _replace(*, setting: str, **_kwargs: object) -> None:
    if setting == PREFIX + "SERVICE":
        task_service.__init__(_configured)  # type: ignore[misc]


setting_changed.connect(_replace, dispatch_uid="tasks_app.service")
