"""The same done to many tasks, a batch at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from django.db import OperationalError, transaction

from tasks_app.exceptions import IllegalTransition, TaskError
from tasks_app.ledger import DEADLOCK, alias, sqlstate
from tasks_app.models import Task
from tasks_app.states import Status

T = TypeVar("T")
#: Why not, how often: the kind of error, and the status that stood in the way, if it was that.
Refusals = Counter[tuple[type[TaskError], Status | None]]

#: How many tasks share a transaction: on SQLite nobody else writes meanwhile.
BATCH = 100
#: For how long it goes on before it leaves the rest to the next request, in seconds: servers and
#: proxies give up after 30.
SECONDS = 20.0
#: How often a batch is tried that meets a deadlock.
TRIES = 3


@dataclass
class Summary:
    """What became of the tasks that were tried."""

    done: int = 0
    refused: Refusals = field(default_factory=Counter)
    #: How many were left for another time, since the time was over.
    left: int = 0


@dataclass(frozen=True)
class Done(Generic[T]):
    """A task as it was before, and what the act returned."""

    task: Task
    outcome: T


def each(
    task_ids: Sequence[UUID],
    act: Callable[[UUID], T],
    told: Callable[[list[Done[T]]], None],
    seconds: float = SECONDS,
) -> Summary:
    """Do something to each task, in transactions of BATCH tasks, until the time is over.

    A task whose act raises a TaskError is counted as refused, and the others go on. `told` is
    called within each transaction with what was done in it, so that a record of it commits
    together with it. Any other error ends it; the batches before stay done.
    """
    summary = Summary()
    ends = time.monotonic() + seconds
    for start in range(0, len(task_ids), BATCH):
        if time.monotonic() >= ends:
            summary.left = len(task_ids) - start
            break
        done, refused = _insist(task_ids[start : start + BATCH], act, told)
        summary.done += len(done)
        summary.refused += refused
    return summary


def _insist(
    ids: Sequence[UUID], act: Callable[[UUID], T], told: Callable[[list[Done[T]]], None]
) -> tuple[list[Done[T]], Refusals]:
    """Do a batch in one transaction; anew where PostgreSQL ended it.

    A worker locks the same rows in an order of its own, so the two can wait for each other.
    """
    tries = TRIES
    while True:
        try:
            with transaction.atomic(using=alias()):
                done, refused = _batch(ids, act)
                told(done)
        except OperationalError as error:
            tries -= 1
            if not tries or sqlstate(error) != DEADLOCK:
                raise
        else:
            return done, refused


def _batch(ids: Sequence[UUID], act: Callable[[UUID], T]) -> tuple[list[Done[T]], Refusals]:
    # What a log needs to name it.
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
