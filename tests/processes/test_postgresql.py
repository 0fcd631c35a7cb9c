"""Workers and streams on a PostgreSQL server that cuts them off, goes away and comes back.

On a server of the test's own, so that they hold in both runs of the suite.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from tasks_app.models import Task, Worker
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import bulk
from tests import rows
from tests.harness import Process, Viewer, Web, begins, ends, eventually
from tests.servers import PostgreSQL
from tests.tasks import Add, Noop, Steps

pytestmark = pytest.mark.once

StartWorker = Callable[..., Process]
StartWeb = Callable[..., Web]
Watch = Callable[..., Viewer]

#: Longer than any of these tests: whoever is woken by these was not told.
NEVER = "3600"
#: Nothing but notices, within a test's patience: no timer, no heartbeat.
TOLD = {
    "TASK_POLL_INTERVAL_SECONDS": NEVER,
    "TASK_LEASE_SECONDS": "14400",
    "TASK_HEARTBEAT_SECONDS": NEVER,
}
#: A lease that outlives a restart of the server on a busy machine.
LASTING = {"TASK_LEASE_SECONDS": "60", "TASK_HEARTBEAT_SECONDS": "1"}


class Page:
    """A viewer of all that is one's own, who comes back as browsers do when a stream breaks off."""

    def __init__(self, watch: Watch, web: Web) -> None:
        self._open = lambda last_id="": watch(
            f"{web.url}/tasks/stream/?mine=1", last_event_id=last_id
        )
        self._viewers = [self._open()]
        eventually(lambda: self._viewers[0].status == 200)

    def told(self, task_id: UUID) -> list[str]:
        """What it was told of a task's history, in the order it came."""
        self._come_back()
        state = {"task_status", "progress_update", "keep-alive", "error"}
        return [
            event.event
            for viewer in self._viewers
            for event in list(viewer.events)
            if event.event not in state and json.loads(event.data)["task_id"] == str(task_id)
        ]

    def values(self, task_id: UUID) -> list[float]:
        """The progress it saw of a task."""
        self._come_back()
        return [value for viewer in self._viewers for value in viewer.values(task_id)]

    def _come_back(self) -> None:
        if self._viewers[-1].ended:
            last_ids = [viewer.last_event_id for viewer in self._viewers if viewer.last_event_id]
            self._viewers.append(self._open(last_event_id="".join(last_ids[-1:])))


def test_nobody_looks_who_is_told(
    server: PostgreSQL, start_worker: StartWorker, start_web: StartWeb, watch: Watch, owner: User
) -> None:
    start_worker(**TOLD)
    page = Page(watch, start_web(**TOLD))
    eventually(lambda: len(server.listeners()) == 2)
    for number in range(5):
        started = task_service.start_task(Add, {"a": number}, owner=owner)
        eventually(lambda t=started.task_id: "task_completed" in page.told(t))

    # From here on nothing happens, and nobody asks whether it has.
    def asked() -> list[tuple[object, ...]]:
        return server.ask(
            "SELECT pid, query, state_change FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
        )

    pause = threading.Event()

    def nobody_asks() -> bool:
        before = asked()
        pause.wait(1.0)
        return asked() == before

    eventually(nobody_asks)


