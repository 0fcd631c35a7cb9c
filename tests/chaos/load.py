"""The steady load: tasks of many kinds, started and cancelled here and through the web process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import httpx
from django.contrib.auth.models import User
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.utils import timezone

from tasks_app.exceptions import DuplicateTask, IllegalTransition
from tasks_app.models import Task, TaskEvent
from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tests.chaos import tasks
from tests.rows import row

BATCH_OF_OLD = 20

#: For each kind: its weight, task, params and options, and whether it is often cancelled.
KINDS: list[tuple[int, type[tasks.Chore], dict[str, Any], dict[str, Any], bool]] = [
    (6, tasks.Chore, {}, {}, False),
    (4, tasks.Once, {"steps": 5}, {}, False),
    (3, tasks.Chore, {"steps": 40}, {}, False),
    (3, tasks.Chore, {"steps": 60}, {}, True),
    (4, tasks.Sturdy, {"steps": 15}, {}, False),
    (2, tasks.Sturdy, {"steps": 60}, {}, True),
    (3, tasks.Flaky, {}, {}, False),
    (1, tasks.Flaky, {"steps": 10}, {}, True),
    (2, tasks.Broken, {}, {}, False),
    (1, tasks.BrokenThrice, {}, {}, False),
    (2, tasks.Chatty, {}, {}, False),
    (2, tasks.Family, {}, {}, False),
    (1, tasks.Chore, {"steps": 500}, {"timeout": 0.3}, False),
    (2, tasks.Sturdy, {}, {"priority": 10}, False),
]


class Feeder(threading.Thread):
    """Keeps a number of tasks unfinished until it is stopped.

    It records what was acknowledged. Acknowledged tasks must exist; unacknowledged ones may.
    """

    def __init__(self, seed: int, owner: User, cookie: str, web: str, backlog: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self.random = Random(seed)
        self.owner, self.cookie, self.web, self.backlog = owner, cookie, web, backlog
        self.acknowledged: dict[str, UUID] = {}
        self.unanswered: set[str] = set()
        #: Tasks delayed past the end of any run.
        self.delayed: set[str] = set()
        #: The number of old tasks that it has added.
        self.grown_old = 0
        self.errors: list[str] = []
        self._victims: list[UUID] = []
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)

    def run(self) -> None:
        client = httpx.Client(cookies={"sessionid": self.cookie}, timeout=10)
        try:
            for number in range(1_000_000):
                while not self._stopping.wait(0.01) and not self._hungry():
                    pass
                if self._stopping.is_set():
                    return
                self._start(f"task{number}", client)
                if number % 4 == 0:
                    self._cancel(client)
                if number % 20 == 10:
                    self._try(self._grow_old)
        except Exception as error:  # noqa: BLE001 - reported by the run, which then ends
            self.errors.append(repr(error))
        finally:
            client.close()
            connection.close()

    def _hungry(self) -> bool:
        return bool(self._try(lambda: Task.objects.unfinished().count() < self.backlog))

    def _try(self, call: Callable[[], Any]) -> Any:
        """Call, and return None if the database does not respond."""
        try:
            return call()
        except (DatabaseError, InterfaceError):
            connection.close()
            return None

    def _start(self, key: str, client: httpx.Client) -> None:
        weights = [kind[0] for kind in KINDS]
        [(_, task, params, options, cancelled)] = self.random.choices(KINDS, weights)
        params, options = {"key": key, **params}, dict(options)
        if self.random.random() < 0.1:
            options["unique_key"] = f"unique {self.random.randrange(5)}"
        by_web = self.random.random() < 0.3
        if not by_web and self.random.random() < 0.02:
            options["run_after"] = timezone.now() + timedelta(hours=1)
            self.delayed.add(key)
            self.backlog += 1
        self.unanswered.add(key)
        try:
            if by_web:
                order = {"task": task.name(), "params": params, "options": options}
                answer = client.post(f"{self.web}/chaos/start/", json=order)
                if answer.status_code == 409:
                    raise DuplicateTask(key)
                # Any other error status means that the database did not respond.
                answer.raise_for_status()
                task_id = UUID(answer.json()["task_id"])
            else:
                with transaction.atomic():
                    task_id = task_service.start_task(
                        task, params, owner=self.owner, **options
                    ).task_id
        except DuplicateTask:
            self.unanswered.discard(key)
            return
        except (httpx.HTTPError, OSError):
            return
        except (DatabaseError, InterfaceError):
            connection.close()
            return
        self.unanswered.discard(key)
        self.acknowledged[key] = task_id
        if cancelled:
            self._victims.append(task_id)

    def _cancel(self, client: httpx.Client) -> None:
        if not self._victims:
            return
        # A random one, so that some have started by then.
        victim = self._victims.pop(self.random.randrange(len(self._victims)))
        try:
            if self.random.random() < 0.4:
                client.post(f"{self.web}/chaos/{victim}/cancel/")
            else:
                self._try(lambda: task_service.cancel_task(victim))
        except (IllegalTransition, httpx.HTTPError, OSError):
            return

    def _grow_old(self) -> None:
        """Add tasks that ended long ago, for prunes to delete."""
        old = [row(Status.COMPLETED, age=timedelta(hours=2), name=OLD) for _ in range(BATCH_OF_OLD)]
        with transaction.atomic():
            Task.objects.bulk_create(old)
            for kind in (EventType.QUEUED, EventType.STARTED, EventType.COMPLETED):
                TaskEvent.objects.bulk_create(
                    TaskEvent(
                        task_id=task.pk,
                        event_type=kind,
                        timestamp=task.finished_at,
                        data={"attempt": 1},
                    )
                    for task in old
                )
        self.grown_old += len(old)


OLD = "tests.tasks.Noop"
