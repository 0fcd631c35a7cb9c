"""How long finished tasks stay, and how they go."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator

from django.db import transaction

from tasks_app.clock import database_now
from tasks_app.exceptions import IllegalTransition, TaskNotFound
from tasks_app.lifecycle import alias
from tasks_app.models import Task, TaskEvent
from tasks_app.states import Status


def remove(task_id: uuid.UUID) -> None:
    """Delete a finished task with its history.

    Raises TaskNotFound, and IllegalTransition while it has not finished.
    """
    with transaction.atomic(using=alias()):
        task = Task.objects.select_for_update(of=("self",)).filter(pk=task_id).first()
        if task is None:
            raise TaskNotFound(task_id)
        if not task.is_terminal:
            raise IllegalTransition(task_id, Status(task.status), "removed: cancel it first")
        _delete([task.pk])


def prune(
    retention: float | None,
    failed_retention: float | None,
    *,
    statuses: Collection[Status] = (),
    batch: int = 500,
) -> Iterator[int]:
    """Delete finished tasks past their retention, in seconds; yield the size of each batch.

    Each batch is a transaction of its own, short enough that workers and pages pass between, and
    safe beside other prunes: on PostgreSQL they share the work, elsewhere they take turns.
    """
    using = alias()
    while True:
        with transaction.atomic(using=using):
            past = Task.objects.prunable(database_now(using), retention, failed_retention)
            if statuses:
                past = past.filter(status__in=sorted(statuses))
            ids = list(
                past.order_by()
                .select_for_update(skip_locked=True)
                .values_list("pk", flat=True)[:batch]
            )
            _delete(ids)
        if not ids:
            return
        yield len(ids)


def _delete(ids: Collection[uuid.UUID]) -> None:
    # Events first and by themselves: the cascade would read each of them to find that it has none.
    TaskEvent.objects.filter(task_id__in=ids).delete()
    Task.objects.filter(pk__in=ids).delete()
