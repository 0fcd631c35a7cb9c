"""How long finished tasks stay, and that nothing else goes."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from tasks_app import retention
from tasks_app.exceptions import IllegalTransition, TaskNotFound
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.retention import Rule
from tasks_app.states import TERMINAL, UNFINISHED, EventType, Status
from tests.rows import ended, enqueued, facts, saved, snapshot, worker

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def names() -> set[str]:
    return set(Task.objects.values_list("name", flat=True))


@pytest.fixture
def aged() -> None:
    """One task of each status for each of three ages; the unfinished ones are as old."""
    for status in Status:
        for days in (1, 5, 10):
            saved(status, name=f"{status} {days}", age=DAY * days)


UNTOUCHED = {f"{status} {days}" for status in UNFINISHED for days in (1, 5, 10)}


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule(7 * 86400, 7 * 86400), {f"{status} {age}" for status in TERMINAL for age in (1, 5)}),
        (
            Rule(3 * 86400, 7 * 86400),
            {"completed 1", "cancelled 1", "failed 1", "failed 5"},
        ),
        (
            Rule(None, 3 * 86400),
            {"failed 1"} | {f"{s} {age}" for s in ("completed", "cancelled") for age in (1, 5, 10)},
        ),
        (Rule(0, None), {"failed 1", "failed 5", "failed 10"}),
        (Rule(None, None), {f"{status} {age}" for status in TERMINAL for age in (1, 5, 10)}),
        (Rule(0, 0), set()),
        (
            Rule(0, 0, frozenset({Status.CANCELLED})),
            {f"{s} {age}" for s in ("completed", "failed") for age in (1, 5, 10)},
        ),
    ],
)
@pytest.mark.usefixtures("aged")
def test_what_a_rule_takes_and_leaves(rule: Rule, left: set[str]) -> None:
    going = 15 - len(UNTOUCHED | left)
    assert retention.count(rule) == going
    assert sum(retention.prune(rule)) == going
    assert names() == UNTOUCHED | left
    assert retention.count(rule) == 0


def test_a_site_sets_the_rule(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = 100
    settings.TASK_FAILED_RETENTION_SECONDS = None
    assert Rule.of_site() == Rule(100, None, TERMINAL)


def test_events_go_with_their_tasks() -> None:
    gone = [ended(status) for status in sorted(TERMINAL)]
    stays = enqueued()
    assert sum(retention.prune(Rule(0, 0))) == len(gone)
    assert list(Task.objects.all()) == [stays]
    assert list(TaskEvent.objects.all()) == list(stays.events.all())


def test_a_prune_goes_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    for _ in range(7):
        saved(Status.COMPLETED, age=DAY)
    batches = retention.prune(Rule(0, 0))
    assert next(batches) == 3
    assert Task.objects.count() == 4
    assert list(batches) == [3, 1]
    assert Task.objects.count() == 0


def test_a_full_last_batch_is_followed_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(4):
        saved(Status.COMPLETED, age=DAY)
    assert list(retention.prune(Rule(0, 0))) == [2, 2]


@pytest.mark.django_db(transaction=True)
def test_each_batch_is_a_transaction_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a prune that is cut off keeps what it did, and holds no lock meanwhile."""
    monkeypatch.setattr(retention, "BATCH", 1)
    for _ in range(2):
        saved(Status.COMPLETED, age=DAY)
    batches = retention.prune(Rule(0, 0))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert Task.objects.count() == 1


# Workers' records.


@pytest.mark.parametrize("stopped", [True, False])
def test_records_of_workers_outlive_them_for_a_day(stopped: bool) -> None:
    def one(name: str, age: timedelta) -> Worker:
        moment = timezone.now() - age
        return worker(hostname=name, heartbeat_at=moment, stopped_at=moment if stopped else None)

    _old, recent = one("old", DAY * 1.01), one("recent", DAY * 0.99)
    assert retention.prune_workers() == 1
    assert list(Worker.objects.all()) == [recent]
    assert retention.prune_workers() == 0


@pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED])
def test_the_record_stays_while_a_task_bears_it(status: Status) -> None:
    """Its history says who ran it; and whoever rescues it names the worker that was lost."""
    old = worker(heartbeat_at=timezone.now() - DAY * 9)
    saved(status, worker=old)
    assert retention.prune_workers() == 0
    assert list(Worker.objects.all()) == [old]


# One task.


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_finished_task_is_removed_with_its_history(status: Status) -> None:
    task, other = ended(status), ended(status)
    retention.remove(task.pk)
    assert list(Task.objects.all()) == [other]
    assert facts(other)
    assert not TaskEvent.objects.exclude(task=other).exists()


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_an_unfinished_task_is_not_removed(status: Status) -> None:
    task = saved(status)
    TaskEvent.objects.create(task=task, event_type=EventType.QUEUED, timestamp=timezone.now())
    before = snapshot()
    with pytest.raises(IllegalTransition) as caught:
        retention.remove(task.pk)
    assert (caught.value.task_id, caught.value.status) == (task.pk, status)
    assert snapshot() == before


def test_what_is_not_there_is_not_removed() -> None:
    with pytest.raises(TaskNotFound):
        retention.remove(uuid.uuid4())
