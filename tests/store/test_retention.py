"""Retention of finished tasks: what is pruned, removed, and kept."""

from __future__ import annotations

import re
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import OperationalError, connection, models, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tasks_app.exceptions import IllegalTransition, TaskNotFound, TaskProtected
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.states import TERMINAL, UNFINISHED, EventType, Status
from tasks_app.store import retention
from tasks_app.store.retention import (
    AIM_SECONDS,
    ROWS_MAX,
    ROWS_MIN,
    ROWS_OF_A_TASK,
    WARNINGS,
    Prune,
    Rule,
)
from tests.rows import ended, enqueued, facts, row, saved, snapshot, worker

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with large batches, as a prune does without rows of the site to delete."""
    monkeypatch.setattr(retention, "ROWS", 500)


def names() -> set[str]:
    return set(Task.objects.values_list("name", flat=True))


@pytest.fixture
def aged() -> None:
    """Create one task per status for each of three ages."""
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
def test_rule_prunes_and_keeps(rule: Rule, left: set[str]) -> None:
    expected = 15 - len(UNTOUCHED | left)
    assert retention.count(rule) == expected
    assert sum(retention.prune(rule)) == expected
    assert names() == UNTOUCHED | left
    assert retention.count(rule) == 0


def test_rule_comes_from_settings(settings: Any) -> None:
    settings.TASK_RETENTION_SECONDS = 100
    settings.TASK_FAILED_RETENTION_SECONDS = None
    assert Rule.of_site() == Rule(100, None, TERMINAL)


def test_events_are_deleted_with_their_tasks() -> None:
    finished = [ended(status) for status in sorted(TERMINAL)]
    pending = enqueued()
    assert sum(retention.prune(Rule(0, 0))) == len(finished)
    assert list(Task.objects.all()) == [pending]
    assert list(TaskEvent.objects.all()) == list(pending.events.all())


def fix_batch_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Make each batch delete this number of rows, however long it takes."""
    monkeypatch.setattr(retention, "ROWS", rows)
    monkeypatch.setattr(retention, "ROWS_MIN", rows)
    monkeypatch.setattr(Prune, "_took", lambda self, seconds: None)


def add_history(task: Task, lines: int) -> list[TaskEvent]:
    """Give a finished task a history with this number of log lines."""
    end = {
        Status.COMPLETED: EventType.COMPLETED,
        Status.FAILED: EventType.FAILED,
        Status.CANCELLED: EventType.CANCELLED,
    }[Status(task.status)]
    kinds = [EventType.QUEUED, EventType.STARTED, *[EventType.LOG] * lines, end]
    return TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=kind, timestamp=task.created_at) for kind in kinds
    )


def test_prune_works_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_batch_rows(monkeypatch, 12)
    for _ in range(7):
        saved(Status.COMPLETED, age=DAY)
    batches = retention.prune(Rule(0, 0))
    assert next(batches) == 3
    assert Task.objects.count() == 4
    assert list(batches) == [3, 1]
    assert Task.objects.count() == 0
    assert (batches.removed, batches.kept) == (7, 0)


def test_no_empty_batch_after_a_full_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_batch_rows(monkeypatch, 8)
    for _ in range(4):
        saved(Status.COMPLETED, age=DAY)
    assert list(retention.prune(Rule(0, 0))) == [2, 2]


