"""Each verb of the lifecycle writes the row and its event together, only for the claim's holder."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from pydantic_core import to_jsonable_python

from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IllegalTransition,
    TaskNotFound,
    UnknownTask,
)
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import LEGAL, TERMINAL, UNFINISHED, EventType, Status, Verb
from tasks_app.store import lifecycle
from tasks_app.store.claims import Claim, Failure, claim_of
from tasks_app.store.clock import database_now
from tasks_app.tasks.backoff import backoff
from tasks_app.tasks.progress import LogLine
from tests.rows import (
    BROKEN,
    claimed,
    ended,
    enqueued,
    facts,
    fresh,
    lapse,
    last_fact,
    row,
    saved,
    snapshot,
    worker,
)

pytestmark = pytest.mark.django_db

#: Every verb that a worker calls, applied to one claim.
FENCED: dict[Verb, Callable[[Claim], list[Claim]]] = {
    Verb.RENEW: lambda claim: lifecycle.renew([claim]),
    Verb.REPORT: lambda claim: lifecycle.report({claim: TaskProgressUpdate(text="x", value=0.5)}),
    Verb.LOG: lambda claim: lifecycle.log({claim: [LogLine("info", "x")]}),
    Verb.COMPLETE: lambda claim: lifecycle.complete({claim: 1}),
    Verb.FAIL: lambda claim: lifecycle.fail({claim: BROKEN}),
    Verb.CANCEL: lambda claim: lifecycle.cancel({claim: False}),
    Verb.RETRY: lambda claim: lifecycle.retry({claim: BROKEN}),
    Verb.RELEASE: lambda claim: lifecycle.release([claim]),
}


@contextmanager
def unchanged() -> Iterator[None]:
    before = snapshot()
    yield
    assert snapshot() == before


def test_all_fenced_verbs_are_tested_here() -> None:
    assert set(FENCED) == {verb for verb, move in LEGAL.items() if move.fenced}


# Fencing.


@pytest.mark.parametrize("verb", FENCED)
def test_stale_token_writes_nothing(verb: Verb) -> None:
    task, _ = claimed(max_attempts=2)
    stale = Claim(task.pk, uuid.uuid4())
    with unchanged():
        assert FENCED[verb](stale) == [stale]


@pytest.mark.parametrize("verb", FENCED)
def test_claim_is_stale_after_release(verb: Verb) -> None:
    _, claim = claimed(max_attempts=2)
    assert lifecycle.release([claim]) == []
    with unchanged():
        assert FENCED[verb](claim) == [claim]


@pytest.mark.parametrize("verb", FENCED)
def test_claim_is_stale_if_another_claim_has_the_same_attempt(verb: Verb) -> None:
    first = worker()
    task, claim = claimed(first, max_attempts=2)
    lifecycle.release([claim])
    [again] = lifecycle.claim(first, 1)
    assert (again.pk, again.attempt) == (task.pk, task.attempt)
    with unchanged():
        assert FENCED[verb](claim) == [claim]


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("verb", FENCED)
def test_worker_cannot_change_a_finished_task(verb: Verb, status: Status) -> None:
    _, claim = claimed()
    finish = {
        Status.COMPLETED: Verb.COMPLETE,
        Status.FAILED: Verb.FAIL,
        Status.CANCELLED: Verb.CANCEL,
    }
    assert FENCED[finish[status]](claim) == []
    with unchanged():
        assert FENCED[verb](claim) == [claim]


@pytest.mark.parametrize("verb", FENCED)
def test_claim_of_a_missing_task_is_stale(verb: Verb) -> None:
    claim = Claim(uuid.uuid4(), uuid.uuid4())
    with unchanged():
        assert FENCED[verb](claim) == [claim]


@pytest.mark.parametrize("verb", FENCED)
def test_stale_claims_do_not_affect_valid_ones(verb: Verb) -> None:
    by = worker()
    _, good = claimed(by, max_attempts=2)
    other, _ = claimed(by, max_attempts=2)
    stale = Claim(other.pk, good.token)
    before = Task.objects.filter(pk=other.pk).values().get()
    match verb:
        case Verb.RENEW | Verb.RELEASE:
            refused = getattr(lifecycle, verb)([stale, good])
        case Verb.CANCEL:
            refused = lifecycle.cancel({stale: False, good: False})
        case Verb.REPORT:
            update = TaskProgressUpdate(text="x", value=0.5)
            refused = lifecycle.report({stale: update, good: update})
        case Verb.LOG:
            refused = lifecycle.log({stale: [LogLine("info", "x")], good: [LogLine("info", "x")]})
        case Verb.COMPLETE:
            refused = lifecycle.complete({stale: 1, good: 1})
        case _:
            refused = getattr(lifecycle, verb)({stale: BROKEN, good: BROKEN})
    assert refused == [stale]
    assert FENCED[verb](good) == ([] if LEGAL[verb].target == Status.RUNNING else [good])
    assert Task.objects.filter(pk=other.pk).values().get() == before
    assert facts(other) == ["task_queued", "task_started"]


@pytest.mark.parametrize("verb", FENCED)
def test_empty_batch_writes_nothing(verb: Verb) -> None:
    empty: object = [] if verb in (Verb.RENEW, Verb.RELEASE) else {}
    claimed()
    with unchanged():
        assert getattr(lifecycle, verb)(empty) == []


# Enqueue.


def waits_until(event: TaskEvent) -> datetime:
    return datetime.fromisoformat(event.data["run_after"])


def test_enqueue_writes_row_and_event() -> None:
    before = timezone.now()
    task = enqueued(queue="mail", priority=3)
    stored = fresh(task)
    assert (stored.status, stored.queue, stored.priority) == (Status.PENDING, "mail", 3)
    assert (stored.attempt, stored.max_attempts, stored.progress) == (0, 1, None)
    assert stored.created_at == stored.run_after
    assert before - timedelta(seconds=1) < stored.created_at < timezone.now() + timedelta(seconds=1)
    [event] = stored.events.all()
    assert event.event_type == EventType.QUEUED
    assert event.timestamp == stored.created_at
    assert event.data == {"run_after": to_jsonable_python(stored.run_after)}


def test_enqueue_keeps_run_after() -> None:
    later = timezone.now() + timedelta(hours=1)
    task = enqueued(run_after=later)
    assert fresh(task).run_after == later
    assert last_fact(task).data == {"run_after": to_jsonable_python(later)}


def test_enqueue_keeps_order() -> None:
    tasks = [Task(name=f"tests.tasks.{letter}", run_after=None) for letter in "zyxabc"]
    lifecycle.enqueue(tasks)
    taken = lifecycle.claim(worker(), 10, now=timezone.now() + timedelta(seconds=1))
    assert [task.name[-1] for task in taken] == list("zyxabc")
    # The order is not by chance: all have different times.
    assert sorted({task.run_after for task in taken}) == [task.run_after for task in taken]
    queued = TaskEvent.objects.filter(event_type=EventType.QUEUED).order_by("id")
    assert [event.task.name[-1] for event in queued] == list("zyxabc")


@pytest.mark.django_db(transaction=True)
def test_enqueue_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        enqueued()
        assert Task.objects.count() == TaskEvent.objects.count() == 1
        transaction.set_rollback(True)
    assert Task.objects.count() == TaskEvent.objects.count() == 0
    with transaction.atomic():
        task = enqueued()
    assert facts(task) == ["task_queued"]


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_unfinished_task_holds_its_unique_key(status: Status) -> None:
    holder = saved(status, unique_key="import")
    with unchanged(), pytest.raises(DuplicateTask) as caught:
        enqueued(unique_key="import")
    assert (caught.value.unique_key, caught.value.task_id) == ("import", holder.pk)
    assert str(caught.value) == (
        "Another task with the unique key 'import' has not finished. "
        "Wait for it, cancel it, or use another key."
    )


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_finished_task_frees_its_unique_key(status: Status) -> None:
    saved(status, unique_key="import")
    enqueued(unique_key="import")
    assert Task.objects.filter(unique_key="import").count() == 2


def test_duplicate_refuses_the_whole_batch() -> None:
    holder = enqueued(unique_key="two")
    batch = [
        Task(name="tests.tasks.Noop", unique_key=key, run_after=None) for key in ("one", "two")
    ]
    with unchanged(), pytest.raises(DuplicateTask) as caught:
        lifecycle.enqueue(batch)
    assert (caught.value.unique_key, caught.value.task_id) == ("two", holder.pk)


def test_same_key_twice_in_a_batch_is_a_duplicate() -> None:
    batch = [Task(name="tests.tasks.Noop", unique_key="one", run_after=None) for _ in range(2)]
    with unchanged(), pytest.raises(DuplicateTask) as caught:
        lifecycle.enqueue(batch)
    assert (caught.value.unique_key, caught.value.task_id) == ("one", None)
    assert str(caught.value).startswith("Another task with the unique key 'one'")


@pytest.mark.django_db(transaction=True)
def test_transaction_continues_after_a_duplicate() -> None:
    holder = enqueued(unique_key="import")
    with transaction.atomic():
        first = enqueued()
        with pytest.raises(DuplicateTask):
            enqueued(unique_key="import")
        second = enqueued()
    assert set(Task.objects.values_list("pk", flat=True)) == {holder.pk, first.pk, second.pk}


def test_other_integrity_errors_are_not_duplicates() -> None:
    enqueued(unique_key="import")
    with unchanged(), pytest.raises(IntegrityError, match="tasks_timeout_positive"):
        enqueued(timeout_seconds=-1)


# Claim.


def test_claim_writes_row_and_event(settings: Any) -> None:
    settings.TASK_LEASE_SECONDS = 12
    by = worker(hostname="ada", pid=7)
    task = enqueued(max_attempts=2)
    now = database_now("default")
    [taken] = lifecycle.claim(by, 1, now=now)
    stored = fresh(task)
    assert (stored.status, stored.attempt, stored.worker_id) == (Status.RUNNING, 1, by.pk)
    assert stored.lease_expires_at == now + timedelta(seconds=12)
    assert stored.started_at == now
    assert stored.fencing_token is not None
    assert claim_of(taken) == (task.pk, stored.fencing_token)
    for field in Task._meta.concrete_fields:
        assert getattr(taken, field.attname) == getattr(stored, field.attname), field.attname
    assert facts(task) == ["task_queued", "task_started"]
    assert last_fact(task).data == {"attempt": 1, "max_attempts": 2, "worker": "ada:7"}


def test_claim_order_is_priority_then_run_after() -> None:
    now = timezone.now()
    for name, priority, minutes in (
        ("d", 0, 1),
        ("c", 0, 5),
        ("b", 9, 1),
        ("a", 9, 2),
        ("e", -9, 9),
    ):
        row(name=name, priority=priority, run_after=now - timedelta(minutes=minutes)).save()
    by = worker()
    assert [task.name for task in lifecycle.claim(by, 2)] == ["a", "b"]
    assert [task.name for task in lifecycle.claim(by, 9)] == ["c", "d", "e"]
    assert lifecycle.claim(by, 9) == []


def test_task_that_is_not_due_is_not_claimed() -> None:
    now = timezone.now()
    task = saved(run_after=now)
    by = worker()
    assert lifecycle.claim(by, 1, now=now - timedelta(microseconds=1)) == []
    assert [taken.pk for taken in lifecycle.claim(by, 1, now=now)] == [task.pk]


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.PENDING}))
def test_only_pending_tasks_are_claimed(status: Status) -> None:
    saved(status)
    by = worker()
    with unchanged():
        assert lifecycle.claim(by, 1, now=timezone.now() + timedelta(days=9)) == []


def test_worker_claims_from_its_queues() -> None:
    for queue in ("mail", "reports", "default"):
        saved(queue=queue, name=queue)
    taken = lifecycle.claim(worker(queues=["reports", "mail"]), 9)
    assert {task.name for task in taken} == {"mail", "reports"}
    assert [task.name for task in lifecycle.claim(worker(), 9)] == ["default"]


def test_no_two_claims_share_a_task() -> None:
    saved_tasks = {saved().pk for _ in range(5)}
    batches = [lifecycle.claim(worker(), 2) for _ in range(4)]
    assert [len(batch) for batch in batches] == [2, 2, 1, 0]
    assert {task.pk for batch in batches for task in batch} == saved_tasks


def test_each_claim_has_a_new_token() -> None:
    by = worker()
    _, first = claimed(by)
    lifecycle.release([first])
    [again] = lifecycle.claim(by, 1)
    assert again.fencing_token != first.token


def test_claim_resets_progress() -> None:
    saved(progress=0.5, progress_text="half")
    [taken] = lifecycle.claim(worker(), 1)
    assert (fresh(taken).progress, fresh(taken).progress_text) == (None, "")


# Verbs that keep the claim.


def test_renew_extends_the_lease_without_an_event(settings: Any) -> None:
    settings.TASK_LEASE_SECONDS = 20
    task, claim = claimed()
    later = timezone.now() + timedelta(minutes=5)
    assert lifecycle.renew([claim], now=later) == []
    assert fresh(task).lease_expires_at == later + timedelta(seconds=20)
    assert facts(task) == ["task_queued", "task_started"]


def test_report_overwrites_progress_without_an_event() -> None:
    task, claim = claimed()
    for text, value in (("one", 0.25), ("two", None), ("three", 0.75)):
        assert lifecycle.report({claim: TaskProgressUpdate(text=text, value=value)}) == []
        stored = fresh(task)
        assert (stored.progress_text, stored.progress) == (text, value)
    assert facts(task) == ["task_queued", "task_started"]


def test_log_writes_each_line_in_order() -> None:
    task, claim = claimed()
    lines = [LogLine("info", "one"), LogLine("error", "two"), LogLine("debug", "three")]
    assert lifecycle.log({claim: lines}) == []
    logged = task.events.filter(event_type=EventType.LOG).order_by("id")
    assert [event.data for event in logged] == [
        {"level": "info", "message": "one"},
        {"level": "error", "message": "two"},
        {"level": "debug", "message": "three"},
    ]


# Verbs that end the claim.


def unclaimed(task: Task) -> bool:
    return task.fencing_token is None and task.lease_expires_at is None


def test_complete_stores_the_result() -> None:
    task, claim = claimed()
    lifecycle.report({claim: TaskProgressUpdate(text="nearly", value=0.9)})
    now = timezone.now()
    assert lifecycle.complete({claim: {"rows": [1, None]}}, now=now) == []
    stored = fresh(task)
    assert (stored.status, stored.result, stored.finished_at) == (
        Status.COMPLETED,
        {"rows": [1, None]},
        now,
    )
    assert (stored.progress, stored.progress_text) == (1.0, "nearly")
    assert unclaimed(stored)
    assert last_fact(task).event_type == EventType.COMPLETED
    assert last_fact(task).data == {
        "result": {"rows": [1, None]},
        "progress": {"text": "nearly", "value": 1.0},
    }
    assert last_fact(task).timestamp == now


def test_results_of_a_batch_are_not_mixed_up() -> None:
    by = worker()
    results = [None, 1, True, "1", [1], {"a": 1}, 1.0, None, {"a": 1}]
    pairs = [(claimed(by)[1], result) for result in results]
    assert lifecycle.complete(dict(pairs)) == []
    for claim, result in pairs:
        stored = Task.objects.get(pk=claim.task_id)
        assert (repr(stored.result), stored.status) == (repr(result), Status.COMPLETED)
        assert repr(last_fact(stored).data["result"]) == repr(result)


def test_fail_stores_the_error_and_keeps_the_traceback_out_of_the_event() -> None:
    task, claim = claimed()
    assert lifecycle.fail({claim: Failure("KeyError", "'x'", "Traceback: secret")}) == []
    stored = fresh(task)
    assert stored.status == Status.FAILED
    assert (stored.error_type, stored.error_message) == ("KeyError", "'x'")
    assert stored.error_traceback == "Traceback: secret"
    assert stored.finished_at is not None
    assert unclaimed(stored)
    assert last_fact(task).event_type == EventType.FAILED
    assert last_fact(task).data == {
        "error": {"type": "KeyError", "message": "'x'"},
        "progress": {"text": "", "value": None},
    }


def test_cancel_ends_the_task() -> None:
    task, claim = claimed()
    lifecycle.report({claim: TaskProgressUpdate(text="half", value=0.5)})
    assert lifecycle.cancel({claim: False}) == []
    stored = fresh(task)
    assert (stored.status, stored.progress, stored.progress_text) == (Status.CANCELLED, 0.5, "half")
    assert stored.finished_at is not None
    assert unclaimed(stored)
    assert facts(task) == ["task_queued", "task_started", "task_cancelled"]
    assert last_fact(task).data == {"progress": {"text": "half", "value": 0.5}}


def test_retry_makes_the_task_pending_with_a_delay(settings: Any) -> None:
    settings.TASK_RETRY_BACKOFF_SECONDS = 10
    task, claim = claimed(max_attempts=2)
    now = timezone.now()
    assert lifecycle.retry({claim: BROKEN}, now=now) == []
    stored = fresh(task)
    assert (stored.status, stored.attempt, stored.finished_at) == (Status.PENDING, 1, None)
    assert stored.error_type == ""
    assert unclaimed(stored)
    assert now + timedelta(seconds=5) <= stored.run_after <= now + timedelta(seconds=10)
    assert last_fact(task).event_type == EventType.RETRY_SCHEDULED
    assert last_fact(task).data == {
        "attempt": 1,
        "run_after": to_jsonable_python(stored.run_after),
        "error": {"type": "ValueError", "message": "it broke"},
    }
    assert lifecycle.claim(worker(), 1, now=now) == []
    [again] = lifecycle.claim(worker(), 1, now=stored.run_after)
    assert again.attempt == 2


def test_release_does_not_count_the_attempt() -> None:
    task, claim = claimed()
    run_after = task.run_after
    assert lifecycle.release([claim]) == []
    stored = fresh(task)
    assert (stored.status, stored.attempt, stored.started_at) == (Status.PENDING, 0, None)
    assert stored.run_after == run_after
    assert unclaimed(stored)
    assert facts(task) == ["task_queued", "task_started", "task_queued"]
    assert last_fact(task).data == {"reason": "released"}
    [again] = lifecycle.claim(worker(), 1)
    assert again.attempt == 1


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.RELEASE])
def test_task_with_a_cancel_request_ends_instead_of_waiting(verb: Verb) -> None:
    by = worker()
    unwanted, claim = claimed(by, max_attempts=3)
    wanted, other = claimed(by, max_attempts=3)
    lifecycle.request_cancel(unwanted.pk)
    values: object = [claim, other] if verb is Verb.RELEASE else {claim: BROKEN, other: BROKEN}
    assert getattr(lifecycle, verb)(values) == []
    assert fresh(unwanted).status == Status.CANCELLED
    assert fresh(unwanted).finished_at is not None
    assert facts(unwanted)[2:] == ["task_cancel_requested", "task_cancelled"]
    assert fresh(wanted).status == Status.PENDING


# Backoff.


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 10), (2, 20), (3, 40), (4, 60), (5, 60), (1000, 60), (10**9, 60)]
)
def test_backoff_doubles_up_to_the_limit(attempt: int, longest: float, settings: Any) -> None:
    settings.TASK_RETRY_BACKOFF_SECONDS = 10
    settings.TASK_RETRY_BACKOFF_MAX_SECONDS = 60
    waits = [backoff(attempt).total_seconds() for _ in range(200)]
    assert longest / 2 <= min(waits) < longest * 0.6
    assert longest * 0.9 < max(waits) <= longest


# Rescue.


@pytest.fixture
def heartbeat(settings: Any) -> timedelta:
    settings.TASK_HEARTBEAT_SECONDS = 60
    return timedelta(seconds=60)


def test_rescue_waits_one_heartbeat_after_the_lease(heartbeat: timedelta) -> None:
    task, _ = claimed()
    for lapsed in (-heartbeat, heartbeat * 0, heartbeat * 0.9):
        lapse(task, lapsed)
        with unchanged():
            assert lifecycle.rescue() == []
    lapse(task, heartbeat * 1.1)
    assert [lost.pk for lost in lifecycle.rescue()] == [task.pk]


def test_rescue_fails_a_task_without_attempts_left(heartbeat: timedelta) -> None:
    by = worker(hostname="ada", pid=7)
    task, claim = claimed(by)
    lapse(task, heartbeat * 2)
    [lost] = lifecycle.rescue()
    assert (lost.status, lost.fencing_token) == (Status.RUNNING, claim.token)
    stored = fresh(task)
    by.refresh_from_db()
    last_seen = by.heartbeat_at.strftime("%Y-%m-%d %H:%M:%S")
    message = f"Worker ada:7 lost (last seen {last_seen} UTC)."
    assert (stored.status, stored.error_type) == (Status.FAILED, "WorkerLost")
    assert stored.error_message == message
    assert facts(task) == ["task_queued", "task_started", "task_failed"]
    assert last_fact(task).data["error"] == {"type": "WorkerLost", "message": message}


def test_rescue_retries_a_task_with_attempts_left(heartbeat: timedelta) -> None:
    task, _ = claimed(max_attempts=2)
    lapse(task, heartbeat * 2)
    lifecycle.rescue()
    stored = fresh(task)
    assert (stored.status, stored.attempt) == (Status.PENDING, 1)
    assert stored.run_after > timezone.now()
    assert facts(task) == ["task_queued", "task_started", "task_retry_scheduled"]
    assert last_fact(task).data["error"]["type"] == "WorkerLost"


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_rescue_cancels_a_task_with_a_cancel_request(
    max_attempts: int, heartbeat: timedelta
) -> None:
    task, _ = claimed(max_attempts=max_attempts)
    lifecycle.request_cancel(task.pk)
    lapse(task, heartbeat * 2)
    lifecycle.rescue()
    assert fresh(task).status == Status.CANCELLED
    assert facts(task)[2:] == ["task_cancel_requested", "task_cancelled"]


def test_rescue_ignores_valid_leases(heartbeat: timedelta) -> None:
    by = worker()
    lost, _ = claimed(by)
    alive, claim = claimed(by)
    lapse(lost, heartbeat * 2)
    lifecycle.rescue()
    assert fresh(alive).status == Status.RUNNING
    assert lifecycle.complete({claim: None}) == []


def test_claim_is_stale_after_rescue(heartbeat: timedelta) -> None:
    task, claim = claimed(max_attempts=2)
    lapse(task, heartbeat * 2)
    lifecycle.rescue()
    with unchanged():
        assert lifecycle.complete({claim: "late"}) == [claim]
        assert lifecycle.rescue() == []


def test_rescue_works_without_the_workers_row(heartbeat: timedelta) -> None:
    by = worker()
    task, _ = claimed(by)
    by.delete()
    lapse(task, heartbeat * 2)
    lifecycle.rescue()
    assert fresh(task).error_message == (
        "The worker that ran this task is gone, and so is its record."
    )


def test_rescue_takes_the_oldest_first_up_to_its_limit(heartbeat: timedelta) -> None:
    by = worker()
    tasks = [claimed(by)[0] for _ in range(3)]
    for task, times in zip(tasks, (3, 4, 2), strict=True):
        lapse(task, heartbeat * times)
    assert [lost.pk for lost in lifecycle.rescue(limit=2)] == [tasks[1].pk, tasks[0].pk]
    assert [lost.pk for lost in lifecycle.rescue(limit=2)] == [tasks[2].pk]


# Cancel requests.


def test_cancel_of_pending_task_ends_it() -> None:
    task = enqueued()
    returned = lifecycle.request_cancel(task.pk, "ada")
    stored = fresh(task)
    assert (returned.status, stored.status) == (Status.CANCELLED, Status.CANCELLED)
    assert stored.finished_at == stored.cancel_requested_at == returned.finished_at is not None
    assert facts(task) == ["task_queued", "task_cancelled"]
    assert last_fact(task).data == {"by": "ada"}
    assert lifecycle.claim(worker(), 1) == []


def test_running_task_records_one_cancel_request() -> None:
    task, claim = claimed()
    returned = lifecycle.request_cancel(task.pk, "ada")
    stored = fresh(task)
    assert stored.status == Status.RUNNING
    assert stored.cancel_requested_at == returned.cancel_requested_at is not None
    assert last_fact(task).data == {"by": "ada"}
    with unchanged():
        again = lifecycle.request_cancel(task.pk, "bob")
    assert again.cancel_requested_at == stored.cancel_requested_at
    assert facts(task) == ["task_queued", "task_started", "task_cancel_requested"]
    assert lifecycle.complete({claim: "done all the same"}) == []
    assert fresh(task).status == Status.COMPLETED


def test_cancel_request_needs_no_user() -> None:
    task = enqueued()
    lifecycle.request_cancel(task.pk)
    assert last_fact(task).data == {}


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_finished_task_cannot_be_cancelled(status: Status) -> None:
    task = ended(status)
    with unchanged(), pytest.raises(IllegalTransition) as caught:
        lifecycle.request_cancel(task.pk)
    assert (caught.value.task_id, caught.value.status) == (task.pk, status)
    assert str(caught.value) == f"Task {task.pk} is {status} and cannot be cancelled."


def test_missing_task_cannot_be_cancelled() -> None:
    missing = uuid.uuid4()
    with pytest.raises(TaskNotFound) as caught:
        lifecycle.request_cancel(missing)
    assert str(caught.value) == (
        f"There is no task {missing}. It may have been removed by clean-up."
    )


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_refused_cancel_keeps_the_callers_transaction(status: Status) -> None:
    task = ended(status)
    with transaction.atomic():
        with pytest.raises(IllegalTransition):
            lifecycle.request_cancel(task.pk)
        other = enqueued()
    assert facts(other) == ["task_queued"]


# Database constraints.


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_each_finished_task_has_one_terminal_event(status: Status) -> None:
    task = ended(status)
    terminal = [kind for kind in facts(task) if EventType(kind).is_terminal]
    assert terminal == [f"task_{status}"]
    assert facts(task)[-1] == terminal[0]


@pytest.mark.parametrize("second", sorted(event for event in EventType if event.is_terminal))
def test_database_refuses_a_second_terminal_event(second: EventType) -> None:
    task = ended(Status.COMPLETED)
    with pytest.raises(IntegrityError), transaction.atomic():
        TaskEvent.objects.create(task=task, event_type=second, timestamp=timezone.now())
    TaskEvent.objects.create(task=task, event_type=EventType.LOG, timestamp=timezone.now())


@pytest.mark.django_db(transaction=True)
def test_row_and_event_commit_together() -> None:
    """If the event is refused, the row does not change either."""
    task, claim = claimed()
    TaskEvent.objects.create(task=task, event_type=EventType.FAILED, timestamp=timezone.now())
    with unchanged(), pytest.raises(IntegrityError):
        lifecycle.complete({claim: 1})
    assert fresh(task).status == Status.RUNNING
    assert not connection.in_atomic_block


# Attempts, and retries as a new task.


def test_failure_sets_the_delay_of_the_next_attempt() -> None:
    task, claim = claimed(max_attempts=2)
    before = timezone.now()
    failure = replace(BROKEN, retry_after=timedelta(hours=3))
    assert lifecycle.retry({claim: failure}) == []
    waits = fresh(task).run_after - before
    assert timedelta(hours=3) <= waits < timedelta(hours=3, minutes=5)


def test_retry_without_attempts_left_fails_the_task() -> None:
    """Otherwise the next claim would fail, for all tasks that it claims."""
    task, claim = claimed(max_attempts=1)
    assert lifecycle.retry({claim: BROKEN}) == []
    assert (fresh(task).status, fresh(task).error_type) == (Status.FAILED, "ValueError")
    assert facts(task)[-1] == "task_failed"


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_retry_of_failed_or_cancelled_task_creates_a_new_one(status: Status, owner: User) -> None:
    old = ended(status, owner=owner, queue="mail", priority=3, params={"a": 1}, unique_key="k")
    before = snapshot()
    new = lifecycle.enqueue_again(old.pk, "ada")
    assert new.pk != old.pk
    assert (new.status, new.attempt, new.retried_from_id) == (Status.PENDING, 0, old.pk)
    for field in Task.GIVEN:
        assert getattr(fresh(new), field) == getattr(old, field), field
    assert last_fact(new).data["retried_from"] == str(old.pk)
    assert last_fact(new).data["by"] == "ada"
    Task.objects.filter(pk=new.pk).delete()
    assert snapshot() == before


def test_completed_or_unfinished_task_cannot_be_retried() -> None:
    for task in (ended(Status.COMPLETED), claimed()[0], enqueued()):
        before = snapshot()
        with pytest.raises(IllegalTransition, match="and cannot be retried"):
            lifecycle.enqueue_again(task.pk)
        assert snapshot() == before


def test_task_is_retried_only_once() -> None:
    old = ended(Status.FAILED)
    new = lifecycle.enqueue_again(old.pk)
    with pytest.raises(AlreadyRetried, match="was already retried") as caught:
        lifecycle.enqueue_again(old.pk)
    assert caught.value.retried_as == new.pk
    assert str(new.pk) not in str(caught.value)
    assert Task.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_retry_imports_the_class_outside_its_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import may be slow, and inside the transaction it would block all writers of SQLite."""
    code = """
        from django.db import connection
        from tests.tasks import Noop

        in_transaction = connection.in_atomic_block
    """
    (tmp_path / "imported_at_a_retry.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_at_a_retry", raising=False)
    with pytest.raises(IllegalTransition):  # It is not imported for a task that is not retried.
        lifecycle.enqueue_again(ended(Status.COMPLETED, name="gone.Gone").pk)
    with pytest.raises(UnknownTask):
        lifecycle.enqueue_again(ended(Status.FAILED, name="gone.Gone").pk)
    lifecycle.enqueue_again(ended(Status.FAILED, name="imported_at_a_retry.Noop").pk)
    assert sys.modules["imported_at_a_retry"].in_transaction is False


def test_missing_task_cannot_be_retried() -> None:
    with pytest.raises(TaskNotFound):
        lifecycle.enqueue_again(uuid.uuid4())


def test_retry_is_refused_if_another_task_holds_the_unique_key() -> None:
    old = ended(Status.FAILED, unique_key="k")
    enqueued(unique_key="k")
    with pytest.raises(DuplicateTask):
        lifecycle.enqueue_again(old.pk)
    assert Task.objects.count() == 2
