"""One operation on many tasks, in batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from django.db import OperationalError, transaction

from tasks_app.exceptions import IllegalTransition, TaskError
from tasks_app.models import Task
from tasks_app.states import Status
from tasks_app.store.ledger import DEADLOCK, alias, sqlstate

T = TypeVar("T")
#: Counts of refused tasks, by the class of the error and the status that prevented it, if any.
Refusals = Counter[tuple[type[TaskError], Status | None]]

#: The number of tasks in a transaction. On SQLite, nothing else can be written during it.
BATCH = 100
#: Stop after this many seconds and leave the rest to the next request, because servers and proxies
#: give up after 30.
SECONDS = 20.0
#: The number of tries for a batch that meets a deadlock.
TRIES = 3


@dataclass
class Summary:
    """The outcome for all tasks."""

    done: int = 0
    refused: Refusals = field(default_factory=Counter)
    #: The number of tasks left for later, because the time was over.
    left: int = 0


@dataclass(frozen=True)
class Done(Generic[T]):
    """A task as it was before, and what `act` returned."""

    task: Task
    outcome: T


def each(
    task_ids: Sequence[UUID],
    act: Callable[[UUID], T],
    record: Callable[[list[Done[T]]], None],
    seconds: float = SECONDS,
) -> Summary:
    """Call `act` for each task, in transactions of BATCH tasks, until the time is over.

    If `act` raises a TaskError for a task, that counts as refused, and the next task follows.
    `record` is called at the end of each transaction with what was done in it, so that its own
    writes commit with the batch. Any other error ends the run; earlier batches stay committed.
    """
    summary = Summary()
    ends = time.monotonic() + seconds
    for start in range(0, len(task_ids), BATCH):
        if time.monotonic() >= ends:
            summary.left = len(task_ids) - start
            break
        done, refused = _retry_deadlocks(task_ids[start : start + BATCH], act, record)
        summary.done += len(done)
        summary.refused += refused
    return summary


def _retry_deadlocks(
    ids: Sequence[UUID], act: Callable[[UUID], T], record: Callable[[list[Done[T]]], None]
) -> tuple[list[Done[T]], Refusals]:
    """Process a batch in one transaction, and again if PostgreSQL ended it by a deadlock.

    A worker locks the same rows in a different order, so the two can wait for each other.
    """
    tries = TRIES
    while True:
        try:
            with transaction.atomic(using=alias()):
                done, refused = _batch(ids, act)
                record(done)
        except OperationalError as error:
            tries -= 1
            if not tries or sqlstate(error) != DEADLOCK:
                raise
        else:
            return done, refused


def _batch(ids: Sequence[UUID], act: Callable[[UUID], T]) -> tuple[list[Done[T]], Refusals]:
    # Only the columns that a log entry needs.
    tasks = Task.primary.only("pk", "name").in_bulk(ids)
    done, refused = [], Refusals()
    for task_id in ids:
        try:
            outcome = act(task_id)
        except TaskError as error:
            status = error.status if isinstance(error, IllegalTransition) else None
            refused[type(error), status] += 1
        else:
            done.append(Done(tasks[task_id], outcome))
    return done, refused
