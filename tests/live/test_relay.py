"""The relay: its reads, its events, and errors that it survives."""

from __future__ import annotations

import asyncio
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_eventstream.views import Listener, get_listener_manager

from tasks_app.live import relay as relay_module
from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, owner_channel, task_channel
from tasks_app.live.cursor import Cursor
from tasks_app.live.relay import _Feed, relay
from tasks_app.models import Task, TaskEvent
from tasks_app.states import EventType
from tasks_app.store import lifecycle
from tasks_app.tasks.progress import LogLine
from tests.live.watching import Watching
from tests.rows import claimed, enqueued

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "TROUBLE_SECONDS", 0.01)


def said(log: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in log.records if text in record.getMessage()]


async def until_said(log: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(20):
        while not said(log, text):
            await asyncio.sleep(0.01)


# Errors.


def test_fact_that_cannot_be_encoded_is_skipped(
    ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer worker may write a fact that this process does not know."""
    task, claim = claimed(owner=ada)

    def write() -> None:
        TaskEvent.objects.create(
            task=task, event_type=EventType.LOG, timestamp=timezone.now(), data=["no", "mapping"]
        )
        lifecycle.log({claim: [LogLine("info", "after it")]})
        lifecycle.complete({claim: 7})

    async def watch() -> Watching:
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            await database_sync_to_async(write)()
            await watching.finish()
            return watching

    watching = async_to_sync(watch)()
    assert watching.types == ["task_status", "task_log", "task_completed"]
    assert watching.seen[1].data["message"] == "after it"
    [record] = said(caplog, "cannot be sent and was skipped")
    assert record.exc_info


def test_relay_continues_after_an_error(
    ada: User, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any error during a read, it reads again what it has not read yet."""
    task, claim = claimed(owner=ada)
    real = _Feed._running
    faults = [RuntimeError("once"), RuntimeError("twice")]

    def running(feed: _Feed) -> Any:
        if faults:
            raise faults.pop()
        return real(feed)

    async def watch() -> Watching:
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            monkeypatch.setattr(_Feed, "_running", running)
            await database_sync_to_async(lifecycle.log)({claim: [LogLine("info", "first")]})
            await watching.sees("task_log")
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching

    assert async_to_sync(watch)().types == ["task_status", "task_log", "task_completed"]
    assert len(said(caplog, "The relay failed; next try in 0.01 s")) == 2


def test_very_many_facts_are_read_by_each_viewer(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one transaction with very many starts would fill every process's memory."""
    monkeypatch.setattr(relay_module, "FACTS_MAX", 5)
    task, claim = claimed(owner=ada)
    sent_counts = []
    tell = _Feed._send_facts
    monkeypatch.setattr(
        _Feed,
        "_send_facts",
        lambda feed, facts, *rest: sent_counts.append(len(facts)) or tell(feed, facts, *rest),
    )

    def write() -> None:
        lifecycle.log({claim: [LogLine("info", f"line {number}") for number in range(20)]})

    async def watch() -> Watching:
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            await database_sync_to_async(write)()
            while watching.types.count("task_log") < 20:
                await watching.next()
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching

    watching = async_to_sync(watch)()
    facts_seen = [kind for kind in watching.types if kind != "task_status"]
    assert facts_seen == ["task_log"] * 20 + ["task_completed"]
    assert max(sent_counts) <= 5


def test_error_during_sending_loses_nothing(
    ada: User, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each viewer gets the state, and reads what it has not had from the database."""
    task, claim = claimed(owner=ada)
    real = wire.fact
    faults = [RuntimeError("at the second")]

    def fact(row: TaskEvent, cursor: Cursor) -> wire.Fact:
        if faults and row.data.get("message") == "second":
            raise faults.pop()
        return real(row, cursor)

    async def watch() -> Watching:
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            monkeypatch.setattr(wire, "fact", fact)
            lines = [LogLine("info", text) for text in ("first", "second", "third")]
            await database_sync_to_async(lifecycle.log)({claim: lines})
            await until_said(caplog, "The relay failed")
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching

    seen = async_to_sync(watch)().seen
    assert (seen[0].type, seen[-1].type) == ("task_status", "task_completed")
    lines = [event.data["message"] for event in seen if event.type == "task_log"]
    assert lines == ["first", "second", "third"]


@pytest.mark.parametrize("lost", [{"timeline": "lost"}, {"ahead": 300}])
def test_streams_reopen_after_a_failover(
    ada: User, lost: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a promoted standby, or to a copy that knows fewer transactions."""
    task, claim = claimed(owner=ada)
    real = Cursor.now

    def before(using: str) -> Cursor:
        """Return the cursor of the lost server. On SQLite there is no difference."""
        now = real(using)
        if now.before is None:
            return now
        snapshot = replace(now.before, xmax=now.before.xmax + lost.get("ahead", 0))
        return Cursor(now.id, snapshot, snapshot, lost.get("timeline", now.timeline))

    async def watch() -> tuple[Watching, Watching]:
        monkeypatch.setattr(Cursor, "now", before)
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            had = relay.cursor
            monkeypatch.setattr(Cursor, "now", real)
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
        async with Watching(ada, {task_channel(task.pk)}, had) as again:
            await again.finish()
        return watching, again

    watching, again = async_to_sync(watch)()
    reopened = ["task_status"] if connection.vendor == "postgresql" else []
    assert watching.types == ["task_status", *reopened, "task_completed"]
    assert again.types == ["task_status", "task_completed"]
    resumable = Cursor.parse(watching.seen[-1].id)
    assert real("default").continues(resumable)


def test_viewer_ahead_of_the_relay_waits_for_it(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has sent the event already. This process's relay must not send it again."""
    task, claim = claimed(owner=ada)
    reads, go_on = threading.Event(), threading.Event()
    real = _Feed._read

    def read(feed: _Feed) -> Any:
        reads.set()
        assert go_on.wait(20)
        return real(feed)

    async def watch() -> Watching:
        async with Watching(ada, {ALL_TASKS}):
            monkeypatch.setattr(_Feed, "_read", read)
            await database_sync_to_async(lifecycle.log)({claim: [LogLine("info", "had")]})
            assert await asyncio.to_thread(reads.wait, 20)
            had = await database_sync_to_async(Cursor.now)("default")
            second = Watching(ada, {task_channel(task.pk)}, had)
            opening = asyncio.create_task(second.__aenter__())
            async with asyncio.timeout(20):
                while not relay._feed or not relay._feed._waiting:
                    await asyncio.sleep(0.01)
            go_on.set()
            await opening
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await second.finish()
            return second

    assert async_to_sync(watch)().types == ["task_status", "task_completed"]


def test_relay_ends_with_the_last_stream(ada: User) -> None:
    task = enqueued(owner=ada)

    async def watch() -> None:
        async with Watching(ada, {task_channel(task.pk)}):
            assert relay.cursor.id >= 1
        with pytest.raises(RuntimeError, match="has no listener"):
            _ = relay.cursor

    async_to_sync(watch)()
    assert get_listener_manager().listeners_by_channel == {}


# Reads.


@contextmanager
def listening(*channels: str) -> Iterator[Listener]:
    listener = Listener()
    # The loop never runs: only what was queued matters here.
    listener.loop = asyncio.new_event_loop()
    listener.channels = set(channels)
    get_listener_manager().add_listener(listener)
    try:
        yield listener
    finally:
        get_listener_manager().remove_listener(listener)
        listener.loop.close()


def got(listener: Listener) -> list[wire.Fact]:
    return [event for queue in listener.channel_items.values() for event in queue]


@pytest.fixture
def feed() -> _Feed:
    feed = _Feed()
    feed.cursor = Cursor.now("default")
    return feed


def reads_data(queries: CaptureQueriesContext) -> list[str]:
    return [
        query["sql"]
        for query in queries.captured_queries
        if '"tasks_app_taskevent"."data"' in query["sql"]
    ]


@pytest.mark.parametrize("most", [5_000, 0])
def test_stopped_feed_sends_nothing(
    feed: _Feed, ada: User, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """It may be in the middle of a pass when the next listener attaches."""
    monkeypatch.setattr(relay_module, "FACTS_MAX", most)
    claimed(owner=ada)
    feed.stop()
    with listening(ALL_TASKS) as listener:
        feed._pass()
    assert got(listener) == []
    assert not listener.overflow


def test_facts_without_listeners_are_not_read(feed: _Feed) -> None:
    for _ in range(3):
        enqueued()
    with CaptureQueriesContext(connection) as queries:
        feed._pass()
    assert queries.captured_queries
    assert reads_data(queries) == []
    newest = TaskEvent.objects.latest("id")
    assert feed.cursor.covers(newest.pk, newest.transaction)


@pytest.mark.once
def test_pass_holds_one_large_fact_at_a_time(feed: _Feed, ada: User) -> None:
    """However many there are: otherwise only what listeners' queues keep is in memory."""
    _, claim = claimed(owner=ada)
    lifecycle.log({claim: [LogLine("info", "x" * 200_000) for _ in range(60)]})
    with listening(owner_channel(ada.pk)) as listener:
        tracemalloc.start()
        try:
            feed._pass()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert listener.overflow
    assert len(got(listener)) == 10
    # Each fact is in the queue twice: as data, and as the bytes to send.
    assert peak < (10 * 2 + 10) * 200_000


@pytest.mark.parametrize("kind", ["task", "owner", "all"])
def test_facts_with_listeners_are_read_once(feed: _Feed, ada: User, kind: str) -> None:
    tasks = [enqueued(), enqueued(owner=ada), enqueued()]
    channel, listened = {
        "task": (task_channel(tasks[1].pk), tasks[1:2]),
        "owner": (owner_channel(ada.pk), tasks[1:2]),
        "all": (ALL_TASKS, tasks),
    }[kind]
    with listening(channel) as listener, CaptureQueriesContext(connection) as queries:
        feed._pass()
    assert [event.task_id for event in got(listener)] == [task.pk for task in listened]
    [sql] = reads_data(queries)
    others = [
        event
        for event in TaskEvent.objects.exclude(task__in=[task.pk for task in listened])
        if f" {event.pk}," in sql or f"({event.pk})" in sql
    ]
    assert others == []


def test_listener_attached_during_a_read_misses_nothing(feed: _Feed, ada: User) -> None:
    """Either the relay sends the fact, or its cursor says that the viewer must read it."""
    listened, late = enqueued(owner=ada), enqueued(owner=ada)
    attached: list[tuple[Listener, Cursor]] = []

    def attach(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not attached and '"tasks_app_taskevent"."data"' in sql:
            attached.append((stack.enter_context(listening(task_channel(late.pk))), feed.cursor))
        return execute(sql, params, many, context)

    with (
        ExitStack() as stack,
        listening(task_channel(listened.pk)),
        connection.execute_wrapper(attach),
    ):
        feed._pass()
    [(listener, cursor)] = attached
    fact = TaskEvent.objects.get(task=late)
    sent = [event.id for event in got(listener)]
    assert sent == [fact.pk] or cursor.covers(fact.pk, fact.transaction)


def test_events_of_a_removed_task_are_skipped(feed: _Feed, ada: User) -> None:
    task = enqueued(owner=ada)
    with listening(ALL_TASKS) as listener:
        TaskEvent.objects.all().delete()
        Task.objects.filter(pk=task.pk).delete()
        feed._pass()
    assert got(listener) == []
