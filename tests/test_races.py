"""Pairs of concurrent writes to one task, each on its own connection: one of them wins.

Each pair meets in two ways. Both start at the same time, many times over. Or one begins while the
other is in the middle of its transaction, in both orders.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from tasks_app.exceptions import AlreadyRetried, DuplicateTask, IllegalTransition, TaskNotFound
from tasks_app.models import Task, Worker
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import Status
from tasks_app.store import lifecycle, retention
from tasks_app.store.claims import Claim, claim_of
from tasks_app.store.retention import Rule
from tasks_app.tasks.progress import LogLine
from tests.harness import PATIENCE, eventually
from tests.invariants import Seen, check_invariants
from tests.rows import BROKEN, claimed, ended, enqueued, lapse, worker

pytestmark = pytest.mark.django_db(transaction=True)

#: The number of times that each pair starts at the same time.
ROUNDS = int(os.environ.get("RACE_ROUNDS", "10"))
DAY = timedelta(days=1)
#: Prunes everything that has finished.
ALL = Rule(0, 0)

#: The result of one side of a race: its return value, or the error it raised.
Answer = Any


class Sides:
    """Threads with their own connections, which live longer than a round."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pool = ThreadPoolExecutor(number)

    def at_once(self, *calls: Callable[[], Answer]) -> list[Answer]:
        """Run all calls at the same time."""
        barrier = threading.Barrier(len(calls), timeout=PATIENCE)

        def go(call: Callable[[], Answer]) -> Answer:
            barrier.wait()
            return answer(call)

        return [future.result(PATIENCE) for future in [self.pool.submit(go, c) for c in calls]]

    def overlapping(
        self, first: Callable[[], Answer], second: Callable[[], Answer]
    ) -> list[Answer]:
        """Run the second call after the first has written, but before it commits."""
        wrote, comes, commit = threading.Event(), threading.Event(), threading.Event()
        waiter: list[int] = []

        def begin() -> Answer:
            with transaction.atomic():
                result = answer(first)
                wrote.set()
                assert commit.wait(PATIENCE)
            return result

        def run_second() -> Answer:
            assert wrote.wait(PATIENCE)
            if connection.vendor == "postgresql":
                connection.ensure_connection()
                waiter.append(connection.connection.info.backend_pid)
            comes.set()
            return answer(second)

        futures = [self.pool.submit(begin), self.pool.submit(run_second)]
        assert comes.wait(PATIENCE)
        eventually(
            lambda: futures[1].done() or is_blocked(waiter), what="the second call waits or returns"
        )
        commit.set()
        return [future.result(PATIENCE) for future in futures]

    def close(self) -> None:
        self.at_once(*[connections.close_all] * self.number)
        self.pool.shutdown()


def answer(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except (IllegalTransition, TaskNotFound, DuplicateTask) as refused:
        return refused


def is_blocked(waiter: list[int]) -> bool:
    """Return whether a session waits for a lock.

    SQLite does not show it; there the second writer always waits.
    """
    if not waiter:
        return True
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", waiter
        )
        return cursor.fetchone() is not None


@contextmanager
def sides(number: int) -> Iterator[Sides]:
    race = Sides(number)
    try:
        yield race
    finally:
        race.close()


# Pairs: what to prepare, what each side does, and what must hold afterwards.


@dataclass(frozen=True)
class Pair:
    prepare: Callable[[], Claim]
    one: Callable[[Claim], Answer]
    other: Callable[[Claim], Answer]
    #: Called with the claim, the task's row (None if deleted) and both results.
    holds: Callable[[Claim, Task | None, Answer, Answer], bool]


def running(**fields: Any) -> Claim:
    return claimed(max_attempts=2, **fields)[1]


def lapsed() -> Claim:
    task, claim = claimed(max_attempts=2)
    lapse(task, DAY)
    return claim


def pending() -> Claim:
    task = enqueued()
    return Claim(task.pk, task.pk)


def failed() -> Claim:
    task = ended(Status.FAILED)
    return Claim(task.pk, task.pk)


def complete(claim: Claim) -> Answer:
    return lifecycle.complete({claim: 1})


