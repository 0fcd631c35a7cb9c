"""Typed settings. The Django setting is `TASK_` followed by the field's name in upper case."""

from functools import cache
from typing import Annotated, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

PREFIX = "TASK_"

HOUR = 60 * 60
DAY = 24 * HOUR
#: The longest allowed duration: a century, because dates have an upper limit.
LONGEST = 100 * 365 * DAY

Seconds = Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)]


class TaskSettings(BaseModel):
    """The settings of a site. All durations are in seconds; None means no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Threads of a worker: how many tasks it runs at the same time.
    max_workers: PositiveInt = 4
    #: How long one attempt may run, unless its class or its start sets another timeout.
    timeout_seconds: PositiveSeconds | None = 300.0
    #: How long a claim is valid without a heartbeat. After a worker is killed, its tasks wait this
    #: long.
    lease_seconds: PositiveSeconds = 30.0
    #: How often a worker renews its leases and looks for tasks of lost workers.
    heartbeat_seconds: PositiveSeconds = 10.0
    #: How long running tasks may continue after SIGTERM before they are released.
    shutdown_grace_seconds: Seconds = 25.0
    #: How long a task may continue after it was asked to stop. Then an exception is raised in its
    #: thread; after the same time again, the thread is abandoned.
    interrupt_grace_seconds: PositiveSeconds = 5.0
    #: Whether exceptions are raised in threads. A class can still forbid it for itself.
    interrupt: bool = True
    #: A worker with this many stuck threads finishes its other tasks and exits.
    max_stuck: PositiveInt = 4
    #: The shortest time between two writes of a task's progress.
    progress_interval_seconds: Seconds = 0.1
    #: How often to look for changes if the database cannot signal commits.
    poll_interval_seconds: PositiveSeconds = 0.1
    #: Whether to learn of commits by PostgreSQL's LISTEN. A pooler in transaction mode breaks it.
    listen: bool = True
    #: The most `progress.log()` lines kept per attempt. The rest are counted and dropped.
    max_log_lines: PositiveInt = 1000
    #: The wait before the second attempt. It doubles with each attempt, up to the maximum.
    retry_backoff_seconds: PositiveSeconds = 5.0
    retry_backoff_max_seconds: PositiveSeconds = HOUR * 1.0

    #: How often a worker prunes finished tasks.
    cleanup_interval_seconds: PositiveSeconds = 600.0
    #: How long finished tasks are kept.
    retention_seconds: PositiveSeconds | None = 7.0 * DAY
    #: How long failed tasks are kept.
    failed_retention_seconds: PositiveSeconds | None = 30.0 * DAY

    #: The class behind `tasks_app.service.task_service`.
    service: str = "tasks_app.service.TaskService"

    #: How often a stream without events sends a keep-alive.
    stream_keepalive_seconds: PositiveSeconds = 4.0
    #: The most tasks that one stream may watch.
    stream_max_tasks: PositiveInt = 100
    #: The most streams that one user may have open in one web process.
    stream_max_per_user: PositiveInt | None = 100

    #: How the API authenticates: dotted paths of django-ninja authenticators, tried in order.
    api_auth: list[str] = Field(["tasks_app.api.SessionAuth"], min_length=1)
    #: The largest request body that the API accepts.
    api_max_body_bytes: PositiveInt = 2 * 1024 * 1024
    #: The most unfinished tasks a user may have when starting another one over the API.
    api_max_unfinished: PositiveInt | None = 1000

    @property
    def silence_seconds(self) -> float:
        """How long a worker may be silent before other workers rescue its tasks."""
        return self.lease_seconds + self.heartbeat_seconds


def declared() -> dict[str, Any]:
    """Return the settings that this site sets, by field name. Ignores unknown `TASK_…` names."""
    return {
        field: getattr(settings, PREFIX + field.upper())
        for field in TaskSettings.model_fields
        if hasattr(settings, PREFIX + field.upper())
    }


@cache
def task_settings() -> TaskSettings:
    """Return the settings in force.

    Raises ImproperlyConfigured, with the setting and the rule, if one is invalid;
    `manage.py check` reports the same faults beforehand.
    """
    try:
        return TaskSettings.model_validate(declared())
    except ValidationError as error:
        faults = "; ".join(
            f"{PREFIX}{str(fault['loc'][0]).upper()} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ImproperlyConfigured(faults) from error


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting.startswith(PREFIX):
        task_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tasks_app.conf")