def test_cut_connections_are_replaced_and_nothing_is_missed(
    server: PostgreSQL,
    start_worker: StartWorker,
    start_web: StartWeb,
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    worker, web = start_worker(**LASTING), start_web(**LASTING)
    page = Page(watch, web)
    running = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    begins(running.task_id)
    for step in range(1, 4):
        eventually(lambda: len(server.listeners()) == 2)
        before = server.listeners()
        server.cut()
        connection.close()
        # Written while nobody hears it.
        quick = task_service.start_task(Noop, owner=owner)
        reins.write_text(str(step * 3))
        eventually(lambda t=quick.task_id: "task_completed" in page.told(t))
        eventually(lambda s=step: s * 3 / 10 in page.values(running.task_id))
        eventually(lambda b=before: len(server.listeners() - b) == 2)
        assert page.told(quick.task_id) == ["task_queued", "task_started", "task_completed"]
    reins.write_text("10")
    ends(running.task_id)
    eventually(lambda: "task_completed" in page.told(running.task_id))
    assert page.told(running.task_id) == ["task_queued", "task_started", "task_completed"]
    values = page.values(running.task_id)
    assert values == sorted(values)
    assert worker.output.count("LISTEN on PostgreSQL answers again") == 3
    assert "Traceback" not in worker.output + web.output


def test_a_restart_of_the_server_is_waited_out(
    server: PostgreSQL,
    start_worker: StartWorker,
    start_web: StartWeb,
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    worker, web = start_worker(**LASTING), start_web(**LASTING)
    page = Page(watch, web)
    running = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    soon = timezone.now() + timedelta(seconds=1)
    waiting = task_service.start_many(Noop, [{}] * 20, owner=owner, run_after=soon)
    begins(running.task_id)
    eventually(lambda: len(server.listeners()) == 2)
    connection.close()
    server.stop()
    reins.write_text("10")  # It ends while there is nobody to tell.
    worker.says("The database does not answer")
    web.says("does not answer")
    server.start()
    for started in (running, *waiting):
        ends(started.task_id)
        eventually(lambda t=started.task_id: "task_completed" in page.told(t))
        assert page.told(started.task_id) == [
            "task_queued",
            "task_started",
            "task_completed",
        ]
    assert Task.objects.exclude(status=Status.COMPLETED).count() == 0
    eventually(lambda: len(server.listeners()) == 2, what="both listen again")
    after = task_service.start_task(Add, {"a": 1}, owner=owner)
    eventually(lambda: "task_completed" in page.told(after.task_id))
    assert Worker.objects.filter(pid=worker.pid, stopped_at=None).exists()
    assert worker.output.count("LISTEN on PostgreSQL does not answer") == 1
    assert worker.output.count("LISTEN on PostgreSQL answers again") == 1
    assert "Traceback" not in worker.output + web.output


def test_without_listen_the_timer_serves(
    server: PostgreSQL,
    start_worker: StartWorker,
    start_web: StartWeb,
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    """As it must behind a pooler in transaction mode."""
    start_worker(TASK_LISTEN="0")
    page = Page(watch, start_web(TASK_LISTEN="0"))
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    begins(task.task_id)
    reins.write_text("5")
    eventually(lambda: 0.5 in page.values(task.task_id))
    task_service.cancel_task(task.task_id)
    eventually(lambda: "task_cancelled" in page.told(task.task_id))
    assert page.told(task.task_id) == [
        "task_queued",
        "task_started",
        "task_cancel_requested",
        "task_cancelled",
    ]
    assert server.listeners() == set()


#: How somebody may hold the row of a task: by its own sake, or by a row that refers to it.
HOLDS = {
    "row": "SELECT FROM tasks_app_task WHERE id = %s FOR UPDATE",
    "reference": "INSERT INTO tasks_app_taskevent (task_id, event_type, timestamp, data)"
    " VALUES (%s, 'task_log', now(), '{}')",
}


@pytest.mark.parametrize("by", HOLDS)
def test_who_holds_the_row_of_one_task_holds_up_nothing_else(
    server: PostgreSQL, start_worker: StartWorker, tmp_path: Path, by: str
) -> None:
    """However long: its worker goes on with the others, and nobody takes any from it."""
    brief = {"TASK_LEASE_SECONDS": "4", "TASK_HEARTBEAT_SECONDS": "0.5"}
    worker = start_worker("--max-workers", "2", **brief)
    held, free = (tmp_path / name for name in ("held", "free"))
    for reins in (held, free):
        reins.write_text("1")
    one, two = (task_service.start_task(Steps, {"reins": reins}) for reins in (held, free))
    task = begins(one.task_id)
    begins(two.task_id)
    rescuer = start_worker("--max-workers", "1", "--queues", "none", **brief)
    with psycopg.connect(server.url) as other:
        other.execute(HOLDS[by], [one.task_id])
        held.write_text("10")
        if by == "row":
            worker.says(f"Another session holds the row of task {one.task_id}")
            eventually(lambda: expired(task), what="its lease runs out")
        free.write_text("5")
        eventually(lambda: Task.objects.filter(pk=two.task_id, progress=0.5).exists())
        free.write_text("10")
        assert ends(two.task_id).status == Status.COMPLETED
        # New work as well.
        assert ends(task_service.start_task(Noop).task_id).status == Status.COMPLETED
        if by == "reference":
            assert ends(one.task_id).status == Status.COMPLETED
        other.rollback()
    assert ends(one.task_id).result == "done"
    for task_id in (one.task_id, two.task_id):
        assert rows.facts(Task.objects.get(pk=task_id))[1:] == ["task_started", "task_completed"]
    assert "does not answer" not in worker.output
    assert "taken back" not in worker.output + rescuer.output


def expired(task: Task) -> bool:
    """Whether its lease ran out for longer than others wait for it."""
    task.refresh_from_db()
    assert task.status == Status.RUNNING
    assert task.lease_expires_at is not None
    return timezone.now() > task.lease_expires_at + timedelta(seconds=2)


def test_a_prune_that_waits_for_a_row_holds_up_no_task(
    server: PostgreSQL, start_worker: StartWorker
) -> None:
    """Here that of the repetition of a task, which would have to forget what it repeats."""
    old = rows.saved(Status.FAILED, age=timedelta(days=100))
    again = rows.saved(Status.COMPLETED, retried_from=old)
    other_old = rows.saved(Status.FAILED, age=timedelta(days=100))
    with psycopg.connect(server.url) as other:
        other.execute("SELECT FROM tasks_app_task WHERE id = %s FOR UPDATE", [again.pk])
        worker = start_worker(TASK_CLEANUP_INTERVAL_SECONDS="0.5")
        worker.says(f"Task {old.pk} is past its retention and cannot be removed")
        eventually(lambda: not Task.objects.filter(pk=other_old.pk).exists())
        assert ends(task_service.start_task(Noop).task_id).status == Status.COMPLETED
        assert "does not answer" not in worker.output
        other.rollback()
    eventually(lambda: not Task.objects.filter(pk=old.pk).exists(), what="the next prune")


def test_a_worker_waits_out_a_deadlock(
    server: PostgreSQL, start_worker: StartWorker, reins: Path
) -> None:
    """Whoever the server chooses to end, nothing of a task is lost."""
    # Less than the worker waits for a lock, and much less than the other one does.
    server.tell("ALTER ROLE CURRENT_USER SET deadlock_timeout = '700ms'")
    connection.close()
    worker = start_worker(**LASTING)
    started = task_service.start_task(Steps, {"reins": reins})
    task = begins(started.task_id)
    with psycopg.connect(server.url) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.commit()
        while "deadlock detected" not in worker.output:
            other.execute("LOCK TABLE tasks_app_taskevent IN EXCLUSIVE MODE")
            reins.write_text("10")
            # It holds the row of the task and waits to tell of its end; now the other way round.
            eventually(lambda: waits_for_a_lock(server), what="the worker waits")
            other.execute(HOLDS["row"], [task.pk])
            other.rollback()
    assert ends(task.pk).result == "done"
    assert rows.facts(task) == ["task_queued", "task_started", "task_completed"]
    assert "Traceback" not in worker.output
    assert "was taken from this worker" not in worker.output


def waits_for_a_lock(server: PostgreSQL) -> bool:
    [(waiting,)] = server.ask("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(waiting)


def test_a_bulk_act_that_met_a_deadlock_is_done_anew(server: PostgreSQL) -> None:
    server.tell("ALTER ROLE CURRENT_USER SET deadlock_timeout = '20ms'")
    connection.close()
    tasks = [rows.saved(Status.RUNNING) for _ in range(2)]
    told: list[list[Any]] = []
    tries = 0

    def cancel(task_id: UUID) -> Any:
        nonlocal tries
        if task_id == tasks[1].pk:
            tries += 1
            if tries == 1:
                # It holds the second, and now wants the first.
                thread.start()
                eventually(lambda: waits_for_a_lock(server), what="the other waits")
        return task_service.cancel_task(task_id)

    with psycopg.connect(server.url) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("SELECT FROM tasks_app_task WHERE id = %s FOR UPDATE", [tasks[1].pk])

        def want_the_first() -> None:
            other.execute("SELECT FROM tasks_app_task WHERE id = %s FOR UPDATE", [tasks[0].pk])
            other.rollback()

        thread = threading.Thread(target=want_the_first)
        summary = bulk.each([task.pk for task in tasks], cancel, told.append)
        thread.join()
    assert (tries, summary.done, [len(done) for done in told]) == (2, 2, [2])
    for task in tasks:
        assert rows.facts(task) == ["task_cancel_requested"]


def test_a_clean_up_steps_past_what_another_session_holds(
    server: PostgreSQL, tmp_path: Path
) -> None:
    """Also at the very end, where nothing follows, and of those that ended together."""
    moment = timezone.now() - timedelta(days=100)
    free = [rows.saved(Status.CANCELLED, finished_at=moment) for _ in range(3)]
    held = [rows.saved(Status.CANCELLED, finished_at=moment) for _ in range(3)]
    held.append(rows.saved(Status.CANCELLED, finished_at=moment + timedelta(days=1)))

    def clean_up() -> dict[str, Any]:
        process = Process(["manage.py", "cleanup_tasks", "--json"], tmp_path / "log")
        try:
            assert process.wait() == 0, process.output
            return json.loads(process.output.splitlines()[-1])
        finally:
            process.end()

    with psycopg.connect(server.url) as other:
        ids = [task.pk for task in held]
        other.execute("SELECT FROM tasks_app_task WHERE id = ANY(%s) FOR UPDATE", [ids])
        assert clean_up()["removed"] == len(free)
        other.rollback()
    assert set(Task.objects.all()) == set(held)
    assert clean_up()["removed"] == len(held)
