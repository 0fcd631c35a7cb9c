"""The row by which others see that a worker lives."""

from __future__ import annotations

import os
import socket
from datetime import datetime

from tasks_app.clock import database_now
from tasks_app.ledger import alias
from tasks_app.models import Worker


def register(hands: int, queues: list[str]) -> Worker:
    now = database_now(alias())
    return Worker.objects.create(
        hostname=socket.gethostname(),
        pid=os.getpid(),
        hands=hands,
        queues=queues,
        started_at=now,
        heartbeat_at=now,
    )


def beat(worker: Worker, now: datetime) -> None:
    """Say that the worker lives, also where somebody has deleted its row meanwhile."""
    worker.heartbeat_at = now
    if not Worker.objects.filter(pk=worker.pk).update(heartbeat_at=now):
        worker.save(force_insert=True)


def leave(worker: Worker, now: datetime) -> None:
    Worker.objects.filter(pk=worker.pk).update(heartbeat_at=now, stopped_at=now)
