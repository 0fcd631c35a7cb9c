"""Any verbs in any order, by workers that may hold stale claims: what must hold all the same."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tasks_app import lifecycle
from tasks_app.claims import Claim, claim_of
from tasks_app.exceptions import DuplicateTask, IllegalTransition
from tasks_app.models import Task, TaskEvent
from tasks_app.progress import LogLine
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import EventType, Status
from tests.rows import BROKEN, lapse, worker

#: Past any backoff and any lease of these tests.
AGES = timedelta(days=1)


class Lifecycle(RuleBasedStateMachine):
    tasks = Bundle("tasks")
    #: Claims, good and stale: nobody gives one back when it is void.
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.example = transaction.atomic()
        self.example.__enter__()
        #: Terminal rows, as they were when first seen.
        self.over: dict[UUID, dict[str, Any]] = {}
        #: The events of each task at the last look: history is only added to.
        self.history: dict[UUID, list[int]] = {}

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.example.__exit__(None, None, None)

    @initialize()
    def workers(self) -> None:
        self.by = [worker(pid=number) for number in (1, 2)]

    @rule(
        target=tasks,
        max_attempts=st.integers(1, 3),
        key=st.sampled_from([None, None, "a", "b"]),
        queue=st.sampled_from(["default", "mail"]),
    )
    def enqueue(self, max_attempts: int, key: str | None, queue: str) -> Any:
        task = Task(
            name="tests.tasks.Noop",
            run_after=None,
            max_attempts=max_attempts,
            unique_key=key,
            queue=queue,
        )
        taken = key is not None and Task.objects.unfinished().filter(unique_key=key).exists()
        try:
            lifecycle.enqueue([task])
        except DuplicateTask:
            assert taken
            return multiple()
        assert not taken
        return task.pk

    @rule(target=claims, who=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, who: int, limit: int) -> Any:
        due = Task.objects.filter(status=Status.PENDING).count()
        taken = lifecycle.claim(self.by[who], limit, now=timezone.now() + AGES)
        assert len(taken) == min(limit, due)
        return multiple(*(claim_of(task) for task in taken))

    def stands(self, claim: Claim) -> bool:
        return Task.objects.filter(pk=claim.task_id, fencing_token=claim.token).exists()

    def expect(self, claim: Claim, void: list[Claim], stood: bool) -> None:
        assert void == ([] if stood else [claim])

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        self.expect(claim, stood=self.stands(claim), void=lifecycle.renew([claim]))

    @rule(claim=claims, value=st.none() | st.floats(0, 1))
    def report(self, claim: Claim, value: float | None) -> None:
        update = TaskProgressUpdate(text="x", value=value)
        self.expect(claim, stood=self.stands(claim), void=lifecycle.report({claim: update}))

    @rule(claim=claims)
    def log(self, claim: Claim) -> None:
        lines = [LogLine("info", "one"), LogLine("info", "two")]
        self.expect(claim, stood=self.stands(claim), void=lifecycle.log({claim: lines}))

    @rule(claim=claims)
    def complete(self, claim: Claim) -> None:
        self.expect(claim, stood=self.stands(claim), void=lifecycle.complete({claim: 1}))

    @rule(claim=claims)
    def fail(self, claim: Claim) -> None:
        self.expect(claim, stood=self.stands(claim), void=lifecycle.fail({claim: BROKEN}))

    @rule(claim=claims)
    def cancel(self, claim: Claim) -> None:
        self.expect(claim, stood=self.stands(claim), void=lifecycle.cancel([claim]))

    @rule(claim=claims)
    def fail_or_retry(self, claim: Claim) -> None:
        """As an execution does: another attempt only where one is left."""
        left = Task.objects.filter(pk=claim.task_id, attempt__lt=F("max_attempts")).exists()
        verb = lifecycle.retry if left else lifecycle.fail
        self.expect(claim, stood=self.stands(claim), void=verb({claim: BROKEN}))

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        self.expect(claim, stood=self.stands(claim), void=lifecycle.release([claim]))

    @rule(claim=consumes(claims))
    def forget(self, claim: Claim) -> None:
        """Its worker was killed."""

    @rule(task_id=tasks)
    def request_cancel(self, task_id: UUID) -> None:
        was = Status(Task.objects.get(pk=task_id).status)
        try:
            task = lifecycle.request_cancel(task_id)
        except IllegalTransition:
            assert was.is_terminal
        else:
            assert task.status == (Status.CANCELLED if was == Status.PENDING else Status.RUNNING)

    @rule(task_id=tasks)
    def lapse(self, task_id: UUID) -> None:
        task = Task.objects.get(pk=task_id)
        if task.status == Status.RUNNING:
            lapse(task, AGES)

    @rule()
    def rescue(self) -> None:
        overdue = Task.objects.running().filter(lease_expires_at__lt=timezone.now() - AGES / 2)
        expected = set(overdue.values_list("pk", flat=True))
        assert {task.pk for task in lifecycle.rescue()} == expected

    @invariant()
    def holds(self) -> None:
        history: dict[UUID, list[TaskEvent]] = {}
        for event in TaskEvent.objects.order_by("id"):
            history.setdefault(event.task_id, []).append(event)
        rows = list(Task.objects.values())
        assert len(rows) == len(history)
        for row in rows:
            self.row_holds(row, history[row["id"]])

    def row_holds(self, row: dict[str, Any], events: list[TaskEvent]) -> None:
        status = Status(row["status"])
        assert row["attempt"] <= row["max_attempts"]
        assert (row["fencing_token"] is not None) == (status == Status.RUNNING)

        ids = [event.pk for event in events]
        before = self.history.get(row["id"], [])
        assert ids[: len(before)] == before
        assert ids == sorted(set(ids))
        self.history[row["id"]] = ids

        kinds = [EventType(event.event_type) for event in events]
        terminal = [kind for kind in kinds if kind.is_terminal]
        if status.is_terminal:
            assert terminal == [kinds[-1]] == [EventType(f"task_{status}")]
            assert self.over.setdefault(row["id"], row) == row
        else:
            assert terminal == []
            assert row["id"] not in self.over


@pytest.mark.django_db
def test_what_must_hold_after_any_verbs_in_any_order() -> None:
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
