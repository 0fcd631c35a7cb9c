"""Querysets of tasks and workers: by state, and by who may see them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q

from tasks_app.conf import task_settings
from tasks_app.models.expressions import Unindexed
from tasks_app.states import Status

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

    from tasks_app.models import Task, Worker  # noqa: F401 - the types of the rows

#: Unfinished, as a constraint guarantees. A list of statuses would mean the same, but SQLite does
#: not use a partial index if the list comes as parameters.
NOT_OVER = Q(finished_at__isnull=True)


def holds(user: User | AnonymousUser, permission: str) -> bool:
    """Return whether a user has a permission. Always False for models without PermissionsMixin."""
    return hasattr(user, "has_perm") and user.has_perm(permission)


class TaskQuerySet(models.QuerySet["Task"]):
    def visible_to(self, user: User | AnonymousUser) -> TaskQuerySet:
        """Return the tasks a user may see: all with the `view_task` permission, else their own."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        if holds(user, "tasks_app.view_task"):
            return self
        return self.filter(owner_id=user.pk)

    def unfinished(self) -> TaskQuerySet:
        return self.filter(NOT_OVER)

    def running(self) -> TaskQuerySet:
        return self.filter(status=Status.RUNNING)

    def ready(self, now: datetime, queues: list[str]) -> TaskQuerySet:
        """Return pending tasks that may start now, the next one first."""
        return self.waiting(queues).alias(due=Unindexed("run_after")).filter(due__lte=now)

    def waiting(self, queues: list[str]) -> TaskQuerySet:
        """Return pending tasks of these queues, or of all if none is named, the next one first."""
        tasks = self.filter(status=Status.PENDING)
        if queues:
            tasks = tasks.filter(queue__in=queues)
        return tasks.order_by("-priority", "run_after")


class WorkerQuerySet(models.QuerySet["Worker"]):
    def beating(self, now: datetime) -> WorkerQuerySet:
        """Return workers that did not sign off and whose last heartbeat is recent enough."""
        since = now - timedelta(seconds=task_settings().silence_seconds)
        return self.filter(stopped_at__isnull=True, heartbeat_at__gte=since)

    def lost(self, now: datetime) -> WorkerQuerySet:
        """Return workers that did not sign off and have been silent too long to keep their tasks.

        Other workers rescue those tasks.
        """
        since = now - timedelta(seconds=task_settings().silence_seconds)
        return self.filter(stopped_at__isnull=True, heartbeat_at__lt=since)
