"""Whether tasks are being worked on."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from django.db.models import Min, Sum

from tasks_app.clock import database_now
from tasks_app.ledger import alias
from tasks_app.lifecycle import overdue
from tasks_app.models import Task, Worker
from tasks_app.schemas import Schema

#: The most tasks that are counted one by one; past that it is this many, or more.
COUNTED = 10_000


class Limits(NamedTuple):
    """What is still healthy."""

    min_workers: int = 1
    #: In seconds; None for no limit.
    max_wait: float | None = None
    max_stuck: int = 0


class Health(Schema):
    """What is to be seen of workers and tasks at a moment."""

    workers_alive: int
    #: Those that were silent for longer than a lease and never signed off.
    workers_lost: int
    stuck_threads: int
    running: int
    #: Running tasks whose leases ran out a heartbeat ago or longer.
    overdue: int
    #: Tasks that could start now; 10,000 stands for as many or more.
    ready: int
    oldest_waiting_seconds: float | None

    def problems(self, limits: Limits) -> list[str]:
        """Say which of the limits are passed; nothing if it is healthy."""
        found = []
        if self.workers_alive < limits.min_workers:
            found.append(
                f"{self.workers_alive} workers are alive, and {limits.min_workers} should be"
            )
        wait = self.oldest_waiting_seconds
        if limits.max_wait is not None and wait is not None and wait > limits.max_wait:
            found.append(
                f"a task has waited for {wait:.0f} s, and {limits.max_wait:g} s is the most"
            )
        if self.stuck_threads > limits.max_stuck:
            found.append(f"{self.stuck_threads} threads are stuck; restart their workers")
        if self.overdue > limits.max_stuck:
            found.append(f"{self.overdue} tasks wait for a worker to take them back")
        return found


def unserved(queues: Collection[str]) -> set[str]:
    """Return those of the queues that no live worker takes."""
    left = set(queues)
    if not left:
        return left
    alive = Worker.primary.beating(database_now(alias()))
    # Which queues a worker takes is a list in JSON, which SQLite and PostgreSQL search differently.
    for taken in alive.values_list("queues", flat=True):
        left = left.difference(taken) if taken else set()
    return left


def health(queue: str | None = None, hostname: str | None = None) -> Health:
    """Return how tasks and workers stand, by the database's clock; of one queue or host if given.

    Of a host are its workers and what they run; what waits is anybody's. A few queries, each of
    which reads one stretch of an index, whatever has finished.
    """
    now = database_now(alias())
    workers = Worker.primary.filter(stopped_at=None)
    if hostname is not None:
        workers = workers.filter(hostname=hostname)
    lost = set(workers.lost(now).values_list("pk", flat=True))
    # Which queues a worker takes is a list in JSON, which SQLite and PostgreSQL search differently.
    alive = [
        pk
        for pk, queues in workers.exclude(pk__in=lost).values_list("pk", "queues")
        if queue is None or not queues or queue in queues
    ]
    stuck = Worker.primary.filter(pk__in=alive).aggregate(stuck=Sum("stuck"))["stuck"]
    ready = Task.primary.ready(now, [queue] if queue else [])
    running, late = Task.primary.running(), overdue(now)
    if queue is not None:
        running, late = running.filter(queue=queue), late.filter(queue=queue)
    if hostname is not None:
        # What another host's worker left is none of this one's faults.
        running = running.filter(worker__hostname=hostname)
        late = late.filter(worker__hostname=hostname)
    oldest = ready.order_by().aggregate(oldest=Min("run_after"))["oldest"]
    return Health(
        workers_alive=len(alive),
        workers_lost=len(lost),
        stuck_threads=stuck or 0,
        running=running.count(),
        overdue=late.count(),
        ready=ready[:COUNTED].count(),
        oldest_waiting_seconds=max((now - oldest).total_seconds(), 0.0) if oldest else None,
    )
