"""What the database says of a worker's tasks, and of those that wait for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from django.db.models import Min, Q

from tasks_app.exceptions import TaskCancelled
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, Worker
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim
from tasks_app.worker.run import NEVER
from tasks_app.worker.runs import Runs

logger = SafeLogger("tasks_app.worker")


@dataclass(frozen=True, slots=True)
class Standing:
    """Which claims are good."""

    good: set[Claim] = field(default_factory=set)
    #: Those whose tasks somebody asked to cancel.
    unwanted: set[Claim] = field(default_factory=set)
    #: Those that bear the worker's own name.
    own: set[Claim] = field(default_factory=set)

    @classmethod
    def of(cls, worker: Worker, known: Collection[Claim]) -> Self:
        """Return how a worker's claims stand, those it knows of and those it does not."""
        standing = cls()
        ids = [claim.task_id for claim in known]
        rows = Task.primary.running().filter(Q(worker=worker) | Q(pk__in=ids)).order_by()
        for task_id, token, requested, worker_id in rows.values_list(
            "pk", "fencing_token", "cancel_requested_at", "worker_id"
        ):
            assert token is not None  # noqa: S101 - a running row has one, by constraint
            claim = Claim(task_id, token)
            standing.good.add(claim)
            if requested:
                standing.unwanted.add(claim)
            if worker_id == worker.pk:
                standing.own.add(claim)
        return standing


def look(worker: Worker, runs: Runs, now: datetime) -> set[Claim]:
    """Compare what a worker runs with what the database says; return the void claims.

    Tells those to stop that somebody cancelled, and hands back those that nobody here knows of:
    claims of a commit whose answer was lost with the connection.
    """
    standing = Standing.of(worker, runs)
    for claim in standing.unwanted & runs.keys():
        run = runs[claim]
        if run.stop(TaskCancelled()):
            logger.info("Task %s is asked to cancel", run, extra=run.log_extra)
    lifecycle.release(standing.own - runs.keys(), now=now)
    return runs.keys() - standing.good


def next_due(now: datetime, moment: float) -> float:
    """When the next delayed task of any queue may start, by the monotonic clock.

    An index tells that at once. To look in vain costs less than to find the next one of some.
    """
    delayed = Task.primary.waiting([]).filter(run_after__gt=now).order_by()
    soonest = delayed.aggregate(soonest=Min("run_after"))["soonest"]
    return moment + (soonest - now).total_seconds() if soonest else NEVER
