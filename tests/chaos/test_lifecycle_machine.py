"""A state machine: any verbs in any order, by workers that may hold stale claims.

The examples are the same in each run. MACHINE_EXAMPLES=2000 tries that many new ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasks_app.conf import task_settings
from tasks_app.exceptions import AlreadyRetried, DuplicateTask, IllegalTransition, TaskNotFound
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import RETRIABLE, Status
from tasks_app.store import lifecycle, retention
from tasks_app.store.claims import Claim, claim_of
from tasks_app.store.retention import Rule
from tasks_app.tasks.progress import LogLine
from tests.invariants import Seen, check_invariants
from tests.rows import BROKEN, worker

pytestmark = pytest.mark.slow

FURTHER = os.environ.get("MACHINE_EXAMPLES")
#: Clock steps: within a lease, past it, past any backoff, and back.
STEPS = [timedelta(seconds=seconds) for seconds in (1, 5, 11, 30, 60, 4000, 90_000, -1, -600)]
QUEUES = ["default", "mail"]
#: Index among the newest tasks or claims.
NEWEST = st.integers(0, 5)
#: Claims to write for: mostly real ones, sometimes a task with another task's token.
BATCHES = st.lists(
    NEWEST.map(lambda number: (number, number)) | st.tuples(NEWEST, NEWEST), min_size=1, max_size=3
)
STATUSES = st.sampled_from(Status)
FRACTIONS = st.none() | st.floats(0, 1)

Write = Callable[[list[Claim]], list[Claim]]


class Clock:
    """The database's time, controlled by an example."""

    def __init__(self) -> None:
        self.now = timezone.now()

    def __call__(self, _using: str) -> datetime:
        return self.now


def has_tasks(machine: Lifecycle) -> bool:
    return bool(machine.tasks)


def has_claims(machine: Lifecycle) -> bool:
    return bool(machine.claims)


