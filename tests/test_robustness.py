"""Threads and workers survive unusual errors, results, transactions, deleted rows and replicas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import RequestContext, Template
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.connection import ConnectionDoesNotExist

from tasks_app.exceptions import DuplicateTask, InvalidParams, TaskCancelled
from tasks_app.live.channels import readable, task_channel
from tasks_app.live.cursor import Cursor
from tasks_app.live.storage import facts_of
from tasks_app.live.view import View
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.schemas import (
    JSON_MAX,
    LOG_LINE_MAX,
    MESSAGE_MAX,
    PROGRESS_MAX,
    TRACEBACK_MAX,
    TYPE_MAX,
)
from tasks_app.service import task_service
from tasks_app.states import EventType, Status, Verb
from tasks_app.store import lifecycle, retention
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.worker.coordinator import Coordinator
from tasks_app.worker.housekeeping import Pruner
from tasks_app.worker.readiness import Fitness, Preload
from tasks_app.worker.runs import NEVER
from tasks_app.worker.threads import execute
from tests.harness import begins, ends, eventually
from tests.live.watching import opening_of
from tests.more_tasks import (
    ODD_ERRORS,
    Echo,
    Large,
    LeavesOpen,
    MakesUsers,
    RaisesOdd,
    Unstorable,
    Wordy,
)
from tests.rows import claimed, facts, fresh, last_fact, saved
from tests.tasks import Add, Noop, Steps
from tests.worker.conftest import Working
from tests.worker.runs import made

pytestmark = pytest.mark.django_db(transaction=True)


def drain(threads: int = 1) -> int:
    return Coordinator(threads, drain=True).run()


def task_of(started: Any) -> Task:
    return Task.objects.get(pk=started.task_id)


@contextmanager
def working(threads: int = 1) -> Iterator[Working]:
    worker = Working(threads)
    try:
        yield worker
    finally:
        worker.end()


# Exceptions of tasks.


@pytest.mark.parametrize("which", ODD_ERRORS)
def test_thread_survives_an_odd_error_and_reports_it(which: str) -> None:
    odd = task_service.start_task(RaisesOdd, {"which": which})
    after = task_service.start_task(Add, {"a": 1})
    assert drain() == 2
    task = task_of(odd)
    assert (task.status, task_of(after).result) == (Status.FAILED, 3)
    assert 0 < len(task.error_type) <= TYPE_MAX
    assert 0 < len(task.error_message) <= MESSAGE_MAX
    assert 0 < len(task.error_traceback) <= TRACEBACK_MAX
    assert last_fact(task).data["error"] == {
        "type": task.error_type,
        "message": task.error_message,
    }


@pytest.mark.parametrize(
    ("which", "kind", "message"),
    [
        ("unhashable", "Rejected", "3"),
        ("mute", "Mute", "Mute has no message: its str() fails."),
        ("nameless", "Exception", "it broke"),
        ("long name", "E" * 200, "it broke"),
        ("long message", "ValueError", "x" * (MESSAGE_MAX - 1) + "…"),
        ("half a surrogate", "ValueError", "? and \ufffd"),
    ],
)
def test_report_of_an_odd_error(which: str, kind: str, message: str) -> None:
    outcome = execute(made(RaisesOdd, params={"which": which}))
    assert outcome.verb is Verb.FAIL
    assert (outcome.value.type, outcome.value.message) == (kind, message)


def test_long_traceback_is_truncated() -> None:
    text = execute(made(RaisesOdd, params={"which": "long traceback"})).value.traceback
    assert len(text) == TRACEBACK_MAX
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("…")


# Refused values.


def test_refused_result_fails_only_its_task(reins: Path) -> None:
    with working(3) as worker:
        neighbour = task_service.start_task(Steps, {"reins": reins})
        begins(neighbour.task_id)
        odd = task_service.start_many(Unstorable, [{}] * 3)
        others = task_service.start_many(Add, [{"a": number} for number in range(20)])
        for one in odd:
            task = ends(one.task_id)
            assert task.status == Status.FAILED
            assert task.error_type in ("IntegrityError", "DataError")
            assert task.error_message
            assert facts(task) == ["task_queued", "task_started", "task_failed"]
        assert [ends(one.task_id).result for one in others] == list(range(2, 22))
        reins.write_text("10")
        assert ends(neighbour.task_id).result == "done"
        assert ends(task_service.start_task(Noop).task_id).status == Status.COMPLETED
        assert worker.end() == 25


def test_worker_continues_after_its_row_was_deleted(reins: Path) -> None:
    with working(2) as worker:
        running = task_service.start_task(Steps, {"reins": reins})
        begins(running.task_id)
        Worker.objects.all().delete()
        later = task_service.start_task(Add, {"a": 1})
        assert ends(later.task_id).result == 3
        again = Worker.objects.get()
        assert (str(again), again.threads, again.stopped_at) == (str(worker.worker), 2, None)
        reins.write_text("10")
        assert ends(running.task_id).result == "done"


# Leftovers of tasks.


def test_open_transaction_does_not_reach_the_next_task() -> None:
    task_service.start_task(LeavesOpen)
    after = [task_service.start_task(MakesUsers, {"names": [name]}) for name in ("ada", "bob")]
    assert drain(threads=1) == 3
    assert [task_of(one).status for one in after] == [Status.COMPLETED] * 2
    assert set(User.objects.values_list("username", flat=True)) == {"ada", "bob"}


def test_swallowed_interruptions_do_not_accumulate() -> None:
    handle = ProgressHandle()
    handle.stop(TaskCancelled())
    lengths = set()
    for number in range(10_000):
        with pytest.raises(TaskCancelled) as caught:
            handle.send_progress_text(f"still here, {number}")
        lengths.add(len(list(caught.traceback)))
        assert caught.value.__context__ is None
    assert len(lengths) == 1


def test_log_during_a_stop_is_kept() -> None:
    handle = ProgressHandle()
    handle.stop(TaskCancelled())
    with pytest.raises(TaskCancelled):
        handle.log("rolled back 3 files")
    _, lines = handle.take()
    assert [line.message for line in lines] == ["rolled back 3 files"]


# Sizes.


def test_params_have_a_maximum_size() -> None:
    whole = JSON_MAX - len('{"value": ""}')
    task_service.start_task(Echo, {"value": "x" * whole})
    with pytest.raises(InvalidParams) as caught:
        task_service.start_task(Echo, {"value": "x" * (whole + 1)})
    assert caught.value.errors == {
        "": "it has 1,048,577 bytes as JSON, and 1,048,576 is the most; "
        "keep it in a file or a table of its own, and name that"
    }
    assert Task.objects.count() == 1


def test_result_has_a_maximum_size() -> None:
    fits = task_service.start_task(Large, {"size": JSON_MAX - 2})
    too_large = task_service.start_task(Large, {"size": JSON_MAX})
    assert drain() == 2
    assert task_of(fits).result == "x" * (JSON_MAX - 2)
    task = task_of(too_large)
    assert (task.status, task.error_type) == (Status.FAILED, "InvalidResult")
    assert task.error_message.startswith(
        "Large returned an invalid result: it has 1,048,578 bytes as JSON, and 1,048,576 is the "
        "most"
    )


def test_progress_text_and_log_are_truncated() -> None:
    started = task_service.start_task(Wordy, {"size": 20_000})
    exact = task_service.start_task(Wordy, {"size": PROGRESS_MAX})
    assert drain() == 2
    task = task_of(started)
    assert task.progress_text == "p" * (PROGRESS_MAX - 1) + "…"
    [line] = task.events.filter(event_type=EventType.LOG)
    assert line.data == {"level": "info", "message": "l" * (LOG_LINE_MAX - 1) + "…"}
    assert task_of(exact).progress_text == "p" * PROGRESS_MAX


# An idle worker.


def test_due_prune_does_not_wake_a_stopping_worker() -> None:
    """A stopping worker no longer prunes, so it must not wait for the next prune either."""
    coordinator = Coordinator(1)
    run = made(Noop)
    run.began = time.monotonic()
    coordinator.runs[run.claim] = run
    coordinator.pruner = Pruner(time.monotonic() - 1)
    coordinator.preload, coordinator.fitness = Preload(lambda: None), Fitness()
    eventually(lambda: coordinator.preload.deadline == NEVER, what="task classes are imported")
    coordinator._beat_at = time.monotonic() + 100
    coordinator._hungry = coordinator._curious = False
    assert coordinator._patience() == 0.0
    coordinator.stop()
    assert coordinator._patience() > 1.0


# A site with a read replica.


class Replica:
    """Routes reads of tasks to a database that does not exist, so that such a read fails."""

    def db_for_read(self, model: type[Any], **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "tasks_app" else None


@pytest.fixture
def replica(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [Replica()]
    with pytest.raises(ConnectionDoesNotExist):
        Task.objects.first()


@pytest.mark.usefixtures("replica")
def test_decisions_read_the_primary() -> None:
    assert Task.objects.all().db == "replica"
    assert {query.db for query in (Task.primary.running(), TaskEvent.primary.all())} == {"default"}
    assert facts_of("tasks").db == "default"


@pytest.mark.usefixtures("replica")
def test_worker_reads_no_replica() -> None:
    done = task_service.start_task(Add, {"a": 1})
    failed = task_service.start_task(RaisesOdd, {"which": "mute"}, max_attempts=2)
    task_service.cancel_task(failed.task_id)
    assert drain() == 1
    assert Task.primary.get(pk=done.task_id).result == 3
    assert lifecycle.rescue() == []
    assert retention.count(retention.Rule(0.0, 0.0)) == 2
    assert sum(retention.prune(retention.Rule(0.0, None))) == 2
    retention.prune_workers()


@pytest.mark.usefixtures("replica")
def test_start_and_removal_read_no_replica() -> None:
    started = task_service.start_task(Noop, unique_key="k")
    with pytest.raises(DuplicateTask):
        task_service.start_task(Noop, unique_key="k")
    task_service.cancel_task(started.task_id)
    task_service.remove_completed_task(started.task_id)
    assert not Task.primary.exists()


@pytest.mark.usefixtures("replica")
@pytest.mark.parametrize(("view", "status"), [("cancel", Status.PENDING), ("retry", Status.FAILED)])
@pytest.mark.parametrize("door", ["page", "admin", "api"])
def test_button_reads_no_replica(admin_client: Client, door: str, view: str, status: Any) -> None:
    """A user may press it before the replica has the task."""
    task = saved(status)
    url = {
        "page": reverse(f"tasks_app:{view}", args=[task.pk]),
        "admin": reverse(f"admin:tasks_app_task_{view}", args=[task.pk]),
        "api": f"/api/tasks/{task.pk}/{view}",
    }[door]
    response = admin_client.post(url, headers={"Accept": "application/json"})
    assert response.status_code in (200, 202), response.content
    assert Task.primary.filter(retried_from=task).exists() is (view == "retry")


@pytest.mark.usefixtures("replica")
@pytest.mark.parametrize(
    "url",
    [
        "/tasks/{}/",
        "/tasks/{}/status/",
        "/tasks/status/?task={}",
        "/admin/tasks_app/task/{}/change/",
        "/api/tasks/{}",
        "/api/tasks/{}/status",
        "/api/tasks/{}/events",
    ],
)
def test_page_of_a_new_task_reads_no_replica(admin_client: Client, url: str) -> None:
    task = saved(Status.FAILED)
    again = task_service.retry_task(task.pk).task_id
    response = admin_client.get(url.format(again))
    assert response.status_code == 200, response.content
    assert str(again) in response.content.decode()


@pytest.mark.usefixtures("replica")
def test_retry_redirects_to_the_new_task_without_a_replica(admin_client: Client) -> None:
    url = reverse("tasks_app:retry", args=[saved(Status.FAILED).pk])
    answer = admin_client.post(url, headers={"Accept": "text/html"})
    again = Task.primary.get(retried_from__isnull=False)
    assert answer.headers["Location"] == again.get_absolute_url()
    assert task_service.get_task_status(again.pk).status == Status.PENDING


@pytest.mark.usefixtures("replica")
def test_live_list_reads_no_replica(rf: RequestFactory) -> None:
    """It resumes from a cursor of the primary."""
    request = rf.get("/")
    request.user = User.objects.create_user("ada")
    started = task_service.start_task(Noop, owner=request.user)
    page = Template("{% load tasks %}{% task_list form='card' %}")
    assert str(started.task_id) in page.render(RequestContext(request))


@pytest.mark.usefixtures("replica")
def test_stream_reads_no_replica() -> None:
    ada = User.objects.create_user("ada")
    started = task_service.start_task(Noop, owner=ada)
    channel = task_channel(started.task_id)
    assert readable(ada, [channel]) == {channel}
    drain()
    opening = opening_of(View([channel]), None, Cursor.now("default"))
    assert opening is not None
    assert b"event: task_completed" in opening


# Concurrent starts.


def test_unique_key_is_free_if_its_holder_ends_during_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The insert was refused because of a task that has ended before it is looked up."""
    first = task_service.start_task(Noop, unique_key="k")
    look = lifecycle._holder_of_key

    def end_before_lookup(keys: Any) -> Task | None:
        if task_of(first).status == Status.PENDING:
            task_service.cancel_task(first.task_id)
        return look(keys)

    monkeypatch.setattr(lifecycle, "_holder_of_key", end_before_lookup)
    second = task_service.start_task(Noop, unique_key="k")
    assert facts(task_of(second)) == ["task_queued"]
    with pytest.raises(DuplicateTask) as caught:
        task_service.start_task(Noop, unique_key="k")
    assert caught.value.task_id == second.task_id


def test_claim_stays_valid_after_the_worker_row_was_deleted() -> None:
    """Deleting a worker's row does not take away the task that it runs."""
    task, claim = claimed()
    Worker.objects.all().delete()
    assert fresh(task).worker is None
    assert lifecycle.renew([claim]) == []
    assert lifecycle.complete({claim: None}) == []
    assert fresh(task).status == Status.COMPLETED
