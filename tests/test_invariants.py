"""The checker itself accepts what the lifecycle writes and detects each kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import EventType, Status
from tasks_app.store import lifecycle, retention
from tasks_app.tasks.progress import LogLine
from tests.invariants import Seen, check_invariants
from tests.rows import BROKEN, claimed, ended, enqueued, worker

pytestmark = pytest.mark.django_db


def add(task: Task, kind: EventType, **data: Any) -> None:
    TaskEvent.objects.create(task=task, event_type=kind, timestamp=timezone.now(), data=data)


def alter(task: Task, **fields: Any) -> None:
    Task.objects.filter(pk=task.pk).update(**fields)


def test_rows_written_by_the_lifecycle_pass(django_assert_num_queries: Any) -> None:
    seen = Seen()
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        ended(status, max_attempts=2)
    _, claim = claimed(max_attempts=2)
    lifecycle.retry({claim: BROKEN})
    _, claim = claimed()
    check_invariants(seen)
    lifecycle.release([claim])
    lifecycle.request_cancel(claim.task_id)
    with django_assert_num_queries(1):
        assert check_invariants(seen) == 5
    retention.remove(claim.task_id)
    assert check_invariants(seen) == 4


def delete_first_event(task: Task) -> None:
    first = TaskEvent.objects.filter(task=task).order_by("id").first()
    assert first is not None
    first.delete()


DAMAGE: list[tuple[str, Callable[[Task], None]]] = [
    ("came while None", delete_first_event),
    ("came while completed", lambda task: add(task, EventType.LOG)),
    ("came while completed", lambda task: add(task, EventType.STARTED, attempt=2)),
    ("came while completed", lambda task: add(task, EventType.QUEUED)),
    (
        "its history says it is running",
        lambda task: task.events.get(event_type=EventType.COMPLETED).delete(),
    ),
    ("its history says it had 1 attempts", lambda task: alter(task, attempt=2)),
    (
        "attempt 1 says otherwise",
        lambda task: task.events.filter(event_type=EventType.STARTED).update(data={"attempt": 2}),
    ),
    ("its cancel request", lambda task: alter(task, cancel_requested_at=timezone.now())),
    ("its attempt is out of range", lambda task: alter(task, attempt=0)),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGE)
def test_damage_is_detected(message: str, damage: Callable[[Task], object]) -> None:
    task = ended(Status.COMPLETED, max_attempts=2)
    check_invariants()
    damage(task)
    with pytest.raises(AssertionError, match=message):
        check_invariants()


def test_cancelled_task_does_not_become_pending_again() -> None:
    task, claim = claimed(max_attempts=2)
    lifecycle.retry({claim: BROKEN})
    request = TaskEvent.objects.filter(task=task).order_by("id").last()
    assert request is not None
    request.delete()
    add(task, EventType.CANCEL_REQUESTED)
    add(task, EventType.RETRY_SCHEDULED)
    alter(task, cancel_requested_at=timezone.now())
    with pytest.raises(AssertionError, match="waits again after somebody cancelled"):
        check_invariants()


CHANGES: list[tuple[str, Callable[[Task], None]]] = [
    ("it had ended as", lambda task: alter(task, result=1.0)),
    ("it had ended as", lambda task: alter(task, priority=1)),
    ("its history was", lambda task: task.events.filter(event_type=EventType.LOG).delete()),
    (
        "its history was",
        lambda task: task.events.filter(event_type=EventType.STARTED).update(
            data={"attempt": 1, "worker": "another"}
        ),
    ),
]


@pytest.mark.parametrize(("message", "change"), CHANGES)
def test_finished_task_does_not_change(message: str, change: Callable[[Task], object]) -> None:
    seen = Seen()
    task, claim = claimed()
    lifecycle.log({claim: [LogLine("info", "x")]})
    lifecycle.complete({claim: 1})
    check_invariants(seen)
    change(task)
    check_invariants()
    with pytest.raises(AssertionError, match=message):
        check_invariants(seen)


def test_deleted_task_does_not_come_back() -> None:
    seen = Seen()
    task = enqueued()
    check_invariants(seen)
    stored = Task.objects.get(pk=task.pk)
    events = list(TaskEvent.objects.filter(task_id=task.pk))
    task.delete()
    assert check_invariants(seen) == 0
    stored.save(force_insert=True)
    TaskEvent.objects.bulk_create(events)
    with pytest.raises(AssertionError, match="came back"):
        check_invariants(seen)


def test_worker_or_owner_may_be_deleted() -> None:
    seen = Seen()
    _, claim = claimed(worker())
    lifecycle.complete({claim: 1})
    check_invariants(seen)
    Worker.objects.all().delete()
    check_invariants(seen)
