"""The facts of a task's history."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from tasks_app import schemas
from tasks_app.models.expressions import CurrentTransaction
from tasks_app.models.primary import Primary
from tasks_app.models.task import Task, aware
from tasks_app.states import FACTS, TERMINAL_EVENTS, EventType


class TaskEvent(models.Model):
    """One immutable fact of a task's history. Its id is the id of its server-sent event.

    Within a task, ids grow in the order of commits, because each fact is written while the row of
    its task is locked. Across tasks, a transaction that commits late makes its ids visible late.
    There, `transaction` shows which facts are new.
    """

    id = models.BigAutoField(primary_key=True)
    task = models.ForeignKey(
        Task,
        verbose_name=_("task"),
        on_delete=models.CASCADE,
        related_name="events",
        db_index=False,  # The index tasks_event_of_task serves.
    )
    event_type = models.CharField(_("type"), max_length=30, choices=EventType.choices)
    timestamp = models.DateTimeField(_("time"))
    data = models.JSONField(_("data"), default=dict)
    transaction = models.BigIntegerField(null=True, editable=False, db_default=CurrentTransaction())

    objects = models.Manager()
    primary = Primary()

    class Meta:
        verbose_name = _("task event")
        verbose_name_plural = _("task events")
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                name="tasks_event_is_fact",
                condition=Q(event_type__in=sorted(FACTS)),
            ),
            # The database refuses a second terminal event.
            models.UniqueConstraint(
                name="tasks_one_terminal_event",
                fields=["task"],
                condition=Q(event_type__in=sorted(TERMINAL_EVENTS)),
            ),
        ]
        indexes = [
            models.Index(fields=["task", "id"], name="tasks_event_of_task"),
            # Empty on databases whose transactions have no ids.
            models.Index(
                fields=["transaction"],
                name="tasks_event_transaction",
                condition=Q(transaction__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} of {self.task_id}"

    def message(self, *, for_staff: bool = False) -> schemas.TaskEvent:
        """Return the event as it is sent, with its error as the task's owner or as staff reads it.

        A stream is encoded once for all viewers, so it gets the owner's version.
        """
        data = dict(self.data)
        public = data.pop("public_error", None)
        if "error" in data and not for_staff:
            data["error"] = schemas.TaskError.public(public).model_dump()
        return schemas.TaskEvent(
            event_type=EventType(self.event_type),
            task_id=self.task_id,
            timestamp=aware(self.timestamp),
            data=data,
        )
