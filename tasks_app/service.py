"""What application code calls to start, watch and cancel tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
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

from tasks_app import lifecycle, retention
from tasks_app.base import UNSET, BaseTask, Unset, task_class
from tasks_app.clock import within_the_calendar
from tasks_app.conf import PREFIX, task_settings
from tasks_app.exceptions import (
    DuplicateTask,
    IdempotencyKeyReused,
    InvalidTask,
    TaskNotFound,
)
from tasks_app.models import Task
from tasks_app.schemas import ATTEMPTS_MAX, KEY_MAX, QUEUE_MAX, TaskInfo, TaskStartResponse

if TYPE_CHECKING:
    from tasks_app.permissions import User

Params = Mapping[str, Any] | BaseModel


class TaskService:
    """Starts, shows and ends tasks.

    Trusts its caller: who may do what is for the door to ask (see `permissions`). Every call takes
    part in the caller's transaction. Use the configured instance, `task_service`; to replace it,
    subclass and name the class in TASK_SERVICE.
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

        It exists exactly if the surrounding transaction commits, and starts after that. Options
        left out are the class's own. While a task with the same `unique_key` is unfinished, no
        second one can be started. `timeout` is in seconds for each attempt, None without limit.

        Of all starts by one owner with the same `idempotency_key` the first makes the task, and the
        others return it, also where they come at the same moment.

        Raises UnknownTask, InvalidTask, InvalidParams, DuplicateTask, IdempotencyKeyReused where
        the key started something else, and Pydantic's ValidationError (a ValueError) for an option
        that makes no sense; then nothing is written.
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

        Takes the options of `start_task`, but for the idempotency key, which is one start's; they
        run in the given order. Raises what `start_task` raises, and so DuplicateTask when one
        `unique_key` is given to many.
        """
        cls = task_class(task)
        chosen = StartOptions.of(cls, options)
        if chosen.idempotency_key is not None:
            raise ValueError(
                "idempotency_key is the name of one start, and start_many makes many. "
                "Use start_task for each of them, with a key of its own."
            )
        rows = [chosen.row(cls, params) for params in many]
        if rows:
            lifecycle.enqueue(rows)
        return [row.started() for row in rows]

    def get_task_status(self, task_id: UUID) -> TaskInfo:
        """Return a task as it stands. Raises TaskNotFound."""
        try:
            task: Task = Task.primary.get(pk=task_id)
            return task.info()
        except Task.DoesNotExist:
            raise TaskNotFound(task_id) from None

    def cancel_task(self, task_id: UUID, *, by: User | None = None) -> TaskInfo:
        """Cancel a pending task at once; ask a running one to stop.

        A running task learns of it at its next progress call, and the returned TaskInfo says
        `cancel_requested`. Raises TaskNotFound, and IllegalTransition when it has finished.
        """
        return lifecycle.request_cancel(task_id, by.get_username() if by else "").info()

    def retry_task(self, task_id: UUID, *, by: User | None = None) -> TaskStartResponse:
        """Start a failed or cancelled task anew, as another task with the same parameters.

        The old one stays, with its history, and is named as `retried_from` of the new one. Of any
        number who ask at once, one starts it. Raises TaskNotFound; IllegalTransition where it has
        not failed or been cancelled; AlreadyRetried, which is one, naming the task it was retried
        as; UnknownTask where its class no longer exists; and DuplicateTask.
        """
        return lifecycle.enqueue_again(task_id, by.get_username() if by else "").started()

    def remove_completed_task(self, task_id: UUID) -> None:
        """Delete a finished task and its history.

        Raises TaskNotFound; IllegalTransition while it has not finished; and TaskProtected where
        rows of the site's own refer to it and keep it.
        """
        retention.remove(task_id)


def users_key(user: User, key: str) -> str:
    """Return the unique key for a key that a user's request names.

    Each user's keys are in a space of their own. So a request can neither block a start of the
    site's own code or of another user, nor find out which keys those use.
    """
    own = f"by-user:{quote(str(user.pk), safe='')}:{key}"
    return own if len(own) <= KEY_MAX else f"by-user:{sha256(own.encode()).hexdigest()}"


def _start_once(row: Task) -> TaskStartResponse:
    """Enqueue a task, or return the one that its owner started by the same idempotency key."""
    if earlier := _started_before(row):
        return earlier
    try:
        lifecycle.enqueue([row])
    except (DuplicateTask, IntegrityError):
        # The same start at the same moment: the database let one of them in.
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
    """Whether JSON is the same, where PostgreSQL gives back a large float as the integer that its
    shortest digits spell.
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        return stored.keys() == given.keys() and all(
            _alike(value, given[key]) for key, value in stored.items()
        )
    if isinstance(stored, list) and isinstance(given, list):
        return len(stored) == len(given) and all(map(_alike, stored, given))
    if type(stored) is int and type(given) is float:
        return float(stored) == given
    return bool(stored == given)


_OF_CLASS = ("queue", "priority", "timeout", "max_attempts")


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must have no NUL character, which no database stores")
    return text


QueueName = Annotated[str, Field(min_length=1, max_length=QUEUE_MAX), AfterValidator(_storable)]
Key = Annotated[str, Field(min_length=1, max_length=KEY_MAX), AfterValidator(_storable)]


class StartOptions(BaseModel):
    """How a task is to run: as its class says, and its start where that says otherwise."""

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
        """Raises Pydantic's ValidationError, naming the option, whoever gave it."""
        options = {name: getattr(task, name) for name in _OF_CLASS}
        options |= {
            name: value
            for name, value in given.items()
            # Left out. But for a timeout, None is an answer: without limit.
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
    def fits_the_site(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and timezone.is_aware(moment) is not settings.USE_TZ:
            raise ValueError(
                "must be an aware datetime, as django.utils.timezone.now() returns"
                if settings.USE_TZ
                else "must be a naive datetime, for USE_TZ is off"
            )
        return None if moment is None else within_the_calendar(moment)

    @model_validator(mode="after")
    def has_whose_key_it_is(self) -> Self:
        if self.idempotency_key is not None and getattr(self.owner, "pk", None) is None:
            raise ValueError("an idempotency_key is its owner's: give the owner, too")
        return self

    def row(self, cls: type[BaseTask], params: Params) -> Task:
        """Return the unsaved row of a new task. Raises InvalidTask and InvalidParams."""
        if cls.execute is BaseTask.execute:
            raise InvalidTask(f"{cls.__name__} has no execute() of its own, so nothing would run.")
        cls.result_type()  # One that cannot be built would fail the task after its work.
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


#: The site's service, made at its first use from the class that TASK_SERVICE names.
task_service: TaskService = SimpleLazyObject(_configured)  # type: ignore[assignment]


def _replace(*, setting: str, **_kwargs: object) -> None:
    if setting == PREFIX + "SERVICE":
        task_service.__init__(_configured)  # type: ignore[misc]


setting_changed.connect(_replace, dispatch_uid="tasks_app.service")