def retry(claim: Claim) -> Answer:
    return lifecycle.retry({claim: BROKEN})


def rescue(_claim: Claim) -> Answer:
    return [task.pk for task in lifecycle.rescue()]


def request_cancel(claim: Claim) -> Answer:
    return lifecycle.request_cancel(claim.task_id).status


def prune(_claim: Claim) -> Answer:
    # A few batches, as a worker does: a prune skips locked tasks, and looks at them again later.
    return sum(islice(retention.prune(ALL), 3))


def remove(claim: Claim) -> Answer:
    return retention.remove(claim.task_id)


def again(claim: Claim) -> Answer:
    return lifecycle.enqueue_again(claim.task_id).pk


def take(_claim: Claim) -> Answer:
    by = Worker.objects.first()
    assert by is not None
    return [claim_of(task) for task in lifecycle.claim(by, 5)]


def enqueue_with_key(_claim: Claim) -> Answer:
    return enqueued(unique_key="one").pk


def is_in(task: Task | None, *statuses: Status) -> bool:
    return task is not None and task.status in statuses


PAIRS = {
    "rescue/complete": Pair(
        lapsed,
        rescue,
        complete,
        lambda claim, task, rescued, refused: (
            is_in(task, Status.PENDING) and refused == [claim]
            if rescued
            else is_in(task, Status.COMPLETED) and refused == []
        ),
    ),
    "rescue/report": Pair(
        lapsed,
        rescue,
        lambda claim: lifecycle.report({claim: TaskProgressUpdate(text="late", value=0.5)}),
        # Both may win here: a report that came in time was written.
        lambda claim, task, rescued, refused: (
            (rescued == [claim.task_id]) == is_in(task, Status.PENDING)
            and refused in ([], [claim])
            and task is not None
            and (task.progress_text == "late") == (refused == [])
        ),
    ),
    "rescue/log": Pair(
        lapsed,
        rescue,
        lambda claim: lifecycle.log({claim: [LogLine("info", "late")]}),
        # The history is checked anyway: no line may come after the end of the attempt.
        lambda claim, task, rescued, refused: refused in ([], [claim]),
    ),
    "rescue/rescue": Pair(
        lapsed,
        rescue,
        rescue,
        lambda claim, task, one, other: (
            is_in(task, Status.PENDING) and one + other == [claim.task_id]
        ),
    ),
    "renew/rescue": Pair(
        lapsed,
        lambda claim: lifecycle.renew([claim]),
        rescue,
        lambda claim, task, refused, rescued: (
            is_in(task, Status.PENDING) and refused == [claim]
            if rescued
            else is_in(task, Status.RUNNING) and refused == []
        ),
    ),
    "cancel/complete": Pair(
        running,
        lambda claim: lifecycle.cancel({claim: False}),
        complete,
        lambda claim, task, cancelled, completed: (
            is_in(task, Status.COMPLETED) and cancelled == [claim]
            if completed == []
            else is_in(task, Status.CANCELLED) and completed == [claim] and cancelled == []
        ),
    ),
    "request_cancel/complete": Pair(
        running,
        request_cancel,
        complete,
        # It completes either way. A request that comes too late is refused.
        lambda claim, task, asked, refused: (
            is_in(task, Status.COMPLETED)
            and refused == []
            and (asked == Status.RUNNING or isinstance(asked, IllegalTransition))
        ),
    ),
    "request_cancel/claim": Pair(
        pending,
        request_cancel,
        take,
        lambda claim, task, asked, taken: (
            is_in(task, Status.RUNNING) and asked == Status.RUNNING
            if taken
            else is_in(task, Status.CANCELLED) and asked == Status.CANCELLED
        ),
    ),
    "request_cancel/release": Pair(
        running,
        request_cancel,
        lambda claim: lifecycle.release([claim]),
        lambda claim, task, asked, refused: is_in(task, Status.CANCELLED) and refused == [],
    ),
    "request_cancel/retry": Pair(
        running,
        request_cancel,
        retry,
        lambda claim, task, asked, refused: is_in(task, Status.CANCELLED) and refused == [],
    ),
    "request_cancel/rescue": Pair(
        lapsed,
        request_cancel,
        rescue,
        # A rescue skips tasks that others have locked, and tries again at the next heartbeat.
        lambda claim, task, asked, rescued: (
            is_in(task, Status.CANCELLED) if rescued else is_in(task, Status.RUNNING)
        ),
    ),
    "request_cancel/request_cancel": Pair(
        running,
        request_cancel,
        request_cancel,
        lambda claim, task, one, other: (
            is_in(task, Status.RUNNING) and one == other == Status.RUNNING
        ),
    ),
    "retry/prune": Pair(
        running,
        retry,
        prune,
        lambda claim, task, refused, pruned: (
            is_in(task, Status.PENDING) and refused == [] and pruned == 0
        ),
    ),
    "complete/prune": Pair(
        running,
        complete,
        prune,
        lambda claim, task, refused, pruned: (
            refused == [] and (task is None if pruned else is_in(task, Status.COMPLETED))
        ),
    ),
    "complete/remove": Pair(
        running,
        complete,
        remove,
        lambda claim, task, refused, removed: (
            refused == []
            and (
                task is None
                if removed is None
                else is_in(task, Status.COMPLETED) and isinstance(removed, IllegalTransition)
            )
        ),
    ),
    "enqueue_again/remove": Pair(
        failed,
        again,
        remove,
        lambda claim, task, new, removed: (
            task is None
            and removed is None
            and (
                Task.objects.count() == 0
                if isinstance(new, TaskNotFound)
                else Task.objects.get().pk == new and Task.objects.get().retried_from_id is None
            )
        ),
    ),
    "enqueue_again/prune": Pair(
        failed,
        again,
        prune,
        lambda claim, task, new, pruned: (
            (task is None) == bool(pruned)
            and Task.objects.unfinished().count() == (not isinstance(new, TaskNotFound))
        ),
    ),
    "enqueue_again/enqueue_again": Pair(
        failed,
        again,
        again,
        lambda claim, task, one, other: (
            is_in(task, Status.FAILED)
            and [isinstance(one, AlreadyRetried), isinstance(other, AlreadyRetried)].count(True)
            == 1
            and Task.objects.filter(retried_from=claim.task_id).count() == 1
        ),
    ),
    "prune/remove": Pair(
        failed,
        prune,
        remove,
        lambda claim, task, pruned, removed: (
            task is None and (pruned == 1) == isinstance(removed, TaskNotFound)
        ),
    ),
    "enqueue/enqueue": Pair(
        failed,
        enqueue_with_key,
        enqueue_with_key,
        lambda claim, task, one, other: (
            isinstance(one, DuplicateTask) != isinstance(other, DuplicateTask)
            and Task.objects.filter(unique_key="one").count() == 1
        ),
    ),
    "complete/enqueue": Pair(
        lambda: running(unique_key="one"),
        complete,
        enqueue_with_key,
        lambda claim, task, refused, new: (
            is_in(task, Status.COMPLETED)
            and Task.objects.unfinished().count() == (not isinstance(new, DuplicateTask))
        ),
    ),
}