@pytest.mark.django_db(transaction=True)
def test_each_batch_is_its_own_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune that is interrupted keeps what it did, and holds no lock between batches."""
    fix_batch_rows(monkeypatch, 4)
    for _ in range(2):
        saved(Status.COMPLETED, age=DAY)
    next(retention.prune(Rule(0, 0)))
    assert not connection.in_atomic_block
    assert Task.objects.count() == 1


def test_task_that_ends_during_a_prune_is_kept() -> None:
    """So a prune ends, however fast tasks finish."""
    saved(Status.COMPLETED, age=DAY)
    batches = retention.prune(Rule(0, 0))
    assert next(batches) == 1
    late = saved(Status.COMPLETED)
    assert list(batches) == []
    assert list(Task.objects.all()) == [late]


# Long histories.


def test_batch_is_limited_by_events_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_batch_rows(monkeypatch, 20)
    for _ in range(6):
        add_history(saved(Status.COMPLETED, age=DAY), lines=5)
    batches = []
    before = TaskEvent.objects.count()
    for removed in retention.prune(Rule(0, 0)):
        after = TaskEvent.objects.count()
        batches.append((removed, before - after))
        before = after
    assert sum(removed for removed, _ in batches) == 6
    assert max(events for _, events in batches) <= 20
    assert before == 0


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("lines", [7, 8, 9, 36])
def test_long_history_is_deleted_oldest_first_and_its_end_with_the_task(
    monkeypatch: pytest.MonkeyPatch, status: Status, lines: int
) -> None:
    """Between two batches a reader finds the newest events, and always the terminal one."""
    fix_batch_rows(monkeypatch, 10)
    task = saved(status, age=DAY)
    ids = [event.pk for event in add_history(task, lines)]
    batches = retention.prune(Rule(0, 0))
    while next(batches) == 0:
        left = list(task.events.order_by("id").values_list("pk", flat=True))
        assert left == ids[-len(left) :]
        assert 0 < len(ids) - len(left) <= 10
        ids = left
    assert not Task.objects.exists()
    assert not TaskEvent.objects.exists()
    assert next(batches, None) is None


def test_next_prune_continues_an_interrupted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_batch_rows(monkeypatch, 10)
    task, pending = saved(Status.FAILED, age=DAY), saved()
    add_history(task, 50)
    assert next(retention.prune(Rule(0, 0))) == 0
    assert 3 < task.events.count() < 53
    assert sum(retention.prune(Rule(0, 0))) == 1
    assert list(Task.objects.all()) == [pending]


# Batch size.


def test_short_history_is_deleted_in_one_batch_with_its_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "ROWS", ROWS_OF_A_TASK)
    tasks = [saved(Status.COMPLETED, age=DAY) for _ in range(3)]
    for task in tasks:
        add_history(task, 50)
    batches = retention.prune(Rule(0, 0))
    assert next(batches) == 1
    left = [task.events.count() for task in Task.objects.all()]
    assert left == [53, 53]
    assert sum(batches) == 2


def test_batch_size_halves_when_slow_and_doubles_when_fast() -> None:
    prune = Prune(Rule(0, 0))
    for _ in range(20):
        prune._took(0.0)
    assert prune.rows == ROWS_MAX
    sizes = []
    for seconds in [AIM_SECONDS * 1.1, AIM_SECONDS, AIM_SECONDS * 0.6, AIM_SECONDS * 0.4]:
        prune._took(seconds)
        sizes.append(prune.rows)
    assert sizes == [ROWS_MAX // 2, ROWS_MAX // 2, ROWS_MAX // 2, ROWS_MAX]
    assert prune.pause == AIM_SECONDS * 0.4
    for _ in range(20):
        prune._took(AIM_SECONDS * 1.1)
    assert prune.rows == ROWS_MIN


def test_very_slow_batch_reduces_the_size_to_the_minimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only other rows of the site make it that slow.

    All other writers, and the renewal of leases, wait for it.
    """
    monkeypatch.setattr(retention, "ROWS", ROWS_OF_A_TASK)
    prune = Prune(Rule(0, 0))
    prune._took(60.0)
    assert prune.rows == ROWS_OF_A_TASK
    prune._took(AIM_SECONDS * 1.1)
    assert prune.rows == ROWS_OF_A_TASK
    for _ in range(20):
        prune._took(0.0)
    for _ in range(4):
        prune._took(1.0)
    assert prune.rows == ROWS_OF_A_TASK


