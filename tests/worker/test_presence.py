"""The row by which others see that a worker lives."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
from django.utils import timezone

from tasks_app.models import Worker
from tasks_app.worker import presence

pytestmark = pytest.mark.django_db


def test_a_worker_registers() -> None:
    before = timezone.now() - timedelta(seconds=1)
    presence.register(3, ["mail"])
    worker = Worker.objects.get()
    assert (worker.hostname, worker.pid) == (socket.gethostname(), os.getpid())
    assert (worker.hands, worker.queues) == (3, ["mail"])
    assert before < worker.started_at == worker.heartbeat_at
    assert worker.stopped_at is None


def test_its_heart_beats_until_it_leaves() -> None:
    worker, other = presence.register(1, []), presence.register(1, [])
    now = timezone.now() + timedelta(seconds=5)
    presence.beat(worker, now)
    worker.refresh_from_db()
    assert (worker.heartbeat_at, worker.stopped_at) == (now, None)
    presence.leave(worker, now + timedelta(seconds=1))
    worker.refresh_from_db()
    assert worker.heartbeat_at == worker.stopped_at == now + timedelta(seconds=1)
    other.refresh_from_db()
    assert (other.heartbeat_at, other.stopped_at) == (other.started_at, None)
