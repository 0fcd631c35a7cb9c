"""A worker: a process that runs tasks."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils.translation import gettext_lazy as _

from tasks_app.models.primary import Primary
from tasks_app.models.querysets import WorkerQuerySet


class Worker(models.Model):
    """A process that runs, or ran, tasks."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    hostname = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process ID"))
    threads = models.PositiveIntegerField(
        _("threads"), help_text=_("Tasks that it can run at the same time")
    )
    queues = models.JSONField(_("queues"), default=list, help_text=_("Empty means all queues"))
    started_at = models.DateTimeField(_("started"))
    heartbeat_at = models.DateTimeField(_("last heartbeat"))
    #: As of its last heartbeat.
    busy = models.PositiveIntegerField(
        _("busy"),
        default=0,
        db_default=0,
        help_text=_("Tasks it was running at its last heartbeat"),
    )
    stuck = models.PositiveIntegerField(
        _("stuck threads"),
        default=0,
        db_default=0,
        help_text=_("Threads of tasks that ignored the stop request"),
    )
    #: Set when it signed off; a worker that was killed has none.
    stopped_at = models.DateTimeField(_("stopped"), null=True)

    objects = WorkerQuerySet.as_manager()
    primary = Primary.from_queryset(WorkerQuerySet)()

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        indexes = [models.Index(fields=["heartbeat_at"], name="tasks_worker_heartbeat")]

    def __str__(self) -> str:
        return f"{self.hostname}:{self.pid}"