@pytest.mark.slow
def test_many_rows_are_deleted_with_small_statements_and_little_memory() -> None:
    """20,000 rows. A quarter of them belongs to one task."""
    tasks = [row(Status.COMPLETED, age=DAY) for _ in range(3_750)]
    Task.objects.bulk_create(tasks)
    TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=kind, timestamp=task.created_at)
        for task in tasks
        for kind in (EventType.QUEUED, EventType.STARTED, EventType.COMPLETED)
    )
    TaskEvent.objects.bulk_create(
        TaskEvent(task=tasks[1_000], event_type=EventType.LOG, timestamp=timezone.now())
        for _ in range(5_000)
    )
    del tasks
    statements = 0

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        statements += 1
        # A statement lists task ids, and only ids are read, page by page.
        assert len(params or ()) <= ROWS_MAX // 4 + 20
        assert sql.startswith(("SELECT COUNT", "DELETE", "UPDATE", "SAVEPOINT", "RELEASE")) or (
            "LIMIT" in sql or "IN (" in sql or "statement_timestamp" in sql
        ), sql
        return execute(sql, params, many, context)

    tracemalloc.start()
    try:
        with connection.execute_wrapper(watch):
            removed = list(retention.prune(Rule(0, 0)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(removed) == 3_750
    assert max(removed) <= ROWS_MAX // 4
    assert statements <= 12 * len(removed) + 20
    assert peak < 8_000_000
    assert not TaskEvent.objects.exists()


# Protected tasks.


@contextmanager
def site_table(on_delete: Any, **options: Any) -> Iterator[Any]:
    class Receipt(models.Model):
        task = models.ForeignKey(Task, on_delete, related_name="+", **options)

        class Meta:
            # The app must be installed: Django's deletion ignores models of others.
            app_label = "airports"

        def __str__(self) -> str:
            return f"receipt {self.pk}"

    with connection.schema_editor() as editor:
        editor.create_model(Receipt)
    try:
        yield Receipt
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Receipt)
        del apps.all_models["airports"]["receipt"]
        apps.clear_cache()


@pytest.mark.parametrize(
    ("on_delete", "refusal"),
    [
        (models.PROTECT, "through protected foreign keys: 'Receipt.task'"),
        (models.RESTRICT, "through restricted foreign keys: 'Receipt.task'"),
        # Only the database itself refuses, at the end of the transaction.
        (models.DO_NOTHING, "(?i)foreign key constraint"),
    ],
)
def test_protected_tasks_are_kept_and_the_rest_pruned(
    transactional_db: None, on_delete: Any, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    with site_table(on_delete) as model:
        check_protected_tasks(model, refusal, caplog)


def check_protected_tasks(model: Any, refusal: str, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [saved(Status.COMPLETED, age=DAY + timedelta(seconds=n)) for n in range(20)]
    protected = [tasks[number] for number in (0, 7, 8, 19)]
    for task in protected:
        add_history(task, lines=2)
        model.objects.create(task=task)
    prune = retention.prune(Rule(0, 0))
    assert sum(prune) == 16
    assert (prune.removed, prune.kept) == (16, 4)
    assert set(Task.objects.all()) == set(protected)
    assert all(task.events.count() == 5 for task in protected)
    messages = [
        record.getMessage() for record in caplog.records if record.name == "tasks_app.cleanup"
    ]
    assert len(messages) == 4
    for task in protected:
        start = f"Task {task.pk} is past its retention and cannot be removed: "
        [line] = [line for line in messages if line.startswith(start)]
        assert re.search(refusal, line)


def test_many_protected_tasks_with_the_same_end_time(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not retried for ever, do not block others, and do not flood the log."""
    fix_batch_rows(monkeypatch, 12)
    moment = timezone.now() - DAY
    with site_table(models.PROTECT) as model:
        for number in range(40):
            task = saved(Status.CANCELLED, finished_at=moment)
            if number % 4:
                model.objects.create(task=task)
        later = saved(Status.CANCELLED, finished_at=moment + timedelta(seconds=1))
        prune = retention.prune(Rule(0, 0))
        assert sum(prune) == 11
        assert prune.kept == 30
        assert not Task.objects.filter(pk=later.pk).exists()
        assert [record.levelname for record in caplog.records].count("WARNING") == WARNINGS


@pytest.mark.parametrize(("on_delete", "left"), [(models.CASCADE, 0), (models.SET_NULL, 3)])
def test_other_rows_of_the_site_follow_on_delete(
    transactional_db: None, on_delete: Any, left: int
) -> None:
    with site_table(on_delete, null=True) as model:
        for _ in range(3):
            model.objects.create(task=saved(Status.COMPLETED, age=DAY))
        assert sum(retention.prune(Rule(0, 0))) == 3
        assert model.objects.filter(task=None).count() == model.objects.count() == left


def test_retry_outlives_its_original() -> None:
    old = [saved(Status.FAILED, age=DAY) for _ in range(30)]
    again = [saved(Status.COMPLETED, retried_from=task) for task in old]
    with CaptureQueriesContext(connection) as executed:
        assert sum(retention.prune(Rule(3600, 3600))) == 30
    assert set(Task.objects.all()) == set(again)
    assert not Task.objects.filter(retried_from__isnull=False).exists()
    assert len([query for query in executed if query["sql"].startswith("UPDATE")]) == 1


# Trouble with the database.


def test_batch_is_repeated_after_a_database_error() -> None:
    tasks = [saved(Status.COMPLETED, age=DAY) for _ in range(3)]
    prune = retention.prune(Rule(0, 0))
    for table in ("FROM", "DELETE"):

        def fail(execute: Any, sql: str, *rest: Any, at: str = table) -> Any:
            if at in sql and "SAVEPOINT" not in sql:
                raise OperationalError("database is locked")
            return execute(sql, *rest)

        with connection.execute_wrapper(fail), pytest.raises(OperationalError):
            next(prune)
        assert set(Task.objects.all()) == set(tasks)
    assert list(prune) == [3]


# Workers' rows.


@pytest.mark.parametrize("stopped", [True, False])
def test_worker_rows_are_kept_for_a_day(stopped: bool) -> None:
    def worker_of_age(name: str, age: timedelta) -> Worker:
        seen_at = timezone.now() - age
        return worker(hostname=name, heartbeat_at=seen_at, stopped_at=seen_at if stopped else None)

    _old, recent = worker_of_age("old", DAY * 1.01), worker_of_age("recent", DAY * 0.99)
    assert retention.prune_workers() == 1
    assert list(Worker.objects.all()) == [recent]
    assert retention.prune_workers() == 0


@pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED])
def test_worker_row_is_kept_while_a_task_refers_to_it(status: Status) -> None:
    """The task's page shows who ran it, and a rescue names the lost worker."""
    old = worker(heartbeat_at=timezone.now() - DAY * 9)
    saved(status, worker=old)
    assert retention.prune_workers() == 0
    assert list(Worker.objects.all()) == [old]


# A single task.


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_finished_task_is_removed_with_its_history(status: Status) -> None:
    task, other = ended(status), ended(status)
    retention.remove(task.pk)
    assert list(Task.objects.all()) == [other]
    assert facts(other)
    assert not TaskEvent.objects.exclude(task=other).exists()


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_unfinished_task_is_not_removed(status: Status) -> None:
    task = saved(status)
    TaskEvent.objects.create(task=task, event_type=EventType.QUEUED, timestamp=timezone.now())
    before = snapshot()
    with pytest.raises(IllegalTransition) as caught:
        retention.remove(task.pk)
    assert (caught.value.task_id, caught.value.status) == (task.pk, status)
    assert snapshot() == before


def test_missing_task_is_not_removed() -> None:
    with pytest.raises(TaskNotFound):
        retention.remove(uuid.uuid4())


KEEPING = [models.PROTECT, models.RESTRICT, models.DO_NOTHING]


@pytest.mark.parametrize("on_delete", KEEPING)
@pytest.mark.parametrize("within", [False, True], ids=["by itself", "in a transaction"])
def test_protected_task_is_not_removed(
    transactional_db: None, on_delete: Any, within: bool
) -> None:
    """The error comes immediately, not at the commit.

    So a bulk removal continues with the other tasks.
    """
    with site_table(on_delete) as model:
        tasks = [saved(Status.COMPLETED) for _ in range(2)]
        add_history(tasks[0], lines=2)
        model.objects.create(task=tasks[0])
        before = snapshot()
        with transaction.atomic() if within else nullcontext():
            with pytest.raises(TaskProtected, match=r"refer to it\. Remove those first\."):
                retention.remove(tasks[0].pk)
            assert snapshot() == before
            retention.remove(tasks[1].pk)
        assert [task.pk for task in Task.objects.all()] == [tasks[0].pk]


def test_task_protected_only_by_the_database_is_not_removed(transactional_db: None) -> None:
    """For example by a foreign key that a hand-written migration created."""
    with site_table(models.DO_NOTHING) as model:
        task = saved(Status.COMPLETED)
        model.objects.create(task=task)
        del apps.all_models["airports"]["receipt"]
        apps.clear_cache()
        try:
            with pytest.raises(TaskProtected):
                retention.remove(task.pk)
        finally:
            apps.all_models["airports"]["receipt"] = model
            apps.clear_cache()
        assert Task.objects.get() == task
