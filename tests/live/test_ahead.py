"""A stream's opening state may be ahead of the facts; its progress must not go back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, task_channel
from tasks_app.live.cursor import Cursor
from tasks_app.live.view import View
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import EventType
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, claim_of
from tests.live.watching import opening_of
from tests.rows import BROKEN, claimed, worker

pytestmark = pytest.mark.django_db(transaction=True)


def now() -> Cursor:
    return Cursor.now("default")


def reported(claim: Claim, value: float) -> None:
    assert not lifecycle.report({claim: TaskProgressUpdate(text="", value=value)})


def again(task: Task) -> Claim:
    Task.objects.update(run_after=task.created_at)
    [taken] = lifecycle.claim(worker(), 1)
    return claim_of(taken)


def admitted(view: View, task: Task, attempt: int, value: float) -> bool:
    return view.admit(wire.report(wire.Progress(task.pk, attempt, value, "")))


def facts_since(cursor: Cursor) -> Iterator[wire.Fact]:
    """Yield the facts that the relay sends next."""
    until = now()
    for row in cursor.rest(TaskEvent.objects.all(), until):
        yield wire.fact(row, cursor.at(row.pk, until))


@pytest.fixture(params=["task", "all"])
def channels(request: pytest.FixtureRequest) -> list[str]:
    # All tasks, or one task that only the test knows.
    return [ALL_TASKS] if request.param == "all" else []


def view_of(task: Task, channels: list[str], until: Cursor) -> View:
    view = View(channels or [task_channel(task.pk)])
    assert opening_of(view, None, until)
    return view


def test_progress_from_before_the_end_is_not_sent_after_it(channels: list[str]) -> None:
    task, claim = claimed()
    reported(claim, 0.5)
    until = now()
    lifecycle.fail({claim: BROKEN})
    view = View(channels or [task_channel(task.pk)])
    opening_of(view, None, until)
    if not channels:
        assert not admitted(view, task, 1, 0.4)
    ended = [view.admit(fact) for fact in facts_since(until)]
    assert ended == [True]


def test_progress_from_before_a_retry_is_not_sent_after_it(channels: list[str]) -> None:
    task, claim = claimed(max_attempts=2)
    reported(claim, 0.5)
    until = now()
    lifecycle.retry({claim: BROKEN})
    view = view_of(task, channels, until)
    assert not admitted(view, task, 1, 0.4)
    [retried] = facts_since(until)
    assert view.admit(retried)
    before = now()
    again(task)
    [started] = facts_since(before)
    assert view.admit(started)
    assert admitted(view, task, 2, 0.1)


def test_late_terminal_fact_does_not_let_progress_go_back(channels: list[str]) -> None:
    task, claim = claimed(max_attempts=2)
    until = now()
    lifecycle.retry({claim: BROKEN})
    second = again(task)
    reported(second, 0.8)
    view = view_of(task, channels, until)
    facts = list(facts_since(until))
    assert [fact.type for fact in facts] == [EventType.RETRY_SCHEDULED, EventType.STARTED]
    assert all(view.admit(fact) for fact in facts)
    assert not admitted(view, task, 2, 0.3)
    assert admitted(view, task, 2, 0.9)


def test_progress_of_a_released_claim_is_not_taken_for_the_next(
    channels: list[str],
) -> None:
    """Both claims have the same attempt number."""
    task, claim = claimed()
    until = now()
    lifecycle.release([claim])
    reported(again(task), 0.2)
    view = view_of(task, channels, until)
    assert not admitted(view, task, 1, 0.7)
    assert all(view.admit(fact) for fact in facts_since(until))
    assert admitted(view, task, 1, 0.3)


def test_release_lets_progress_start_again(channels: list[str]) -> None:
    task, claim = claimed()
    reported(claim, 0.7)
    until = now()
    view = view_of(task, channels, until)
    lifecycle.release([claim])
    reported(again(task), 0.1)
    assert all(view.admit(fact) for fact in facts_since(until))
    assert admitted(view, task, 1, 0.1)


def test_other_tasks_are_not_delayed() -> None:
    task, claim = claimed(max_attempts=2)
    until = now()
    lifecycle.retry({claim: BROKEN})
    view = View([ALL_TASKS])
    opening_of(view, None, until)
    other = Task(pk=uuid.uuid4())
    assert admitted(view, other, 1, 0.5)
    assert not admitted(view, task, 1, 0.5)
