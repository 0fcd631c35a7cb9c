"""A worker's own row, whose heartbeat shows others that the worker lives."""

from __future__ import annotations

import os
import socket
from datetime import datetime

from django.db import connections, transaction

from tasks_app.conf import task_settings
from tasks_app.logs import SafeLogger
from tasks_app.models import Worker
from tasks_app.store.ledger import alias, begin
from tasks_app.worker.trouble import missing_is_trouble

logger = SafeLogger("tasks_app.worker")

#: The pause before another heartbeat, if another session holds the worker's row.
HELD_SECONDS = 1.0


@missing_is_trouble()
def register(threads: int, queues: list[str]) -> Worker:
    """Insert a worker's row. Raises what Django raises if the database does not answer."""
    with transaction.atomic(using=alias()):
        now = begin(alias())
        return Worker.objects.create(
            hostname=socket.gethostname(),
            pid=os.getpid(),
            threads=threads,
            queues=queues,
            started_at=now,
            heartbeat_at=now,
        )


class Heart:
    """Sends a worker's heartbeats, and knows whether another session holds the worker's row."""

    def __init__(self) -> None:
        self.held = False

    def beat(self, worker: Worker, now: datetime, *, busy: int, stuck: int) -> bool:
        """Send a heartbeat; return whether the worker may claim tasks."""
        before, self.held = self.held, not beat(worker, now, busy=busy, stuck=stuck)
        if self.held and not before:
            logger.warning(
                "Another session holds the row of worker %s, so the worker claims nothing and "
                "seems silent; its tasks continue. See pg_stat_activity for that session",
                worker,
            )
        elif before and not self.held:
            logger.info("The row of worker %s is free again", worker)
        return not self.held

    @property
    def pause(self) -> float:
        """The seconds until the next heartbeat."""
        seconds = task_settings().heartbeat_seconds
        return min(seconds, HELD_SECONDS) if self.held else seconds


def beat(worker: Worker, now: datetime, *, busy: int = 0, stuck: int = 0) -> bool:
    """Update a worker's row, or insert it again if it was deleted.

    Return False if another session holds the row. Then it is not written: the leases of the
    worker's tasks are renewed without it. New tasks must wait, because they would refer to the row.
    """
    row = Worker.primary.filter(pk=worker.pk)
    if connections[alias()].features.has_select_for_update_skip_locked:
        mine = row.select_for_update(skip_locked=True, no_key=True).values_list("pk")
        if not list(mine) and row.exists():
            return False
    values = {"heartbeat_at": now, "busy": busy, "stuck": stuck}
    for field, value in values.items():
        setattr(worker, field, value)
    if not row.update(**values):
        worker.save(force_insert=True)
    return True


def leave(worker: Worker, now: datetime, *, stuck: int = 0) -> None:
    """Record that a worker ended normally."""
    Worker.objects.filter(pk=worker.pk).update(
        heartbeat_at=now, stopped_at=now, busy=0, stuck=stuck
    )