def check(pair: Pair, claim: Claim, one: Answer, other: Answer, seen: Seen) -> None:
    task = Task.objects.filter(pk=claim.task_id).first()
    assert pair.holds(claim, task, one, other), (task and task.status, one, other)
    check_invariants(seen)
    Task.objects.all().delete()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_started_at_the_same_time(pair: Pair) -> None:
    seen = Seen()
    worker()
    with sides(2) as race:
        for number in range(ROUNDS):
            claim = pair.prepare()
            calls = [partial(pair.one, claim), partial(pair.other, claim)]
            # The thread that reaches the barrier last tends to leave it first.
            answers = race.at_once(*(calls[:: (-1) ** number]))[:: (-1) ** number]
            check(pair, claim, *answers, seen)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_second_begins_before_the_first_commits(pair: Pair) -> None:
    seen = Seen()
    worker()
    with sides(2) as race:
        claim = pair.prepare()
        one, other = race.overlapping(partial(pair.one, claim), partial(pair.other, claim))
        check(pair, claim, one, other, seen)
        claim = pair.prepare()
        other, one = race.overlapping(partial(pair.other, claim), partial(pair.one, claim))
        check(pair, claim, one, other, seen)


# More than two.


def test_concurrent_claims_give_each_task_to_one_worker() -> None:
    by = [worker(pid=number) for number in range(4)]
    with sides(4) as race:
        for limit in (1, 3, 50):
            lifecycle.enqueue([Task(name="tests.tasks.Noop", run_after=None) for _ in range(60)])
            waiting = set(Task.objects.filter(status=Status.PENDING).values_list("pk", flat=True))

            def drain(one: Worker, limit: int = limit) -> list[Claim]:
                taken: list[Claim] = []
                while batch := lifecycle.claim(one, limit):
                    taken += map(claim_of, batch)
                return taken

            answers = race.at_once(*(partial(drain, one) for one in by))
            # A claim that skipped locked tasks may have found nothing, so claim once more.
            claims = [claim for taken in (*answers, drain(by[0])) for claim in taken]
            assert sorted(claim.task_id for claim in claims) == sorted(waiting)
            assert lifecycle.complete(dict.fromkeys(claims, 1)) == []
            check_invariants()


