"""Typed settings. Each is `TASK_` and the upper-case name of a field, in Django's settings."""

from functools import cache
from typing import Annotated, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

PREFIX = "TASK_"

HOUR = 60 * 60
DAY = 24 * HOUR
#: The longest that any duration may be: a century, since dates have an end.
LONGEST = 100 * 365 * DAY

Seconds = Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)]


class TaskSettings(BaseModel):
    """What a site may set. All durations are seconds; None means without limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Hands of a worker: how many tasks it runs at a time.
    max_workers: PositiveInt = 4
    #: How long one attempt may run, unless its class or its start says otherwise.
    timeout_seconds: PositiveSeconds | None = 300.0
    #: A claim holds this long without a heartbeat. A killed worker's tasks wait for as long.
    lease_seconds: PositiveSeconds = 30.0
    #: How often a worker renews its leases and looks for those of lost workers.
    heartbeat_seconds: PositiveSeconds = 10.0
    #: How long running tasks may go on after SIGTERM before they are released.
    shutdown_grace_seconds: Seconds = 25.0
    #: How long a task that was told to stop may go on before an exception is raised in its thread;
    #: and for how long after that before it is given up.
    interrupt_grace_seconds: PositiveSeconds = 5.0
    #: Whether exceptions are raised in threads at all, where a class does not forbid it itself.
    interrupt: bool = True
    #: A worker with so many threads that did not stop finishes its other tasks and ends.
    max_stuck: PositiveInt = 4
    #: The most often a task's progress is written and sent.
    progress_interval_seconds: Seconds = 0.1
    #: Where the database cannot tell of a commit, how often to look.
    poll_interval_seconds: PositiveSeconds = 0.1
    #: Whether PostgreSQL tells of commits by LISTEN, which a pooler in transaction mode cannot.
    listen: bool = True
    #: The most `progress.log()` lines kept of one attempt; more are counted and dropped.
    max_log_lines: PositiveInt = 1000
    #: The wait before the second attempt; it doubles with each, up to the maximum.
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

    #: How often a silent stream says that it is alive.
    stream_keepalive_seconds: PositiveSeconds = 4.0
    #: The most tasks one stream may watch.
    stream_max_tasks: PositiveInt = 100
    #: The most streams that one user may have open in one web process.
    stream_max_per_user: PositiveInt | None = 100

    #: How the API learns who asks: dotted paths of django-ninja's authenticators, asked in order.
    api_auth: list[str] = Field(["tasks_app.api.SessionAuth"], min_length=1)
    #: The longest body that the API reads.
    api_max_body_bytes: PositiveInt = 2 * 1024 * 1024
    #: The most unfinished tasks with which a user may start another by the API.
    api_max_unfinished: PositiveInt | None = 1000

    @property
    def silence_seconds(self) -> float:
        """How long a worker may be silent before others take its tasks back."""
        return self.lease_seconds + self.heartbeat_seconds


def declared() -> dict[str, Any]:
    """The settings this site sets, by field name. Unknown `TASK_…` names are not ours to judge."""
    return {
        field: getattr(settings, PREFIX + field.upper())
        for field in TaskSettings.model_fields
        if hasattr(settings, PREFIX + field.upper())
    }


@cache
def task_settings() -> TaskSettings:
    """The settings in force.

    Raises ImproperlyConfigured, naming the setting and the rule, when one is nonsense;
    `manage.py check` reports the same beforehand.
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
