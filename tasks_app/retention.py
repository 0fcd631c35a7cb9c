"""How long finished tasks stay, and how they go."""

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

from tasks_app.clock import database_now
from tasks_app.conf import DAY, task_settings
from tasks_app.exceptions import IllegalTransition, TaskNotFound, TaskProtected
from tasks_app.ledger import LOCK_TIMEOUT, alias, begin, sqlstate
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import FACTS, TERMINAL, TERMINAL_EVENTS, Status

logger = logging.getLogger("tasks_app.cleanup")

#: How long one batch should take: nobody else writes to SQLite meanwhile.
AIM_SECONDS = 0.025
#: How long none may take: whoever prunes may have leases to renew.
SLOW_SECONDS = 0.25
#: What a task has at the least: its row, and that it was queued, started and ended.
ROWS_OF_A_TASK = 4
#: How many rows a batch deletes, tasks and events together: at first, for rows of the site's may go
#: with them; no fewer because it was slow, for a transaction would then take more time than they;
#: and at most.
ROWS, ROWS_MIN, ROWS_MAX = ROWS_OF_A_TASK, 250, 5_000
#: What a task's history holds but for its end.
BEFORE_THE_END = sorted(FACTS - TERMINAL_EVENTS)
#: Of so many tasks that may not go a prune tells each at the level of a warning, then quietly.
TOLD = 10
#: How long a batch waits for rows that refer to its tasks: who prunes may have better to do.
LOCK_MILLISECONDS = 100
#: How long a worker's record outlives its last heartbeat.
WORKER_SECONDS = DAY


#: A task, and when it had finished.
Finished = tuple[uuid.UUID, datetime]
Group = list[uuid.UUID]


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

    def past(self, now: datetime) -> list[QuerySet[Task]]:
        """What is past its retention: for each status a query that reads one stretch of an index,
        the oldest first.
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
    """How many tasks a prune would delete now."""
    return sum(past.count() for past in rule.past(database_now(alias())))


def prune(rule: Rule) -> Prune:
    """Delete what is past its retention now; iterate to do it, a batch at a time."""
    return Prune(rule)


class Prune(Iterator[int]):
    """Deletes finished tasks past their retention; yields how many went with each batch.

    A batch is a transaction of its own, so workers and pages pass between two. It is bounded by
    rows, events included, and its bound follows how long the last one took. So the history of a
    task that has more events than that goes in several batches: the oldest events first, and the
    end together with the row. Whoever watches or kills in the middle finds a finished task with
    its end, whose log begins late; the next prune goes on there.

    Each task is tried once. Where something of the site's refuses to let it go, such as a row that
    protects it, the refusal is logged and the task stays; one that somebody else holds just then,
    or a row that refers to it, is left to them or to the next prune.

    Safe beside other prunes: on PostgreSQL they share the work, elsewhere they take turns. A batch
    that raised for want of a database has done nothing; ask again for it later, or never.
    """

    def __init__(self, rule: Rule) -> None:
        self.using = alias()
        #: How many tasks went, and how many were refused, so far.
        self.removed = self.kept = 0
        #: How many rows the next batch may delete, and how long the last one took.
        self.rows, self.seconds = ROWS, 0.0
        self._past = rule.past(database_now(self.using))[::-1]
        #: The last task read: what stays must not be read again and again.
        self._last: Finished | None = None
        #: Tasks read and not yet deleted, in groups that go or are refused together.
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
        """How long to leave the database to others now, in seconds: as long as it was taken."""
        return self.seconds

    def _read(self) -> None:
        """Read the ids of the next tasks to go."""
        past = self._past[-1]
        if self._last is not None:
            pk, finished_at = self._last
            # In these words the index is entered there; many may have finished at that moment.
            past = past.filter(finished_at__gte=finished_at).exclude(
                finished_at=finished_at, pk__lte=pk
            )
        many = max(self.rows // ROWS_OF_A_TASK, 1)
        found = cast(list[Finished], list(past.values_list("pk", "finished_at")[:many]))
        if not found:
            self._past.pop()
            self._last = None
            return
        self._last = found[-1]
        self._groups.append([pk for pk, _ in found])

    def _delete(self, group: Group) -> tuple[int, Group]:
        """Delete as much of a group as a batch may hold. Return how many tasks, and what is left.

        Raises IntegrityError if one of them may not go, and OperationalError if somebody holds a
        row that refers to it; then none has.
        """
        with transaction.atomic(using=self.using):
            began = time.monotonic()
            begin(self.using, LOCK_MILLISECONDS)
            chosen = Task.primary.filter(pk__in=group).order_by()
            # Another prune may hold some; what it holds is its to delete.
            held = set(
                chosen.select_for_update(of=("self",), skip_locked=True).values_list(
                    "pk", flat=True
                )
            )
            # However few tasks go: to delete the least of our own rows takes little time.
            most = max(self.rows, ROWS_MIN)
            events = list(
                TaskEvent.primary.filter(task_id__in=held, event_type__in=BEFORE_THE_END)
                .order_by("task_id", "id")
                .values_list("pk", "task_id")[:most]
            )
            if len(events) == most:
                # Of the last one there may be more.
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
        """Find out by halves which of a group may not go."""
        if len(group) > 1:
            half = len(group) // 2
            self._groups += [group[half:], group[:half]]
            return
        [task_id] = group
        self.kept += 1
        logger.log(
            logging.WARNING if self.kept <= TOLD else logging.DEBUG,
            "Task %s is past its retention and cannot be removed: %s",
            task_id,
            error.args[0] if error.args else error,
            extra={"task_id": str(task_id)},
        )

    def _took(self, seconds: float) -> None:
        self.seconds = seconds
        if seconds > SLOW_SECONDS:
            # It is not our rows that take so long, but those of the site's that go with them.
            self.rows = max(self.rows // 8, ROWS_OF_A_TASK)
        elif seconds > AIM_SECONDS:
            self.rows = max(self.rows // 2, min(self.rows, ROWS_MIN))
        elif seconds < AIM_SECONDS / 2:
            self.rows = min(self.rows * 2, ROWS_MAX)


def prune_workers() -> int:
    """Delete the records of workers gone for a day, and their tasks with them; return how many."""
    gone = database_now(alias()) - timedelta(seconds=WORKER_SECONDS)
    ran = Task.primary.filter(worker=OuterRef("pk"))
    _, deleted = Worker.objects.filter(~Exists(ran), heartbeat_at__lt=gone).delete()
    return deleted.get(Worker._meta.label, 0)


def remove(task_id: uuid.UUID) -> None:
    """Delete a finished task with its history.

    Raises TaskNotFound; IllegalTransition while it has not finished; and TaskProtected where rows
    of the site's own keep it.
    """
    try:
        with transaction.atomic(using=alias()):
            task = Task.primary.select_for_update(of=("self",)).filter(pk=task_id).first()
            if task is None:
                raise TaskNotFound(task_id)
            if not task.is_terminal:
                raise IllegalTransition(task_id, Status(task.status), "removed: cancel it first")
            if _is_held(task_id):
                raise TaskProtected(task_id)
            _delete([task.pk])
    except IntegrityError as error:
        raise TaskProtected(task_id) from error


def _is_held(task_id: uuid.UUID) -> bool:
    """Whether rows refer to a task of which the database alone takes care.

    It would refuse no sooner than at the end of the transaction, which may be the caller's, and
    then undo all that was done in it.
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
    # Events first and by themselves: the cascade would read each of them to find that it has none.
    TaskEvent.primary.filter(task_id__in=ids).delete()
    Task.primary.filter(pk__in=ids).only("pk").delete()
