"""The row by which others see that a worker lives."""

from __future__ import annotations

import os
import socket
from datetime import datetime

from django.db import transaction

from tasks_app.ledger import alias, begin
from tasks_app.models import Worker
from tasks_app.worker.trouble import missing_is_trouble


@missing_is_trouble()
def register(hands: int, queues: list[str]) -> Worker:
    """Say that a worker is there. Raises what Django raises where the database does not answer."""
    with transaction.atomic(using=alias()):
        now = begin(alias())
        return Worker.objects.create(
            hostname=socket.gethostname(),
            pid=os.getpid(),
            hands=hands,
            queues=queues,
            started_at=now,
            heartbeat_at=now,
        )


def beat(worker: Worker, now: datetime, *, busy: int = 0, stuck: int = 0) -> None:
    """Say that the worker lives and what it does, also where somebody has deleted its row."""
    said = {"heartbeat_at": now, "busy": busy, "stuck": stuck}
    for field, value in said.items():
        setattr(worker, field, value)
    if not Worker.objects.filter(pk=worker.pk).update(**said):
        worker.save(force_insert=True)


def leave(worker: Worker, now: datetime, *, stuck: int = 0) -> None:
    """Say that the worker ends in good order."""
    Worker.objects.filter(pk=worker.pk).update(
        heartbeat_at=now, stopped_at=now, busy=0, stuck=stuck
    )
