"""`manage.py tasks_health`, as probes call it."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from tasks_app.models import Task
from tasks_app.states import Status
from tasks_app.store import health as module
from tests.management.test_tasks import run
from tests.rows import lapse, saved, worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def brief(settings: Any) -> None:
    settings.TASK_LEASE_SECONDS, settings.TASK_HEARTBEAT_SECONDS = 30, 10


def check(*options: str) -> tuple[int, dict[str, Any], str]:
    code, out, message = run("tasks_health", "--json", *options)
    return code, json.loads(out), message


def test_live_worker_is_healthy() -> None:
    worker()
    saved(Status.RUNNING)
    saved(age=timedelta(minutes=2))
    code, found, _ = check()
    assert code == 0
    assert found["healthy"] is True
    assert found["problems"] == []
    assert (found["workers_alive"], found["running"], found["ready"]) == (1, 1, 1)
    assert 119 < found["oldest_waiting_seconds"] < 180
    assert run("tasks_health")[1].startswith("Workers: 1 alive, 0 lost. Tasks: 1 running, 1 wait")


def test_no_worker_is_unhealthy() -> None:
    code, found, message = check()
    assert (code, found["healthy"], message) == (1, False, "0 workers alive; at least 1 required")
    assert check("--min-workers", "0")[0] == 0


def test_lost_worker_does_not_count() -> None:
    worker(heartbeat_at=timezone.now() - timedelta(seconds=60))
    worker(stopped_at=timezone.now())
    code, found, _ = check()
    assert (code, found["workers_alive"], found["workers_lost"]) == (1, 0, 1)


def test_long_wait_is_unhealthy() -> None:
    worker()
    saved(age=timedelta(minutes=2))
    saved(run_after=timezone.now() + timedelta(hours=1))
    assert check("--max-wait", "10m")[0] == 0
    code, _, message = check("--max-wait", "1m")
    assert code == 1
    assert "the limit is 60 s" in message


def test_stuck_threads_and_overdue_tasks_are_unhealthy() -> None:
    worker(stuck=2)
    lapse(saved(Status.RUNNING), timedelta(minutes=5))
    code, found, message = check()
    assert (code, found["stuck_threads"], found["overdue"]) == (1, 2, 1)
    assert message.split("; ") == [
        "2 threads stuck",
        "restart their workers",
        "1 tasks overdue for rescue",
        "check that a worker is running",
    ]
    assert check("--max-stuck", "2")[0] == 0


def test_queue_option() -> None:
    worker(queues=["mail"])
    saved(queue="mail", age=timedelta(hours=1))
    code, found, _ = check("--queue", "mail")
    assert (code, found["workers_alive"], found["ready"]) == (0, 1, 1)
    code, found, _ = check("--queue", "video")
    assert (code, found["workers_alive"], found["ready"]) == (1, 0, 0)
    worker()
    assert check("--queue", "video")[0] == 0


def test_this_host_counts_only_its_own_workers() -> None:
    worker(hostname="another")
    assert check("--this-host")[0] == 1
    worker(hostname=socket.gethostname())
    assert check("--this-host")[0] == 0


def test_this_host_ignores_problems_of_other_hosts() -> None:
    hostname, long_ago = socket.gethostname(), timezone.now() - timedelta(minutes=5)
    worker(hostname=hostname)
    here, there = (worker(hostname=host, heartbeat_at=long_ago) for host in (hostname, "another"))
    lapse(saved(Status.RUNNING, worker=there), timedelta(minutes=5))
    assert check()[0] == 1
    code, found, _ = check("--this-host")
    assert (code, found["overdue"], found["running"]) == (0, 0, 0)
    Task.objects.update(worker=here)
    code, found, _ = check("--this-host")
    assert (code, found["overdue"], found["running"]) == (1, 1, 1)


def test_database_error_is_reported_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(module, "database_now", refused)
    problem = "The database does not answer: connection refused"
    assert run("tasks_health") == (1, "", problem)
    assert check() == (1, {"healthy": False, "problems": [problem]}, problem)


@pytest.mark.parametrize("option", ["--min-workers=-1", "--max-stuck=-1"])
def test_limits_are_validated(option: str) -> None:
    assert run("tasks_health", option)[0] == 2
