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
    #: The timeout of one attempt, unless its class or its start sets another one.
    timeout_seconds: PositiveSeconds | None = 300.0
    #: A claim is valid this long without a heartbeat. A killed worker's tasks wait this long.
    lease_seconds: PositiveSeconds = 30.0
    #: The interval at which a worker renews its leases and looks for tasks of lost workers.
    heartbeat_seconds: PositiveSeconds = 10.0
    #: Running tasks may continue this long after SIGTERM. Then they are released.
    shutdown_grace_seconds: Seconds = 25.0
    #: A task may continue this long after it was asked to stop. Then an exception is raised in its
    #: thread; after the same time again, the thread is abandoned.
    interrupt_grace_seconds: PositiveSeconds = 5.0
    #: Allows exceptions to be raised in threads. A class can still forbid it for itself.
    interrupt: bool = True
    #: A worker with this many stuck threads finishes its other tasks and exits.
    max_stuck: PositiveInt = 4
    #: The shortest time between two writes of a task's progress.
    progress_interval_seconds: Seconds = 0.1
    #: The interval between looks for changes if the database cannot signal commits.
    poll_interval_seconds: PositiveSeconds = 0.1
    #: Uses PostgreSQL's LISTEN to learn of commits. A pooler in transaction mode breaks it.
    listen: bool = True
    #: The most `progress.log()` lines kept per attempt. The rest are counted and dropped.
    max_log_lines: PositiveInt = 1000
    #: The wait before the second attempt. It doubles with each attempt, up to the maximum.
    retry_backoff_seconds: PositiveSeconds = 5.0
    retry_backoff_max_seconds: PositiveSeconds = HOUR * 1.0

    #: The interval at which a worker prunes finished tasks.
    cleanup_interval_seconds: PositiveSeconds = 600.0
    #: Finished tasks are kept this long.
    retention_seconds: PositiveSeconds | None = 7.0 * DAY
    #: Failed tasks are kept this long.
    failed_retention_seconds: PositiveSeconds | None = 30.0 * DAY

    #: The class behind `tasks_app.service.task_service`.
    service: str = "tasks_app.service.TaskService"

    #: The interval of keep-alive messages in a stream without events.
    stream_keepalive_seconds: PositiveSeconds = 4.0
    #: The most tasks that one stream may watch.
    stream_max_tasks: PositiveInt = 100
    #: The most streams that one user may have open in one web process.
    stream_max_per_user: PositiveInt | None = 100

    #: The authenticators of the API, for django-ninja: dotted paths, tried in order.
    api_auth: list[str] = Field(["tasks_app.api.SessionAuth"], min_length=1)
    #: The largest request body that the API accepts.
    api_max_body_bytes: PositiveInt = 2 * 1024 * 1024
    #: The most unfinished tasks a user may have when starting another one over the API.
    api_max_unfinished: PositiveInt | None = 1000

    @property
    def silence_seconds(self) -> float:
        """The silence of a worker after which other workers rescue its tasks."""
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
