"""How long finished tasks stay, and how they go."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef

from tasks_app.clock import database_now
from tasks_app.conf import DAY, task_settings
from tasks_app.exceptions import IllegalTransition, TaskNotFound
from tasks_app.ledger import alias
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import TERMINAL, Status

#: The most tasks deleted in one transaction.
BATCH = 500
#: How long a worker's record outlives its last heartbeat.
WORKER_SECONDS = DAY


@dataclass(frozen=True, slots=True)
class Rule:
    """Which finished tasks go: those older than so many seconds. None keeps them for ever."""

    retention: float | None
    failed_retention: float | None
    statuses: frozenset[Status] = TERMINAL

    @classmethod
    def of_site(cls) -> Rule:
        conf = task_settings()
        return cls(conf.retention_seconds, conf.failed_retention_seconds)


def count(rule: Rule) -> int:
    """How many tasks a prune would delete now."""
    past = Task.primary.prunable(database_now(alias()), rule.retention, rule.failed_retention)
    return past.filter(status__in=sorted(rule.statuses)).count()


def prune(rule: Rule) -> Iterator[int]:
    """Delete finished tasks past their retention; yield the size of each batch.

    Each batch is a transaction of its own, short enough that workers and pages pass between, and
    safe beside other prunes: on PostgreSQL they share the work, elsewhere they take turns.
    """
    using = alias()
    while True:
        with transaction.atomic(using=using):
            past = Task.primary.prunable(
                database_now(using), rule.retention, rule.failed_retention
            ).filter(status__in=sorted(rule.statuses))
            batch = past.order_by().select_for_update(skip_locked=True)
            ids = list(batch.values_list("pk", flat=True)[:BATCH])
            _delete(ids)
        if not ids:
            return
        yield len(ids)


def prune_workers() -> int:
    """Delete the records of workers gone for a day, and their tasks with them; return how many."""
    gone = database_now(alias()) - timedelta(seconds=WORKER_SECONDS)
    ran = Task.primary.filter(worker=OuterRef("pk"))
    _, deleted = Worker.objects.filter(~Exists(ran), heartbeat_at__lt=gone).delete()
    return deleted.get(Worker._meta.label, 0)


def remove(task_id: uuid.UUID) -> None:
    """Delete a finished task with its history.

    Raises TaskNotFound, and IllegalTransition while it has not finished.
    """
    with transaction.atomic(using=alias()):
        task = Task.primary.select_for_update(of=("self",)).filter(pk=task_id).first()
        if task is None:
            raise TaskNotFound(task_id)
        if not task.is_terminal:
            raise IllegalTransition(task_id, Status(task.status), "removed: cancel it first")
        _delete([task.pk])


def _delete(ids: Collection[uuid.UUID]) -> None:
    # Events first and by themselves: the cascade would read each of them to find that it has none.
    TaskEvent.primary.filter(task_id__in=ids).delete()
    Task.primary.filter(pk__in=ids).only("pk").delete()
