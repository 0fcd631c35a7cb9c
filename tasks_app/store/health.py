"""Health of the task system: whether workers are alive and tasks are being run."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from django.db.models import Min, Sum

from tasks_app.models import Task, Worker
from tasks_app.schemas import Schema
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.store.lifecycle import overdue

#: The most tasks that are counted. This number then means "this many or more".
COUNTED = 10_000


class Limits(NamedTuple):
    """The limits within which the system is healthy."""

    min_workers: int = 1
    #: In seconds; None for no limit.
    max_wait: float | None = None
    max_stuck: int = 0


class Health(Schema):
    """The state of workers and tasks at one time."""

    workers_alive: int
    #: Workers that never signed off and were silent for longer than a lease and a heartbeat.
    workers_lost: int
    stuck_threads: int
    running: int
    #: Running tasks of lost workers, whose leases expired a heartbeat ago or longer.
    overdue: int
    #: Tasks that could start now. 10,000 means 10,000 or more.
    ready: int
    oldest_waiting_seconds: float | None

    def problems(self, limits: Limits) -> list[str]:
        """Return a message for each limit that is exceeded. Empty if healthy."""
        found = []
        if self.workers_alive < limits.min_workers:
            found.append(
                f"{self.workers_alive} workers alive; at least {limits.min_workers} required"
            )
        wait = self.oldest_waiting_seconds
        if limits.max_wait is not None and wait is not None and wait > limits.max_wait:
            found.append(f"a task has waited for {wait:.0f} s; the limit is {limits.max_wait:g} s")
        if self.stuck_threads > limits.max_stuck:
            found.append(f"{self.stuck_threads} threads stuck; restart their workers")
        if self.overdue > limits.max_stuck:
            found.append(f"{self.overdue} tasks overdue for rescue; check that a worker is running")
        return found


def unserved(queues: Collection[str]) -> set[str]:
    """Return the queues that no live worker takes tasks from."""
    left = set(queues)
    if not left:
        return left
    alive = Worker.primary.beating(database_now(alias()))
    # A worker's queues are a JSON list, which SQLite and PostgreSQL search differently.
    for taken in alive.values_list("queues", flat=True):
        left = left.difference(taken) if taken else set()
    return left


def health(queue: str | None = None, hostname: str | None = None) -> Health:
    """Return the state of tasks and workers, by the database's clock; or of one queue or host.

    For a host, that means its workers and the tasks they run; waiting tasks belong to no host. It
    takes a few queries, each of which reads one range of an index. Finished tasks cost nothing.
    """
    now = database_now(alias())
    workers = Worker.primary.filter(stopped_at=None)
    if hostname is not None:
        workers = workers.filter(hostname=hostname)
    lost = set(workers.lost(now).values_list("pk", flat=True))
    # A worker's queues are a JSON list, which SQLite and PostgreSQL search differently.
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
        # This host is not responsible for the tasks of workers on other hosts.
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