class Lifecycle(RuleBasedStateMachine):
    """A small world in which verbs meet, because they choose among the newest tasks and claims."""

    def __init__(self) -> None:
        super().__init__()
        self.example = transaction.atomic()
        self.example.__enter__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        for module in (lifecycle, retention):
            self.patch.setattr(module, "database_now", self.clock)
        self.seen = Seen()
        #: Tasks that were not deleted.
        self.kept: set[UUID] = set()
        self.tasks: list[UUID] = []
        #: Claims, valid and stale: stale ones are kept.
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.patch.undo()
        transaction.set_rollback(True)
        self.example.__exit__(None, None, None)

    @initialize()
    def workers(self) -> None:
        self.by = [worker(pid=1), worker(pid=2), worker(pid=3, queues=["mail"])]
        self.enqueue(many=2, key=None, wait=None, max_attempts=2)
        self.claim(who=0, limit=1)

    # Other actors.

    @precondition(lambda machine: Task.objects.unfinished().count() < 4)
    @rule(
        many=st.integers(1, 2),
        max_attempts=st.integers(1, 3),
        key=st.sampled_from([None, None, "a", "b"]),
        queue=st.sampled_from(QUEUES),
        wait=st.sampled_from([None, timedelta(minutes=1), timedelta(days=-1)]),
        priority=st.integers(-1, 1),
    )
    def enqueue(
        self, many: int, key: str | None, wait: timedelta | None, **fields: int | str
    ) -> None:
        run_after: Any = None if wait is None else self.clock.now + wait
        tasks = [
            Task(name="tests.tasks.Noop", run_after=run_after, unique_key=key, **fields)
            for _ in range(many)
        ]
        taken = key is not None and (many > 1 or self.holds_key(key))
        try:
            with self.changing_only():
                lifecycle.enqueue(tasks)
        except DuplicateTask:
            assert taken
        else:
            assert not taken
            self.add(tasks)

    @precondition(has_tasks)
    @rule(status=STATUSES, newest=NEWEST)
    def enqueue_again(self, status: Status, newest: int) -> None:
        task_id, row = self.pick(status, newest)
        expected: type[Exception] | None = None
        if row is None:
            expected = TaskNotFound
        elif row.status not in RETRIABLE:
            expected = IllegalTransition
        elif Task.objects.filter(retried_from=row).exists():
            expected = AlreadyRetried
        elif row.unique_key is not None and self.holds_key(row.unique_key):
            expected = DuplicateTask
        if expected is not None:
            with self.changing_only(), pytest.raises(expected):
                lifecycle.enqueue_again(task_id)
            return
        with self.changing_only():
            again = lifecycle.enqueue_again(task_id, by="ada")
            self.add([again])
        assert (again.status, again.attempt, again.retried_from_id) == ("pending", 0, task_id)

    @precondition(has_tasks)
    @rule(status=STATUSES, newest=NEWEST)
    def request_cancel(self, status: Status, newest: int) -> None:
        task_id, row = self.pick(status, newest)
        if row is None or row.is_terminal:
            with (
                self.changing_only(),
                pytest.raises(IllegalTransition if row else TaskNotFound),
            ):
                lifecycle.request_cancel(task_id)
            return
        again = row.cancel_requested_at is not None
        with self.changing_only(*[] if again else [task_id]):
            asked = lifecycle.request_cancel(task_id, by="ada")
        assert asked.cancel_requested_at is not None
        assert asked.status == (Status.CANCELLED if row.status == "pending" else Status.RUNNING)
        if asked.status == Status.RUNNING:
            with self.changing_only():
                lifecycle.request_cancel(task_id, by="bob")

    @precondition(has_tasks)
    @rule(status=STATUSES, newest=NEWEST)
    def remove(self, status: Status, newest: int) -> None:
        task_id, row = self.pick(status, newest)
        if row is None or not row.is_terminal:
            with (
                self.changing_only(),
                pytest.raises(IllegalTransition if row else TaskNotFound),
            ):
                retention.remove(task_id)
            return
        with self.changing_only(task_id):
            retention.remove(task_id)
        self.kept.remove(task_id)

    @rule(age=st.sampled_from([0, 3600]), failed_age=st.sampled_from([None, 0, 86400]))
    def prune(self, age: int, failed_age: int | None) -> None:
        past = set()
        for row in Task.objects.filter(finished_at__isnull=False):
            kept_for = failed_age if row.status == Status.FAILED else age
            if kept_for is not None:
                limit = self.clock.now - timedelta(seconds=kept_for)
                past |= {row.pk} if row.finished_at < limit else set()
        with self.changing_only(*past):
            assert sum(retention.prune(Rule(age, failed_age))) == len(past)
        self.kept -= past

    @rule(step=st.sampled_from(STEPS))
    def step_the_clock(self, step: timedelta) -> None:
        self.clock.now += step

    # Workers.

    @rule(who=st.integers(0, 2), limit=st.integers(1, 3))
    def claim(self, who: int, limit: int) -> None:
        by = self.by[who]
        due = Task.objects.filter(
            status=Status.PENDING, run_after__lte=self.clock.now, queue__in=by.queues or QUEUES
        )
        first = [task.pk for task in due.order_by("-priority", "run_after")]
        urgency = dict(due.values_list("pk", "priority"))
        with self.changing_only(*first):
            taken = lifecycle.claim(by, limit)
        assert len(taken) == min(limit, len(first))
        assert {task.pk for task in taken} <= set(first)
        left = [urgency[pk] for pk in first if pk not in {task.pk for task in taken}]
        assert not left or all(task.priority >= max(left) for task in taken)
        self.claims += map(claim_of, taken)

    @precondition(has_claims)
    @rule(verb=st.sampled_from(["renew", "report", "log"]), batch=BATCHES, value=FRACTIONS)
    def write_running(self, verb: str, batch: list[tuple[int, int]], value: float | None) -> None:
        newest = TaskProgressUpdate(text="x", value=value)
        lines = [LogLine("info", "one"), LogLine("info", "two")]
        write: dict[str, Write] = {
            "renew": lifecycle.renew,
            "report": lambda claims: lifecycle.report(dict.fromkeys(claims, newest)),
            "log": lambda claims: lifecycle.log(dict.fromkeys(claims, lines)),
        }
        for row in self.write(batch, write[verb]):
            assert row.status == Status.RUNNING
            if verb == "renew":
                lease = timedelta(seconds=task_settings().lease_seconds)
                assert row.lease_expires_at == self.clock.now + lease
            elif verb == "report":
                assert (row.progress, row.progress_text) == (value, "x")

    @precondition(has_claims)
    @rule(verb=st.sampled_from(["complete", "fail", "cancel", "stuck"]), batch=BATCHES)
    def end(self, verb: str, batch: list[tuple[int, int]]) -> None:
        write: dict[str, Write] = {
            "complete": lambda claims: lifecycle.complete(dict.fromkeys(claims, 1)),
            "fail": lambda claims: lifecycle.fail(dict.fromkeys(claims, BROKEN)),
            "cancel": lambda claims: lifecycle.cancel(dict.fromkeys(claims, False)),
            "stuck": lambda claims: lifecycle.cancel(dict.fromkeys(claims, True)),
        }
        for row in self.write(batch, write[verb]):
            assert (row.status, row.result, row.error_type, row.stuck) == {
                "complete": (Status.COMPLETED, 1, "", False),
                "fail": (Status.FAILED, None, BROKEN.type, False),
                "cancel": (Status.CANCELLED, None, "", False),
                "stuck": (Status.CANCELLED, None, "", True),
            }[verb]

    @precondition(has_claims)
    @rule(verb=st.sampled_from(["retry", "release"]), batch=BATCHES)
    def retry_or_release(self, verb: str, batch: list[tuple[int, int]]) -> None:
        write: dict[str, Write] = {
            "retry": lambda claims: lifecycle.retry(dict.fromkeys(claims, BROKEN)),
            "release": lifecycle.release,
        }
        for row in self.write(batch, write[verb]):
            if verb == "retry":
                self.check_unsuccessful(row)
                assert row.status != Status.PENDING or row.run_after > self.clock.now
            else:
                asked = row.cancel_requested_at is not None
                assert row.status == (Status.CANCELLED if asked else Status.PENDING)

    @rule(limit=st.integers(1, 3))
    def rescue(self, limit: int) -> None:
        late = self.clock.now - timedelta(seconds=task_settings().heartbeat_seconds)
        lost = Task.objects.running().filter(lease_expires_at__lt=late)
        oldest = list(lost.order_by("lease_expires_at").values_list("pk", flat=True))
        with self.changing_only(*oldest):
            taken = {task.pk for task in lifecycle.rescue(limit)}
        assert len(taken) == min(limit, len(oldest))
        assert taken <= set(oldest)
        for row in Task.objects.filter(pk__in=taken):
            self.check_unsuccessful(row)

    # Expectations.

    def write(self, batch: list[tuple[int, int]], write: Write) -> list[Task]:
        """Write for valid and stale claims, and return the rows of the valid ones."""
        recent = self.claims[::-1]
        tasks, tokens = ([one[part] for one in recent] for part in (0, 1))
        chosen = dict.fromkeys(
            Claim(tasks[one % len(recent)], tokens[another % len(recent)]) for one, another in batch
        )
        good = [
            claim
            for claim in chosen
            if Task.objects.filter(pk=claim.task_id, fencing_token=claim.token).exists()
        ]
        with self.changing_only(*(claim.task_id for claim in good)):
            assert write([*chosen]) == [claim for claim in chosen if claim not in good]
        return list(Task.objects.filter(pk__in=[claim.task_id for claim in good]))

    def check_unsuccessful(self, row: Task) -> None:
        """Check the status of a task after an unsuccessful attempt."""
        if row.cancel_requested_at is not None:
            assert row.status == Status.CANCELLED
        else:
            left = row.attempt < row.max_attempts
            assert row.status == (Status.PENDING if left else Status.FAILED)

    def pick(self, status: Status, newest: int) -> tuple[UUID, Task | None]:
        """Return a task and its row, of this status if there is one.

        Otherwise it is any task, which may be deleted.
        """
        alike = Task.objects.filter(status=status).values_list("pk", flat=True)
        some = [pk for pk in self.tasks if pk in set(alike)] or self.tasks
        task_id = some[-1 - newest % len(some)]
        return task_id, Task.objects.filter(pk=task_id).first()

    def add(self, tasks: list[Task]) -> None:
        self.tasks += [task.pk for task in tasks]
        self.kept.update(self.tasks[-len(tasks) :])

    def holds_key(self, key: str) -> bool:
        return Task.objects.unfinished().filter(unique_key=key).exists()

    @contextmanager
    def changing_only(self, *task_ids: UUID) -> Iterator[None]:
        """Check that all other rows and events stay unchanged, except deleted references."""
        rows = Task.objects.exclude(pk__in=task_ids).order_by("pk")
        events = TaskEvent.objects.exclude(task_id__in=task_ids).order_by("pk")
        before, events_before = list(rows.values()), list(events.values())
        ids = [row["id"] for row in before]
        try:
            yield
        finally:
            after = list(rows.filter(pk__in=ids).values())
            for row in [*before, *after]:
                if row["retried_from_id"] in task_ids:
                    row["retried_from_id"] = None
            assert after == before
            assert list(events.filter(task_id__in=ids).values()) == events_before

    @invariant()
    def holds(self) -> None:
        assert check_invariants(self.seen) == len(self.kept)
        assert self.seen.facts.keys() - self.seen.gone == self.kept


@pytest.mark.django_db
@pytest.mark.timeout(0 if FURTHER else 300)
def test_invariants_hold_after_any_sequence_of_verbs() -> None:
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=int(FURTHER or 60),
            stateful_step_count=80 if FURTHER else 40,
            derandomize=not FURTHER,
            # Normally a failure is shown as found. A longer search also shrinks it.
            phases=[Phase.generate, Phase.shrink] if FURTHER else [Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