def test_concurrent_rescues_take_each_task_once() -> None:
    by = worker()
    with sides(4) as race:
        for _ in range(5):
            lifecycle.enqueue(
                [Task(name="tests.tasks.Noop", run_after=None, max_attempts=2) for _ in range(30)]
            )
            lost = lifecycle.claim(by, 30)
            for task in lost:
                lapse(task, DAY)
            answers = race.at_once(*[lambda: [task.pk for task in lifecycle.rescue(7)]] * 4)
            while rest := lifecycle.rescue(7):
                answers.append([task.pk for task in rest])
            taken = [pk for answer in answers for pk in answer]
            assert sorted(taken) == sorted(task.pk for task in lost)
            check_invariants()
            Task.objects.all().delete()


class Storm:
    """Calls random verbs in batches on tasks that other threads change too."""

    def __init__(self, by: Worker, claims: list[Claim], seed: int) -> None:
        self.by = by
        self.claims = claims
        self.chance = random.Random(seed)

    def run(self) -> None:
        verbs = [
            lambda: lifecycle.complete(dict.fromkeys(self.some(2), 1)),
            lambda: lifecycle.retry(dict.fromkeys(self.some(3), BROKEN)),
            lambda: lifecycle.release(self.some(3)),
            lambda: lifecycle.renew(self.some(8)),
            lambda: lifecycle.log({claim: [LogLine("info", "x")] for claim in self.some(8)}),
            lambda: lifecycle.request_cancel(self.one),
            lambda: self.claims.extend(map(claim_of, lifecycle.claim(self.by, 3))),
            self.lapse,
            lambda: lifecycle.rescue(),
            lambda: lifecycle.enqueue_again(self.one),
            lambda: retention.remove(self.one),
            lambda: prune(self.claims[0]),
        ]
        for _ in range(50):
            answer(self.chance.choice(verbs))

    def some(self, number: int) -> list[Claim]:
        return self.chance.sample(self.claims, number)

    @property
    def one(self) -> UUID:
        return self.chance.choice(self.claims).task_id

    def lapse(self) -> None:
        doomed = [claim.task_id for claim in self.some(4)]
        # In the same order as the lifecycle, to avoid deadlocks.
        for task in Task.objects.running().filter(pk__in=doomed).order_by("pk"):
            past = timezone.now() - DAY
            Task.objects.running().filter(pk=task.pk).update(lease_expires_at=past)


def test_random_concurrent_verbs_keep_invariants_without_deadlock() -> None:
    by = worker()
    seen = Seen()
    claims: list[Claim] = []
    with sides(4) as race:
        for number in range(3):
            lifecycle.enqueue(
                [Task(name="tests.tasks.Noop", run_after=None, max_attempts=3) for _ in range(20)]
            )
            claims += map(claim_of, lifecycle.claim(by, 40))
            race.at_once(*(Storm(by, claims, 4 * number + side).run for side in range(4)))
            check_invariants(seen)
