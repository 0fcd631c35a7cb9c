"""A task: one row. `store.lifecycle` writes its status, and nothing else does."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from tasks_app import schemas
from tasks_app.exceptions import UnknownTask
from tasks_app.models.primary import Primary
from tasks_app.models.querysets import NOT_OVER, TaskQuerySet
from tasks_app.models.worker import Worker
from tasks_app.states import TERMINAL, UNFINISHED, Status
from tasks_app.tasks.base import resolve

DEFAULT_QUEUE = "default"
WAITS = Q(status=Status.PENDING)


def aware(time: datetime) -> datetime:
    """Return a time with its zone, as callers expect it, also if USE_TZ is off."""
    return timezone.make_aware(time) if timezone.is_naive(time) else time


class Task(models.Model):
    """One unit of work, with its parameters, status, progress and result."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        pgettext_lazy("tasks_app", "name"), max_length=200, help_text=_("Dotted path of its class")
    )
    params = models.JSONField(_("parameters"), default=dict)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("owner"),
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,  # The index tasks_newest_of_owner serves.
    )
    queue = models.CharField(_("queue"), max_length=100, default=DEFAULT_QUEUE)
    priority = models.SmallIntegerField(_("priority"), default=0, help_text=_("Higher runs first"))
    run_after = models.DateTimeField(_("run after"))
    #: Null instead of empty for no key, so that the unique constraint does not apply.
    unique_key = models.CharField(_("unique key"), max_length=200, null=True)  # noqa: DJ001
    #: The key an HTTP client gives its request to start this task. The same key finds it again.
    idempotency_key = models.CharField(max_length=200, null=True, editable=False)  # noqa: DJ001
    #: The finished task that this one retries. A task is retried once; after that, its retry is.
    retried_from = models.OneToOneField(
        "self",
        verbose_name=_("retried from"),
        null=True,
        on_delete=models.SET_NULL,
        related_name="retried_as",
    )
    timeout_seconds = models.FloatField(_("timeout in seconds"), null=True)
    max_attempts = models.PositiveIntegerField(_("attempts allowed"), default=1)

    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, default=Status.PENDING
    )
    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    progress = models.FloatField(_("progress"), null=True)
    progress_text = models.TextField(_("progress text"), blank=True, default="")
    #: When the running attempt last reported progress.
    progress_at = models.DateTimeField(_("progress reported at"), null=True)
    result = models.JSONField(_("result"), null=True)
    error_type = models.CharField(_("error type"), max_length=200, blank=True, default="")
    error_message = models.TextField(_("error"), blank=True, default="")
    error_traceback = models.TextField(_("traceback"), blank=True, default="")
    #: The error message for the owner. Null instead of empty, so that adding the column is cheap.
    public_error = models.TextField(_("error shown to the owner"), null=True)  # noqa: DJ001

    stuck = models.BooleanField(
        _("stuck"),
        default=False,
        db_default=False,
        help_text=_("Ignored the stop request; its thread was abandoned"),
    )

    #: The claim: its worker, its token and its lease. Set only while running.
    worker = models.ForeignKey(
        Worker, verbose_name=_("worker"), null=True, on_delete=models.SET_NULL, related_name="tasks"
    )
    fencing_token = models.UUIDField(null=True, editable=False)
    lease_expires_at = models.DateTimeField(_("lease expires"), null=True)
    cancel_requested_at = models.DateTimeField(_("cancel requested"), null=True)

    created_at = models.DateTimeField(_("created"))
    started_at = models.DateTimeField(_("started"), null=True)
    finished_at = models.DateTimeField(_("finished"), null=True)

    #: The columns that are set when a task is started. A retry copies them.
    GIVEN = (
        "name",
        "params",
        "owner",
        "queue",
        "priority",
        "unique_key",
        "timeout_seconds",
        "max_attempts",
    )

    objects = TaskQuerySet.as_manager()
    primary = Primary.from_queryset(TaskQuerySet)()

    class Meta:
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        ordering = ["-created_at"]
        permissions = [
            ("start_task", _("Can start task")),
            ("cancel_task", _("Can cancel task")),
            ("retry_task", _("Can retry task")),
        ]
        constraints = [
            models.CheckConstraint(
                name="tasks_status_known", condition=Q(status__in=sorted(Status.values))
            ),
            models.CheckConstraint(
                name="tasks_progress_is_fraction",
                condition=Q(progress__isnull=True) | Q(progress__gte=0, progress__lte=1),
            ),
            models.CheckConstraint(
                name="tasks_terminal_has_finished_at",
                condition=Q(status__in=sorted(TERMINAL), finished_at__isnull=False)
                | Q(status__in=sorted(UNFINISHED), finished_at__isnull=True),
            ),
            models.CheckConstraint(
                name="tasks_running_is_claimed",
                condition=Q(
                    status=Status.RUNNING,
                    fencing_token__isnull=False,
                    lease_expires_at__isnull=False,
                    started_at__isnull=False,
                )
                | (
                    ~Q(status=Status.RUNNING)
                    & Q(fencing_token__isnull=True, lease_expires_at__isnull=True)
                ),
            ),
            models.CheckConstraint(
                name="tasks_failed_has_error",
                condition=Q(status=Status.FAILED) & ~Q(error_type="")
                | ~Q(status=Status.FAILED) & Q(error_type=""),
            ),
            models.CheckConstraint(
                name="tasks_attempt_in_range",
                condition=Q(max_attempts__gte=1, attempt__lte=F("max_attempts")),
            ),
            models.CheckConstraint(
                name="tasks_timeout_positive",
                condition=Q(timeout_seconds__isnull=True) | Q(timeout_seconds__gt=0),
            ),
            models.UniqueConstraint(
                name="tasks_unique_key_unfinished",
                fields=["unique_key"],
                condition=NOT_OVER,
            ),
            models.UniqueConstraint(
                name="tasks_idempotency_key",
                fields=["owner", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
            ),
        ]
        indexes = [
            # Claiming: from every queue, from some; and when the next delayed task is due.
            models.Index(fields=["-priority", "run_after"], name="tasks_waiting", condition=WAITS),
            models.Index(
                fields=["queue", "-priority", "run_after"],
                name="tasks_waiting_in_queue",
                condition=WAITS,
            ),
            models.Index(fields=["run_after"], name="tasks_due", condition=WAITS),
            # Rescue, and the relay's query of running tasks.
            models.Index(
                fields=["lease_expires_at"],
                name="tasks_leased",
                condition=Q(status=Status.RUNNING),
            ),
            # Lists: all tasks, one owner's, an owner's unfinished ones; and stuck tasks.
            models.Index(fields=["-created_at"], name="tasks_newest"),
            models.Index(fields=["owner", "-created_at"], name="tasks_newest_of_owner"),
            models.Index(
                fields=["owner", "-created_at"],
                name="tasks_unfinished_of_owner",
                condition=NOT_OVER,
            ),
            models.Index(fields=["finished_at"], name="tasks_stuck", condition=Q(stuck=True)),
            # Prune.
            models.Index(
                fields=["status", "finished_at"],
                name="tasks_finished",
                condition=Q(finished_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.pk}"

    def get_absolute_url(self) -> str:
        """Return the URL of the task's page. Raises NoReverseMatch without our URLs."""
        return reverse("tasks_app:task", args=[self.pk])

    @property
    def label(self) -> str:
        """The name that people read."""
        try:
            return str(resolve(self.name).verbose_name)
        except UnknownTask:
            # The class is gone or cannot be imported here. The row still has a page.
            return self.name

    @property
    def stream_url(self) -> str | None:
        try:
            return reverse("tasks_app:stream", args=[self.pk])
        except NoReverseMatch:
            return None

    @property
    def is_terminal(self) -> bool:
        return Status(self.status).is_terminal

    def started(self, *, replayed: bool = False) -> schemas.TaskStartResponse:
        return schemas.TaskStartResponse(
            task_id=self.pk,
            stream_url=self.stream_url,
            status=Status(self.status),
            replayed=replayed,
        )

    def info(self, *, for_staff: bool = False) -> schemas.TaskInfo:
        """Return the task's current state, with its error as its owner or as staff reads it."""
        error = schemas.TaskError.public(self.public_error)
        if for_staff:
            error = schemas.TaskError(type=self.error_type, message=self.error_message)
        return schemas.TaskInfo(
            task_id=self.pk,
            name=self.name,
            status=Status(self.status),
            progress=schemas.TaskProgressUpdate(text=self.progress_text, value=self.progress),
            attempt=self.attempt,
            max_attempts=self.max_attempts,
            cancel_requested=self.cancel_requested_at is not None,
            created_time=aware(self.created_at),
            run_after=aware(self.run_after) if self.status == Status.PENDING else None,
            start_time=self.started_at and aware(self.started_at),
            end_time=self.finished_at and aware(self.finished_at),
            result=self.result,
            error=error if self.error_type else None,
            retried_from=self.retried_from_id,
        )
