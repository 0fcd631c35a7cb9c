"""Notifications between hosts over Redis, which stops and starts.

The processes share the run's database, but act as if it sent no notifications.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from django.contrib.auth.models import User

from tasks_app.models import Task
from tasks_app.service import task_service
from tests.harness import Process, Viewer, Web, begins, ends, eventually
from tests.servers import Redis
from tests.tasks import Add, Noop, Steps, Talk

pytestmark = pytest.mark.once

StartWorker = Callable[..., Process]
StartWeb = Callable[..., Web]
Watch = Callable[..., Viewer]

LASTING = {"TASK_LEASE_SECONDS": "60", "TASK_HEARTBEAT_SECONDS": "1"}


@pytest.fixture
def hosts(
    redis_server: Redis,
    start_worker: StartWorker,
    start_web: StartWeb,
    settings: pytest.FixtureRequest,
) -> Iterator[tuple[list[Process], list[Web]]]:
    """Two workers and two web processes. The test itself announces over Redis too."""
    settings.EVENTSTREAM_REDIS = redis_server.setting  # type: ignore[attr-defined]
    workers = [start_worker(ready=False, REDIS_URL=redis_server.url, **LASTING) for _ in range(2)]
    webs = [start_web(REDIS_URL=redis_server.url, **LASTING) for _ in range(2)]
    eventually(lambda: redis_server.listeners() == 2)
    yield workers, webs
    for process in (*workers, *webs):
        # A long outage ends django-eventstream's own listener with a traceback.
        ours = [
            line for line in process.output.splitlines() if re.search(r'File ".*tasks_app', line)
        ]
        assert not ours, process.output


@pytest.fixture
def viewers(hosts: tuple[list[Process], list[Web]], watch: Watch) -> list[Viewer]:
    """Two viewers per web process, who see all tasks of the owner."""
    found = [watch(f"{web.url}/tasks/stream/?mine=1") for web in hosts[1] for _ in range(2)]
    eventually(lambda: all(viewer.status == 200 for viewer in found))
    return found


def history(task_id: UUID) -> list[tuple[str, object]]:
    return [
        (kind, data.get("message"))
        for kind, data in Task.objects.get(pk=task_id)
        .events.order_by("pk")
        .values_list("event_type", "data")
    ]


def received(viewer: Viewer, task_id: UUID) -> list[tuple[str, object]]:
    """Return the history of a task as a viewer received it, in order."""
    found = []
    for event in list(viewer.events):
        if event.event in ("task_status", "progress_update", "keep-alive"):
            continue
        message = json.loads(event.data)
        if message["task_id"] == str(task_id):
            found.append((event.event, message["data"].get("message")))
    return found


def wait_until_all_received(viewers: list[Viewer], task_id: UUID) -> None:
    """Wait until each viewer has received the whole history, each event once and in order."""
    ends(task_id)
    whole = history(task_id)
    for viewer in viewers:
        eventually(
            lambda v=viewer: received(v, task_id)[-1:] == whole[-1:],
            what=f"{whole[-1]} in {received(viewer, task_id)[-3:]}, {viewer.error}",
        )
        assert received(viewer, task_id) == whole
        assert viewer.error is None


def test_tasks_on_any_host_are_seen_on_every_other(
    viewers: list[Viewer], owner: User, reins: Path
) -> None:
    held = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    quick = task_service.start_many(Add, [{"a": n} for n in range(20)], owner=owner)
    lines = task_service.start_many(Talk, [{"lines": 30}] * 4, owner=owner)
    begins(held.task_id)
    for step in range(1, 11):
        reins.write_text(str(step))
        for viewer in viewers:
            eventually(lambda v=viewer, s=step: s / 10 in v.values(held.task_id) or s == 10)
    for task in (held, *quick, *lines):
        wait_until_all_received(viewers, task.task_id)
    for viewer in viewers:
        values = viewer.values(held.task_id)
        assert values == sorted(values)


def test_streams_continue_and_catch_up_while_redis_is_down(
    hosts: tuple[list[Process], list[Web]],
    viewers: list[Viewer],
    redis_server: Redis,
    owner: User,
    reins: Path,
) -> None:
    workers, webs = hosts
    eventually(lambda: redis_server.listeners() == 4)
    held = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    begins(held.task_id)
    for step in (3, 6, 9):
        before = task_service.start_many(Talk, [{"lines": 20}] * 5, owner=owner)
        redis_server.kill()
        during = task_service.start_many(Noop, [{}] * 5, owner=owner)
        reins.write_text(str(step))
        for task in (*before, *during):
            wait_until_all_received(viewers, task.task_id)
        for viewer in viewers:
            eventually(lambda v=viewer, s=step: s / 10 in v.values(held.task_id))
        redis_server.start()
        eventually(lambda: redis_server.listeners() == 4, what="all listen again")
        after = task_service.start_task(Add, {"a": 1}, owner=owner)
        wait_until_all_received(viewers, after.task_id)
    reins.write_text("10")
    wait_until_all_received(viewers, held.task_id)
    for process in (*workers, *webs):
        began = process.output.count("Redis does not answer (")
        over = process.output.count("Redis answers again")
        # Subscribers and publishers log each outage once, however many commits there are.
        assert 3 <= began <= 6
        assert began - over <= 1


def test_hanging_redis_blocks_nothing(
    viewers: list[Viewer], redis_server: Redis, owner: User
) -> None:
    """For example behind a network that drops all packets: no refusal and no answer."""
    redis_server.hold()
    for _ in range(3):
        many = task_service.start_many(Talk, [{"lines": 10}] * 5, owner=owner)
        for task in many:
            wait_until_all_received(viewers, task.task_id)
    redis_server.hold(False)
    after = task_service.start_task(Add, {"a": 1}, owner=owner)
    wait_until_all_received(viewers, after.task_id)
