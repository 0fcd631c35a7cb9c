"""Workers and streams on a PostgreSQL server that cuts connections, stops and starts.

Each test has its own server, so that they work in both runs of the suite.
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

pytestmark = [pytest.mark.once, pytest.mark.slow]

StartWorker = Callable[..., Process]
StartWeb = Callable[..., Web]
Watch = Callable[..., Viewer]

#: Longer than any of these tests, so a process that wakes up was notified.
NEVER = "3600"
#: Only notifications wake these processes: no timer, no heartbeat.
NOTIFIED = {
    "TASK_POLL_INTERVAL_SECONDS": NEVER,
    "TASK_LEASE_SECONDS": "14400",
    "TASK_HEARTBEAT_SECONDS": NEVER,
}
#: A lease longer than a restart of the server on a busy machine.
LASTING = {"TASK_LEASE_SECONDS": "60", "TASK_HEARTBEAT_SECONDS": "1"}


class Page:
    """A viewer of all own tasks that reconnects when its stream breaks, as browsers do."""

    def __init__(self, watch: Watch, web: Web) -> None:
        self._open = lambda last_id="": watch(
            f"{web.url}/tasks/stream/?mine=1", last_event_id=last_id
        )
        self._viewers = [self._open()]
        eventually(lambda: self._viewers[0].status == 200)

    def history_of(self, task_id: UUID) -> list[str]:
        """Return the history of a task as received, in order."""
        self._come_back()
        state = {"task_status", "progress_update", "keep-alive", "error"}
        return [
            event.event
            for viewer in self._viewers
            for event in list(viewer.events)
            if event.event not in state and json.loads(event.data)["task_id"] == str(task_id)
        ]

    def values(self, task_id: UUID) -> list[float]:
        """Return the progress received for a task."""
        self._come_back()
        return [value for viewer in self._viewers for value in viewer.values(task_id)]

    def _come_back(self) -> None:
        if self._viewers[-1].ended:
            last_ids = [viewer.last_event_id for viewer in self._viewers if viewer.last_event_id]
            self._viewers.append(self._open(last_event_id="".join(last_ids[-1:])))


def test_idle_processes_send_no_queries(
    server: PostgreSQL, start_worker: StartWorker, start_web: StartWeb, watch: Watch, owner: User
) -> None:
    start_worker(**NOTIFIED)
    page = Page(watch, start_web(**NOTIFIED))
    eventually(lambda: len(server.listeners()) == 2)
    for number in range(5):
        started = task_service.start_task(Add, {"a": number}, owner=owner)
        eventually(lambda t=started.task_id: "task_completed" in page.history_of(t))

    # From now on nothing happens, and no process polls.
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
        # Committed while no process listens.
        quick = task_service.start_task(Noop, owner=owner)
        reins.write_text(str(step * 3))
        eventually(lambda t=quick.task_id: "task_completed" in page.history_of(t))
        eventually(lambda s=step: s * 3 / 10 in page.values(running.task_id))
        eventually(lambda b=before: len(server.listeners() - b) == 2)
        assert page.history_of(quick.task_id) == ["task_queued", "task_started", "task_completed"]
    reins.write_text("10")
    ends(running.task_id)
    eventually(lambda: "task_completed" in page.history_of(running.task_id))
    assert page.history_of(running.task_id) == ["task_queued", "task_started", "task_completed"]
    values = page.values(running.task_id)
    assert values == sorted(values)
    assert worker.output.count("LISTEN on PostgreSQL answers again") == 3
    assert "Traceback" not in worker.output + web.output


def test_server_restart_is_survived(
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
    reins.write_text("10")  # It ends while the server is down.
    worker.says("The database does not answer")
    web.says("does not answer")
    server.start()
    for started in (running, *waiting):
        ends(started.task_id)
        eventually(lambda t=started.task_id: "task_completed" in page.history_of(t))
        assert page.history_of(started.task_id) == [
            "task_queued",
            "task_started",
            "task_completed",
        ]
    assert Task.objects.exclude(status=Status.COMPLETED).count() == 0
    eventually(lambda: len(server.listeners()) == 2, what="both listen again")
    after = task_service.start_task(Add, {"a": 1}, owner=owner)
    eventually(lambda: "task_completed" in page.history_of(after.task_id))
    assert Worker.objects.filter(pid=worker.pid, stopped_at=None).exists()
    assert worker.output.count("LISTEN on PostgreSQL does not answer") == 1
    assert worker.output.count("LISTEN on PostgreSQL answers again") == 1
    assert "Traceback" not in worker.output + web.output


def test_without_listen_the_timer_is_used(
    server: PostgreSQL,
    start_worker: StartWorker,
    start_web: StartWeb,
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    """As is necessary behind a pooler in transaction mode."""
    start_worker(TASK_LISTEN="0")
    page = Page(watch, start_web(TASK_LISTEN="0"))
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    begins(task.task_id)
    reins.write_text("5")
    eventually(lambda: 0.5 in page.values(task.task_id))
    task_service.cancel_task(task.task_id)
    eventually(lambda: "task_cancelled" in page.history_of(task.task_id))
    assert page.history_of(task.task_id) == [
        "task_queued",
        "task_started",
        "task_cancel_requested",
        "task_cancelled",
    ]
    assert server.listeners() == set()


#: Ways in which another session locks a task's row: directly, or by a row that refers to it.
HOLDS = {
    "row": "SELECT FROM tasks_app_task WHERE id = %s FOR UPDATE",
    "reference": "INSERT INTO tasks_app_taskevent (task_id, event_type, timestamp, data)"
    " VALUES (%s, 'task_log', now(), '{}')",
}


@pytest.mark.parametrize("by", HOLDS)
def test_lock_on_one_task_blocks_nothing_else(
    server: PostgreSQL, start_worker: StartWorker, tmp_path: Path, by: str
) -> None:
    """However long: its worker continues with other tasks, and none is rescued."""
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
        # The worker takes new tasks as well.
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
    """Return whether the lease has been expired for longer than others wait."""
    task.refresh_from_db()
    assert task.status == Status.RUNNING
    assert task.lease_expires_at is not None
    return timezone.now() > task.lease_expires_at + timedelta(seconds=2)


def test_prune_that_waits_for_a_row_blocks_no_task(
    server: PostgreSQL, start_worker: StartWorker
) -> None:
    """The row is that of a retry, whose reference to its original would have to be cleared."""
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


def test_worker_survives_a_deadlock(
    server: PostgreSQL, start_worker: StartWorker, reins: Path
) -> None:
    """Whichever session the server aborts, nothing is lost."""
    # Shorter than the worker's lock timeout, and much shorter than the other session's setting.
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
            # The worker holds the task's row and waits to write the end. Now lock in the opposite
            # order.
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


def test_bulk_action_is_repeated_after_a_deadlock(server: PostgreSQL) -> None:
    server.tell("ALTER ROLE CURRENT_USER SET deadlock_timeout = '20ms'")
    connection.close()
    tasks = [rows.saved(Status.RUNNING) for _ in range(2)]
    batches: list[list[Any]] = []
    tries = 0

    def cancel(task_id: UUID) -> Any:
        nonlocal tries
        if task_id == tasks[1].pk:
            tries += 1
            if tries == 1:
                # It holds the second row, and now wants the first.
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
        summary = bulk.each([task.pk for task in tasks], cancel, batches.append)
        thread.join()
    assert (tries, summary.done, [len(done) for done in batches]) == (2, 2, [2])
    for task in tasks:
        assert rows.facts(task) == ["task_cancel_requested"]


def test_cleanup_skips_rows_locked_by_another_session(server: PostgreSQL, tmp_path: Path) -> None:
    """Even at the very end, and among tasks with the same end time."""
    finished_at = timezone.now() - timedelta(days=100)
    free = [rows.saved(Status.CANCELLED, finished_at=finished_at) for _ in range(3)]
    held = [rows.saved(Status.CANCELLED, finished_at=finished_at) for _ in range(3)]
    held.append(rows.saved(Status.CANCELLED, finished_at=finished_at + timedelta(days=1)))

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
