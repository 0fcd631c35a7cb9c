"""Actions on many tasks, in batches."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tasks_app.exceptions import IllegalTransition, TaskNotFound, TaskProtected
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import bulk
from tasks_app.store.bulk import Done
from tests import rows
from tests.store.test_retention import KEEPING, site_table

pytestmark = pytest.mark.django_db


def cancel(task_ids: list[uuid.UUID], done: list[list[Any]], **options: Any) -> bulk.Summary:
    return bulk.each(task_ids, task_service.cancel_task, done.append, **options)


def test_each_task_is_tried_and_refusals_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH", 2)
    tasks = [rows.saved(), rows.saved(Status.FAILED), rows.saved()]
    batches: list[list[Done[Any]]] = []
    summary = cancel([task.pk for task in tasks] + [uuid.uuid4()], batches)
    assert (summary.done, summary.left) == (2, 0)
    assert summary.refused == {(IllegalTransition, Status.FAILED): 1, (TaskNotFound, None): 1}
    assert [[one.task.pk for one in batch] for batch in batches] == [[tasks[0].pk], [tasks[2].pk]]
    assert batches[0][0].outcome.status == Status.CANCELLED


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("on_delete", KEEPING)
def test_protected_tasks_are_counted_and_the_rest_removed(on_delete: Any) -> None:
    tasks = [rows.saved(Status.COMPLETED) for _ in range(3)]
    with site_table(on_delete) as model:
        model.objects.create(task=tasks[1])
        summary = bulk.each(
            [task.pk for task in tasks], task_service.remove_completed_task, lambda _: None
        )
        assert (summary.done, summary.refused) == (2, {(TaskProtected, None): 1})
        assert Task.objects.get() == tasks[1]


def test_callback_commits_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH", 1)
    tasks = [rows.saved(), rows.saved()]

    def log_batch(done: list[Done[Any]]) -> None:
        if done[0].task.pk == tasks[1].pk:
            raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError):
        bulk.each([task.pk for task in tasks], task_service.cancel_task, log_batch)
    assert [rows.fresh(task).status for task in tasks] == [Status.CANCELLED, Status.PENDING]


def test_stops_when_time_is_up() -> None:
    tasks = [rows.saved() for _ in range(3)]
    summary = cancel([task.pk for task in tasks], [], seconds=0)
    assert (summary.done, summary.left) == (0, 3)
    assert rows.fresh(tasks[0]).status == Status.PENDING
