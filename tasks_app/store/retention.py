"""Retention: how long finished tasks are kept, and how they are deleted."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from django.db import DatabaseError, IntegrityError, OperationalError, transaction
from django.db.models import DO_NOTHING, Exists, ManyToOneRel, OuterRef, QuerySet

from tasks_app.conf import DAY, task_settings
from tasks_app.exceptions import IllegalTransition, TaskNotFound, TaskProtected
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import FACTS, TERMINAL, TERMINAL_EVENTS, Status
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import LOCK_TIMEOUT, alias, begin, sqlstate

logger = SafeLogger("tasks_app.cleanup")

#: The target duration of a batch. On SQLite, nothing else can be written during a batch.
AIM_SECONDS = 0.025
#: The longest acceptable batch: the process that prunes may have leases to renew.
SLOW_SECONDS = 0.25
#: The least rows of a task: its own, and its events queued, started and ended.
ROWS_OF_A_TASK = 4
#: Rows to delete in a batch, tasks and events together. ROWS: at first, because the site's own
#: rows may be deleted with them. ROWS_MIN: the least after a slow batch, because smaller batches
#: spend most of their time on the transaction itself. ROWS_MAX: the most.
ROWS, ROWS_MIN, ROWS_MAX = ROWS_OF_A_TASK, 250, 5_000
#: The events of a task's history, except the one that ends it.
BEFORE_THE_END = sorted(FACTS - TERMINAL_EVENTS)
#: The number of undeletable tasks that a prune logs as warnings. It logs more at level DEBUG.
WARNINGS = 10
#: A batch waits this long for locked rows that refer to its tasks. The caller has other work.
LOCK_MILLISECONDS = 100
#: A worker's record is kept this long after its last heartbeat.
WORKER_SECONDS = DAY


#: A task's id, and when it finished.
Finished = tuple[uuid.UUID, datetime]
Group = list[uuid.UUID]


@dataclass(frozen=True, slots=True)
class Rule:
    """The ages, in seconds, from which finished tasks are deleted. None keeps them forever."""

    retention: float | None
    failed_retention: float | None
    statuses: frozenset[Status] = TERMINAL

    @classmethod
    def of_site(cls) -> Rule:
        conf = task_settings()
        return cls(conf.retention_seconds, conf.failed_retention_seconds)

    def past(self, now: datetime) -> list[QuerySet[Task]]:
        """Return queries of the tasks past their retention, the oldest first.

        There is one query for each status, which reads one range of an index.
        """
        ages = {
            status: self.failed_retention if status is Status.FAILED else self.retention
            for status in sorted(self.statuses)
        }
        return [
            Task.primary.filter(
                status=status, finished_at__lt=now - timedelta(seconds=age)
            ).order_by("finished_at", "pk")
            for status, age in ages.items()
            if age is not None
        ]


def count(rule: Rule) -> int:
    """Return how many tasks a prune would delete now."""
    return sum(past.count() for past in rule.past(database_now(alias())))


def prune(rule: Rule) -> Prune:
    """Return an iterator that deletes the tasks past their retention now, a batch at a time."""
    return Prune(rule)


class Prune(Iterator[int]):
    """Deletes finished tasks past their retention. Yields how many tasks each batch deleted.

    A batch is one transaction, so workers and pages can write between two batches. It deletes a
    limited number of rows, events included, and the limit follows the duration of the last batch.
    So a task with more events than that takes several batches: first its oldest events, and at last
    its terminal event together with its row. If the prune is interrupted, the task is still
    finished and has its terminal event, and its log starts later. The next prune continues there.

    Each task is tried once. If a row of the site protects it, that is logged and the task is kept.
    If another session has locked it, or a row that refers to it, it is left for the next prune.

    It can run beside other prunes: on PostgreSQL they share the work; on other databases they take
    turns. If a batch raises because the database is unavailable, it deleted nothing; you may ask
    for it again later.
    """

    def __init__(self, rule: Rule) -> None:
        self.using = alias()
        #: The number of tasks deleted so far, and of tasks that could not be deleted.
        self.removed = self.kept = 0
        #: The limit of rows for the next batch, and the seconds that the last one took.
        self.rows, self.seconds = ROWS, 0.0
        self._past = rule.past(database_now(self.using))[::-1]
        #: The last task that was read, so that tasks that are kept are not read again.
        self._last: Finished | None = None
        #: Tasks that are read and not yet deleted. The tasks of a group are deleted together.
        self._groups: list[Group] = []

    def __next__(self) -> int:
        while not self._groups:
            if not self._past:
                raise StopIteration
            self._read()
        group = self._groups[-1]
        try:
            deleted, left = self._delete(group)
        except (IntegrityError, OperationalError) as error:
            if isinstance(error, OperationalError) and sqlstate(error) != LOCK_TIMEOUT:
                raise
            self._groups.pop()
            self._divide(group, error)
            return 0
        self._groups.pop()
        if left:
            self._groups.append(left)
        self.removed += deleted
        return deleted

    @property
    def pause(self) -> float:
        """Seconds to leave the database to others: as long as the last batch took."""
        return self.seconds

    def _read(self) -> None:
        """Read the ids of the next tasks to delete."""
        past = self._past[-1]
        if self._last is not None:
            pk, finished_at = self._last
            # Written this way, the index is read from there. Tasks may share a finish time.
            past = past.filter(finished_at__gte=finished_at).exclude(
                finished_at=finished_at, pk__lte=pk
            )
        limit = max(self.rows // ROWS_OF_A_TASK, 1)
        found = cast(list[Finished], list(past.values_list("pk", "finished_at")[:limit]))
        if not found:
            self._past.pop()
            self._last = None
            return
        self._last = found[-1]
        self._groups.append([pk for pk, _ in found])

    def _delete(self, group: Group) -> tuple[int, Group]:
        """Delete as much of a group as a batch may hold. Return how many tasks, and what is left.

        Raises IntegrityError if a row protects one of them, and OperationalError if another session
        has locked a row that refers to one. In both cases, none is deleted.
        """
        with transaction.atomic(using=self.using):
            began = time.monotonic()
            begin(self.using, LOCK_MILLISECONDS)
            chosen = Task.primary.filter(pk__in=group).order_by()
            # Another prune may have locked some; it deletes those itself.
            held = set(
                chosen.select_for_update(of=("self",), skip_locked=True).values_list(
                    "pk", flat=True
                )
            )
            # ROWS_MIN rows of our own take little time, even if few tasks may be deleted.
            most = max(self.rows, ROWS_MIN)
            events = list(
                TaskEvent.primary.filter(task_id__in=held, event_type__in=BEFORE_THE_END)
                .order_by("task_id", "id")
                .values_list("pk", "task_id")[:most]
            )
            if len(events) == most:
                # The last of these tasks may have more events.
                whole = {task_id for _, task_id in events} - {events[-1][1]}
                left = [pk for pk in group if pk in held - whole]
            else:
                whole, left = held, []
            if whole or not events:
                _delete(whole)
            else:
                [last, task_id] = events[-1]
                TaskEvent.primary.filter(
                    task_id=task_id, event_type__in=BEFORE_THE_END, pk__lte=last
                ).delete()
        self._took(time.monotonic() - began)
        return len(whole), left

    def _divide(self, group: Group, error: DatabaseError) -> None:
        """Split a group to find the task that cannot be deleted. Log it if it is alone."""
        if len(group) > 1:
            half = len(group) // 2
            self._groups += [group[half:], group[:half]]
            return
        [task_id] = group
        self.kept += 1
        logger.log(
            logging.WARNING if self.kept <= WARNINGS else logging.DEBUG,
            "Task %s is past its retention and cannot be removed: %s",
            task_id,
            error.args[0] if error.args else error,
            extra={"task_id": str(task_id)},
        )

    def _took(self, seconds: float) -> None:
        self.seconds = seconds
        if seconds > SLOW_SECONDS:
            # Rows of the site that are deleted with ours must be the cause.
            self.rows = max(self.rows // 8, ROWS_OF_A_TASK)
        elif seconds > AIM_SECONDS:
            self.rows = max(self.rows // 2, min(self.rows, ROWS_MIN))
        elif seconds < AIM_SECONDS / 2:
            self.rows = min(self.rows * 2, ROWS_MAX)


def prune_workers() -> int:
    """Delete the records of workers that are gone for a day and have no tasks. Return how many."""
    gone = database_now(alias()) - timedelta(seconds=WORKER_SECONDS)
    ran = Task.primary.filter(worker=OuterRef("pk"))
    _, deleted = Worker.objects.filter(~Exists(ran), heartbeat_at__lt=gone).delete()
    return deleted.get(Worker._meta.label, 0)


def remove(task_id: uuid.UUID) -> None:
    """Delete a finished task with its history.

    Raises TaskNotFound; IllegalTransition if it has not finished; and TaskProtected if other rows
    of the site refer to it and protect it.
    """
    try:
        with transaction.atomic(using=alias()):
            task = Task.primary.select_for_update(of=("self",)).filter(pk=task_id).first()
            if task is None:
                raise TaskNotFound(task_id)
            if not task.is_terminal:
                raise IllegalTransition(task_id, Status(task.status), "removed: cancel it first")
            if _is_protected(task_id):
                raise TaskProtected(task_id)
            _delete([task.pk])
    except IntegrityError as error:
        raise TaskProtected(task_id) from error


def _is_protected(task_id: uuid.UUID) -> bool:
    """Return whether rows refer to a task by a foreign key that only the database enforces.

    The database would refuse only at the end of the transaction, which may be the caller's.
    Everything in it would then be rolled back.
    """
    return any(
        found.related_model._base_manager.using(alias())
        .filter(**{found.field.name: task_id})
        .exists()
        for found in Task._meta.get_fields(include_hidden=True)
        if isinstance(found, ManyToOneRel)
        and found.on_delete is DO_NOTHING
        and found.field.db_constraint  # type: ignore[attr-defined]
    )


def _delete(ids: Collection[uuid.UUID]) -> None:
    # Delete the events first: a cascade would read each event to look for rows that refer to it.
    TaskEvent.primary.filter(task_id__in=ids).delete()
    Task.primary.filter(pk__in=ids).only("pk").delete()
