"""Query plans: each query must use the index made for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tasks_app.api.operations import _check_limit, _was_started
from tasks_app.api.paging import page_of
from tasks_app.api.payloads import Filters
from tasks_app.exceptions import DuplicateTask
from tasks_app.live.channels import owner_channel, task_channel
from tasks_app.live.cursor import Cursor
from tasks_app.live.relay import _Feed
from tasks_app.live.storage import TaskEventStorage
from tasks_app.live.view import View
from tasks_app.models import Task, TaskEvent, Worker
from tasks_app.service import task_service
from tasks_app.states import EventType, Status
from tasks_app.store import claims, lifecycle, retention
from tasks_app.store.claims import claim_of
from tasks_app.store.health import health
from tasks_app.tasks.progress import LogLine
from tests.live.watching import opening_of
from tests.rows import row, saved, worker

pytestmark = pytest.mark.django_db

#: Tables that grow.
BIG = {Task._meta.db_table, TaskEvent._meta.db_table}
TABLES = BIG | {Worker._meta.db_table}


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements that read or change existing rows, with their parameters."""
    collected: list[tuple[str, Any]] = []

    def collect(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip("(").startswith(("SELECT", "UPDATE", "DELETE")) and any(
            table in sql for table in TABLES
        ):
            collected.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(collect):
        yield collected


def plan(sql: str, params: Any) -> tuple[set[str], set[str]]:
    """Return the indexes that a statement uses, and the tables that it scans fully."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            # With bound parameters, as it really runs: their values decide whether a partial index
            # is used.
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            return _plan_of_sqlite([str(found[3]) for found in cursor.fetchall()])
        # The tables of a test are so small that a sequential scan is often fastest.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
        [[found]] = cursor.fetchall()
        nodes = list(_nodes(json.loads(found) if isinstance(found, str) else found))
        return (
            {node["Index Name"] for node in nodes if "Index Name" in node},
            {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG,
        )


def _plan_of_sqlite(lines: list[str]) -> tuple[set[str], set[str]]:
    indexes: set[str] = set()
    scanned: set[str] = set()
    for line in lines:
        if found := re.match(r"(?:SEARCH|SCAN) (\w+) USING (?:COVERING )?INDEX (\w+)", line):
            indexes.add(found[2])
        elif found := re.match(r"SCAN (\w+)", line):
            scanned.add(found[1])
    return indexes, scanned & BIG


def _nodes(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, list):
        for item in found:
            yield from _nodes(item)
    elif "Plan" in found:
        yield from _nodes(found["Plan"])
    else:
        yield found
        yield from _nodes(found.get("Plans", []))


@contextmanager
def query_count(**expected: int) -> Iterator[None]:
    [(name, count)] = expected.items()
    with CaptureQueriesContext(connection) as executed:
        yield
    assert len(executed) == count, [name, *(query["sql"] for query in executed)]


@pytest.fixture
def owner() -> User:
    """Return a user of a busy site: most tasks are finished, some pending, few running."""
    owner = User.objects.create(username="ada")
    by = worker()
    minute = timedelta(minutes=1)
    tasks = [
        row(status, age=minute * number, owner=owner if number % 50 == 0 else None)
        for number in range(300)
        for status in (Status.COMPLETED, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    ]
    later = timezone.now() + timedelta(days=1)
    for number in range(60):
        tasks += [
            row(age=minute * number, queue=f"q{number % 3}"),
            row(run_after=later, queue=f"q{number % 3}"),
        ]
    tasks += [row(Status.RUNNING, worker=by) for _ in range(4)]
    Task.objects.bulk_create(tasks)
    TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=kind, timestamp=task.created_at)
        for task in tasks
        for kind in (EventType.QUEUED, EventType.STARTED)
    )
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    return owner


Operation = Callable[[], object]


def claim(_owner: User) -> Operation:
    by = worker()
    return lambda: lifecycle.claim(by, 4)


def claim_from_a_queue(_owner: User) -> Operation:
    by = worker(queues=["q1"])
    return lambda: lifecycle.claim(by, 4)


def among_many(prepare: Callable[[User], Operation]) -> Callable[[User], Operation]:
    """Prepare as if more tasks are due than a claim sorts separately."""

    def prepared(owner: User) -> Operation:
        do = prepare(owner)

        def operation() -> object:
            with patch.object(claims, "FEW", 2):
                return do()

        return operation

    return prepared


def prune(_owner: User) -> Operation:
    old = 4.9 * 3600
    return lambda: list(retention.prune(retention.Rule(old, old)))


def count_for_a_prune(_owner: User) -> Operation:
    old = 4.9 * 3600
    return lambda: retention.count(retention.Rule(old, old))


def any_completed_task() -> Task:
    return Task.objects.filter(status=Status.COMPLETED)[0]


def resume_channel(_owner: User) -> Operation:
    channel = task_channel(any_completed_task().pk)
    return lambda: TaskEventStorage().get_events(channel, 5)


def open_stream(_owner: User) -> Operation:
    view, until = View([task_channel(any_completed_task().pk)]), Cursor.now("default")
    return lambda: opening_of(view, until.beginning(), until)


def open_owner_stream(owner: User) -> Operation:
    view, until = View([owner_channel(owner.pk)]), Cursor.now("default")
    return lambda: opening_of(view, None, until)


def feed() -> _Feed:
    """Return the relay's reader, without its thread."""
    made = _Feed()
    made.cursor = Cursor.now("default")
    return made


def relay_pass(_owner: User) -> Operation:
    reader = feed()
    TaskEvent.objects.create(
        task=any_completed_task(), event_type=EventType.LOG, timestamp=timezone.now()
    )
    return reader._pass


def remove(_owner: User) -> Operation:
    task_id = any_completed_task().pk
    return lambda: retention.remove(task_id)


def start_duplicate(_owner: User) -> Operation:
    saved(unique_key="one at a time")

    def expect_refusal() -> None:
        with pytest.raises(DuplicateTask):
            task_service.start_task("tests.tasks.Noop", unique_key="one at a time")

    return expect_refusal


def start_again_with_key(owner: User) -> Operation:
    def start() -> Any:
        return task_service.start_task("tests.tasks.Noop", owner=owner, idempotency_key="k")

    start()
    return start


def check_unfinished_limit(owner: User) -> Operation:
    """Check whether the owner has too many unfinished tasks."""
    return lambda: _check_limit(owner)


def find_by_key(owner: User) -> Operation:
    return lambda: _was_started(owner, "k")


def list_page(owner: User | None = None, **filters: Any) -> Operation:
    tasks = Task.objects.all() if owner is None else Task.objects.filter(owner=owner)
    return lambda: page_of(tasks, Filters(limit=2, **filters))


def next_page(_owner: User) -> Operation:
    return list_page(cursor=page_of(Task.objects.all(), Filters(limit=2)).next, status=["failed"])


#: Operations and indexes. An operation must use at least one of its indexes: if two are equally
#: good, the databases choose differently.
QUERIES: dict[str, tuple[Callable[[User], Operation], set[str]]] = {
    "claim": (claim, {"tasks_due"}),
    "claim of many": (among_many(claim), {"tasks_waiting"}),
    "claim from a queue": (among_many(claim_from_a_queue), {"tasks_waiting_in_queue"}),
    "rescue": (lambda _: lifecycle.rescue, {"tasks_leased", "tasks_finished"}),
    "list": (lambda _: lambda: list(Task.objects.all()[:100]), {"tasks_newest"}),
    "list of an owner": (
        lambda owner: lambda: list(Task.objects.visible_to(owner)[:100]),
        {"tasks_newest_of_owner"},
    ),
    "prune": (prune, {"tasks_finished"}),
    "count for a prune": (count_for_a_prune, {"tasks_finished"}),
    # A site has few workers, so either index is fine.
    "prune workers": (
        lambda _: retention.prune_workers,
        {"tasks_worker_heartbeat", "tasks_app_worker_pkey"},
    ),
    "remove": (remove, {"tasks_event_of_task"}),
    "resume a channel": (resume_channel, {"tasks_event_of_task"}),
    "open a stream": (open_stream, {"tasks_event_of_task", "tasks_one_terminal_event"}),
    "open a stream of an owner": (open_owner_stream, {"tasks_unfinished_of_owner"}),
    "start what waits already": (start_duplicate, {"tasks_unique_key_unfinished"}),
    "limit of the API": (check_unfinished_limit, {"tasks_unfinished_of_owner"}),
    "idempotency key": (find_by_key, {"tasks_idempotency_key"}),
    "page of the API": (lambda _: list_page(), {"tasks_newest"}),
    "next page of the API": (next_page, {"tasks_newest"}),
    "what waits in a queue": (
        lambda _: list_page(status=["pending"], queue="q1"),
        {"tasks_newest"},
    ),
    "an owner's failed": (
        lambda owner: list_page(owner, status=["failed"]),
        {"tasks_newest_of_owner"},
    ),
    "health": (lambda _: health, {"tasks_waiting", "tasks_due"}),
    "health of a queue": (lambda _: lambda: health("q1"), {"tasks_waiting_in_queue"}),
    "start once more": (start_again_with_key, {"tasks_idempotency_key"}),
    # On SQLite it finds new facts by id, which is the primary key.
    "relay": (relay_pass, {"tasks_finished", "tasks_leased", "tasks_event_transaction"}),
}


def test_each_query_uses_its_index(owner: User) -> None:
    """And none fully scans a table that grows."""
    for name, (prepare, indexes) in QUERIES.items():
        do = prepare(owner)
        with transaction.atomic(), statements() as executed:
            do()
            transaction.set_rollback(True)
        assert executed, name
        plans = [plan(*statement) for statement in executed]
        used = set().union(*(found for found, _ in plans))
        assert indexes & used, f"{name} uses {used}"
        for (sql, _), (_, scanned) in zip(executed, plans, strict=True):
            assert not scanned, f"{name} reads {scanned} whole: {sql}"


def test_claim_updates_rows_by_id(owner: User) -> None:
    """Not by status, which all pending rows share."""
    do = among_many(claim)(owner)
    with statements() as executed:
        do()
    (few, _), (chosen, _), (written, _) = (plan(*statement) for statement in executed)
    assert few == {"tasks_due"}
    assert chosen == {"tasks_waiting"}
    # PostgreSQL chooses each time, and may combine both.
    if connection.vendor == "sqlite":
        assert written == {"sqlite_autoindex_tasks_app_task_1"}


def test_query_without_an_index_is_detected(owner: User) -> None:
    with statements() as executed:
        list(Task.objects.filter(progress_text="x").order_by())
    [statement] = executed
    _, scanned = plan(*statement)
    assert scanned == {Task._meta.db_table}


# Query counts.


#: Queries of a nested `atomic`: one to create the savepoint, one to release it.
SAVEPOINT = 2


def clock() -> int:
    """Return the queries for the time: PostgreSQL is asked, on SQLite the host's clock is used."""
    return 0 if connection.vendor == "sqlite" else 1


def notice() -> int:
    """Return the queries for a notification: on PostgreSQL one per transaction."""
    return 0 if connection.vendor == "sqlite" else 1


@pytest.mark.parametrize("many", [1, 5, 30])
def test_query_count_does_not_depend_on_the_batch_size(many: int) -> None:
    by, now = worker(), timezone.now()
    tasks = [Task(name="tests.tasks.Noop", run_after=now) for _ in range(many)]
    with query_count(enqueue=2 + SAVEPOINT + clock() + notice()):
        lifecycle.enqueue(tasks)
    with query_count(claim=4):
        taken = lifecycle.claim(by, many, now=now)
    assert len(taken) == many
    claims = [claim_of(task) for task in taken]
    with query_count(renew=2):
        lifecycle.renew(claims, now=now)
    with query_count(log=2 + clock()):
        lifecycle.log({claim: [LogLine("info", "x")] * 3 for claim in claims})
    with query_count(complete=3):
        lifecycle.complete({claim: {"rows": 3} for claim in claims}, now=now)
    assert Task.objects.filter(status=Status.COMPLETED).count() == many


@pytest.mark.parametrize("many", [1, 5, 30])
def test_query_count_of_release_does_not_depend_on_the_batch_size(many: int) -> None:
    by, now = worker(), timezone.now()
    lifecycle.enqueue([Task(name="tests.tasks.Noop", run_after=now) for _ in range(many)])
    claims = [claim_of(task) for task in lifecycle.claim(by, many, now=now)]
    with query_count(release=3):
        lifecycle.release(claims, now=now)
