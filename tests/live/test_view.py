"""The events that a viewer receives, and the end of its stream."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.db import OperationalError, connection
from django.db.models import QuerySet
from django.test import AsyncRequestFactory, Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_eventstream.views import get_listener_manager

from tasks_app.live import pages as pages_module
from tasks_app.live import stream as stream_module
from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, EventFilter, owner_channel, task_channel
from tasks_app.live.cursor import Cursor, Snapshot
from tasks_app.live.handoff import KEY, Handoff
from tasks_app.live.pages import PAGE_BYTES
from tasks_app.live.view import View
from tasks_app.live.viewer import Viewer
from tasks_app.models import Task, TaskEvent
from tasks_app.schemas import TaskProgressUpdate
from tasks_app.states import EventType
from tasks_app.store import lifecycle
from tasks_app.store.claims import claim_of
from tasks_app.tasks.progress import LogLine
from tests.live.watching import Watching, opening_of, parsed
from tests.rows import claimed, enqueued, saved, worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def staff() -> User:
    user = User.objects.create_user("staff")
    user.user_permissions.set(Permission.objects.filter(codename="view_task"))
    return user


def now() -> Cursor:
    return Cursor.now("default")


def opened(view: View, resumed: Cursor | None = None) -> list[str]:
    opening = opening_of(view, resumed, now())
    assert opening is not None
    return [event.type for event in parsed(opening)]


# A long absence.


def test_long_absence_is_replayed_in_bounded_pieces(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is: a step reads one page, and reads the next when that one is taken."""
    monkeypatch.setattr(pages_module, "SIZES_MAX", 7)
    start = now()
    _, claim = claimed(owner=ada)
    lines = ["short"] * 20 + ["x" * 10_000] * 20
    lifecycle.log({claim: [LogLine("info", line) for line in lines]})
    lifecycle.complete({claim: "y" * 100_000})
    for channel in (owner_channel(ada.pk), task_channel(claim.task_id), ALL_TASKS):
        view = View([channel])
        assert view.begin(start.beginning(), now())
        sent = list(view.catch_up(now()))
        facts = [event for piece in sent for event in parsed(piece) if event.id]
        kinds = [event.type for event in facts if event.type != "task_status"]
        assert kinds == ["task_queued", "task_started", *["task_log"] * 40, "task_completed"]
        large = [piece for piece in sent if len(piece) > PAGE_BYTES * 1.2]
        assert all(b'"y' in piece for piece in large), [len(piece) for piece in large]
        # The state and the end of the only task with a large result, each alone.
        assert all(len(parsed(piece)) == 1 for piece in large)
        assert len(sent) > 5


def test_slow_viewer_gets_what_it_missed_without_the_state(ada: User) -> None:
    (_, first), (_, second) = claimed(owner=ada), claimed(owner=ada)
    view = View([owner_channel(ada.pk)])
    until = now()
    assert opened(view) == ["task_status"] * 2
    lifecycle.log({first: [LogLine("info", "said")]})
    lifecycle.report({first: TaskProgressUpdate(text="", value=0.5)})
    assert view.cursor.id == until.id  # Others on this PostgreSQL server may have committed too.
    missed = parsed(b"".join(view.catch_up(now(), progress=True)))
    assert [event.type for event in missed] == ["task_log", "progress_update"]
    assert not any(view.catch_up(now(), progress=True))
    # Events of an attempt are sent only after the fact that it started.
    until = now()
    lifecycle.release([second])
    Task.objects.filter(pk=second.task_id).update(run_after=timezone.now() - timedelta(days=1))
    [taken] = lifecycle.claim(worker(), 1)
    lifecycle.report({claim_of(taken): TaskProgressUpdate(text="", value=0.1)})
    assert not any(view.catch_up(until, progress=True))
    missed = parsed(b"".join(view.catch_up(now(), progress=True)))
    assert [event.type for event in missed] == ["task_queued", "task_started", "progress_update"]


def requeued(owner: User, times: int) -> Task:
    """A running task that was queued again and again. Each time ended an attempt."""
    task, claim = claimed(owner=owner)
    lifecycle.report({claim: TaskProgressUpdate(text="", value=0.5)})
    TaskEvent.objects.bulk_create(
        TaskEvent(task=task, event_type=EventType.QUEUED, timestamp=timezone.now())
        for _ in range(times)
    )
    return task


def test_history_that_is_not_wanted_is_not_read(ada: User) -> None:
    requeued(ada, 300)
    until = now()
    for kinds in ({"task_status"}, {"task_status", "task_log"}):
        view = View([owner_channel(ada.pk)], EventFilter(frozenset(kinds)))
        assert view.begin(until.beginning(), until)
        with CaptureQueriesContext(connection) as read:
            [states] = view.catch_up(until)
        assert [event.type for event in parsed(states)] == ["task_status"]
        assert len(read) <= 2
        assert view.cursor == until


@pytest.fixture
def tiny_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fact to a page."""
    monkeypatch.setattr(pages_module, "PAGE_BYTES", 1)


@pytest.mark.usefixtures("tiny_pages")
@pytest.mark.parametrize("by_owner", [True, False])
def test_an_opening_reads_a_bounded_number_of_pages(ada: User, by_owner: bool) -> None:
    """Even if the viewer wants nothing of them: other viewers wait for it."""
    task = requeued(ada, 50)
    until = now()
    channel = owner_channel(ada.pk) if by_owner else task_channel(task.pk)
    view = View([channel], EventFilter(frozenset({"task_status", "progress_update"})))
    opening = stream_module._open(view, until.beginning(), until)
    assert opening is not None
    first, rest = opening
    assert [event.type for event in parsed(first)] == ["task_status"]
    assert rest is not None
    # The first task_queued, and 50 more.
    unread = 51 - (stream_module.OPENING_PAGES - 1)
    assert list(rest) == [b""] * unread
    # The state had this progress, so it is not sent again.
    assert not any(view.catch_up(now(), progress=True))


@pytest.mark.usefixtures("tiny_pages")
@pytest.mark.parametrize(("seconds", "keep_alives"), [(1e-6, 30), (100.0, 0)])
def test_keep_alives_are_sent_while_pages_have_nothing_to_send(
    ada: User, settings: Any, seconds: float, keep_alives: int
) -> None:
    settings.TASK_STREAM_KEEPALIVE_SECONDS = seconds
    task = requeued(ada, 40)
    claim = claim_of(task)
    channels, start = [task_channel(task.pk)], now().beginning()
    event_filter = EventFilter(frozenset({"task_status", "progress_update"}))

    async def watch() -> list[bytes]:
        async with Watching(ada, channels, start, event_filter) as watching:
            await database_sync_to_async(lifecycle.complete)({claim: None})
            async with asyncio.timeout(20):
                return [chunk async for chunk in watching._stream]

    *chunks, end = async_to_sync(watch)()
    assert set(chunks) <= {wire.KEEP_ALIVE}
    assert len(chunks) >= keep_alives
    assert end == wire.STREAM_END


# Cuts.


def snapshot(xmax: int, *in_progress: int) -> Snapshot:
    return Snapshot(xmax, frozenset(in_progress))


def replayed(
    had: Cursor, facts: QuerySet[TaskEvent], until: Cursor
) -> list[tuple[TaskEvent, Cursor]]:
    return list(itertools.chain.from_iterable(had.replay(facts, until)))


def test_nothing_comes_twice_or_out_of_order_after_any_cut() -> None:
    """Transaction 100 took the id 11 and committed after ids 12 to 14 were sent.

    The viewer is cut off in the first batch, and again during the replay.
    """
    late, other = saved(), saved()
    rows = [(11, late, 100), (12, other, 101), (13, other, 102), (14, other, 103), (15, late, 108)]
    TaskEvent.objects.bulk_create(
        TaskEvent(
            id=number,
            task=task,
            event_type=EventType.LOG,
            timestamp=timezone.now(),
            transaction=transaction,
        )
        for number, task, transaction in rows
    )
    facts = TaskEvent.objects.all()
    start = Cursor(10, snapshot(100), snapshot(100))
    batches = [
        Cursor(14, snapshot(104, 100), snapshot(104, 100)),
        Cursor(14, snapshot(106), snapshot(106)),
        Cursor(15, snapshot(110), snapshot(110)),
    ]
    for cuts in itertools.product(range(5), repeat=2):
        had, sent = start, list[int]()
        for until, cut in zip(batches, [*cuts, None], strict=True):
            for row, cursor in replayed(had, facts, until)[:cut]:
                sent.append(row.pk)
                had = cursor
        assert sorted(sent) == [11, 12, 13, 14, 15], (cuts, sent)
        assert [number for number in sent if number not in (11, 15)] == [12, 13, 14], (cuts, sent)
        assert sent.index(11) < sent.index(15), (cuts, sent)


def test_late_facts_follow_the_interrupted_batch() -> None:
    task, other = saved(), saved()
    for number, of, transaction in ((10, other, 100), (11, task, 101), (12, task, 102)):
        TaskEvent.objects.create(
            id=number,
            task=of,
            event_type=EventType.LOG,
            timestamp=timezone.now(),
            transaction=transaction,
        )
    had = Cursor(11, snapshot(100), snapshot(104, 100))
    until = Cursor(12, snapshot(110), snapshot(110))
    found = replayed(had, TaskEvent.objects.all(), until)
    assert [row.pk for row, _ in found] == [12, 10]
    for position, (_, cursor) in enumerate(found, start=1):
        rest = replayed(cursor, TaskEvent.objects.all(), until)
        assert [row.pk for row, _ in rest] == [12, 10][position:]


# Selected events.


def test_stream_sends_only_selected_events(ada: User) -> None:
    """In the opening, from the relay, and in what it reads afterwards."""
    event_filter = EventFilter(
        frozenset({"task_status", "task_completed", "progress_update"}), results=False
    )
    (running, claim), (done, ended) = claimed(owner=ada), claimed(owner=ada)
    lifecycle.complete({ended: "y" * 1_000})
    channels = [task_channel(running.pk), task_channel(done.pk)]
    start = now()

    async def watch() -> Watching:
        async with Watching(ada, channels, start.beginning(), event_filter) as watching:
            lines = {claim: [LogLine("info", str(number)) for number in range(30)]}
            await database_sync_to_async(lifecycle.log)(lines)
            await database_sync_to_async(lifecycle.complete)({claim: "y" * 1_000})
            await watching.finish()
            return watching

    watching = async_to_sync(watch)()
    assert watching.types == ["task_status"] * 2 + ["task_completed"] * 2
    assert not any("result" in event.data for event in watching.seen)


def test_view_ends_even_if_no_terminal_event_is_selected(ada: User) -> None:
    task, claim = claimed(owner=ada)
    view = View([task_channel(task.pk)], EventFilter(frozenset({"task_log"})))
    assert opened(view) == []
    lifecycle.log({claim: [LogLine("info", "said")]})
    lifecycle.complete({claim: None})
    types = [event.type for event in parsed(b"".join(view.catch_up(now(), progress=True)))]
    assert types == ["task_log"]
    assert view.ended


# Reduced rights.


def test_view_of_tasks_ends_with_the_last_readable_one(ada: User) -> None:
    first, second = enqueued(owner=ada), enqueued(owner=ada)
    channels = [task_channel(task.pk) for task in (first, second)]
    view = View(channels)
    opening_of(view, None, now())
    view.narrow(channels)
    assert view.open_tasks == {first.pk, second.pk}
    view.narrow(channels[1:])
    assert view.open_tasks == {second.pk}
    assert not view.ended
    view.narrow([])
    assert view.ended


def test_nothing_is_sent_of_a_task_that_may_no_longer_be_read(ada: User) -> None:
    """The rest of the stream continues. The read of missed events omits the task too."""
    (kept, kept_claim), (taken, taken_claim) = claimed(owner=ada), claimed(owner=ada)
    channels = [task_channel(task.pk) for task in (kept, taken)]
    view = View(channels)
    opening_of(view, None, now())
    had = view.cursor
    view.narrow(channels[:1])
    lifecycle.log({claim: [LogLine("info", "said")] for claim in (kept_claim, taken_claim)})
    lines = TaskEvent.objects.filter(event_type=EventType.LOG).order_by("pk")
    sent = [wire.fact(row, had.at(row.pk, now())) for row in lines]
    assert [fact.task_id for fact in sent if view.admit(fact)] == [kept.pk]
    healed = parsed(opening_of(view, had, now()) or b"")
    assert {event.message["task_id"] for event in healed} == {str(kept.pk)}


@pytest.mark.usefixtures("tiny_pages")
def test_no_state_is_sent_of_a_task_that_may_no_longer_be_read(ada: User) -> None:
    """A long opening may take longer than the time between two checks of the rights."""
    ended = [claimed(owner=ada) for _ in range(3)]
    for task, claim in ended:
        lifecycle.complete({claim: f"secret of {task.pk}"})
    view = View([task_channel(task.pk) for task, _ in ended])
    assert view.begin(None, now())
    opening = view.catch_up(now())
    sent: list[str] = []
    while not sent:
        sent = [event.message["task_id"] for event in parsed(next(opening))]
    view.narrow([f"task-{sent[0]}"])
    assert {event.message["task_id"] for event in parsed(b"".join(opening))} == set(sent)


def test_narrowing_does_not_reopen_a_finished_task(ada: User) -> None:
    task, claim = claimed(owner=ada)
    lifecycle.complete({claim: None})
    view = View([task_channel(task.pk)])
    opening_of(view, None, now())
    view.narrow([task_channel(task.pk)])
    assert view.ended


@pytest.mark.parametrize("channel", [ALL_TASKS, "owner-1"])
def test_endless_view_ends_when_it_may_no_longer_be_read(channel: str) -> None:
    view = View([channel])
    opening_of(view, None, now())
    view.narrow({channel})
    assert not view.ended
    view.narrow(set())
    assert view.ended


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setattr(stream_module, "RECHECK_SECONDS", 0.05)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 0.02


def finish(viewer: User | Viewer, channel: str, change: Any) -> list[str]:
    """Watch, make a change in the database, watch to the end, and return the events seen."""

    async def watch() -> list[str]:
        async with Watching(viewer, {channel}) as watching:
            await database_sync_to_async(change)()
            await watching.finish()
            return watching.types

    return async_to_sync(watch)()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["permission", "account", "deletion"])
def test_stream_of_all_tasks_ends_with_the_permission(staff: User, change: str) -> None:
    changes = {
        "permission": staff.user_permissions.clear,
        "account": lambda: User.objects.filter(pk=staff.pk).update(is_active=False),
        "deletion": lambda: User.objects.filter(pk=staff.pk).delete(),
    }
    assert finish(staff, ALL_TASKS, changes[change]) == []


@pytest.mark.usefixtures("often")
def test_stream_of_own_tasks_ends_with_the_account(ada: User) -> None:
    enqueued(owner=ada)

    def leave() -> None:
        User.objects.filter(pk=ada.pk).update(is_active=False)

    assert finish(ada, owner_channel(ada.pk), leave) == ["task_status"]


def signed_in(user: User, path: str, query: str = "") -> tuple[SessionBase, Viewer]:
    """Return a user's session, and the viewer of a stream that was opened with it."""
    client = Client()
    client.force_login(user)
    scope = AsyncRequestFactory()._base_scope(path=path, query_string=query)
    cookie = f"sessionid={client.session.session_key}"
    scope["headers"] = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
    # Created here, so that it uses the test's settings.
    scope[KEY] = Handoff(ASGIHandler())
    return client.session, Viewer.of(ASGIRequest(scope, io.BytesIO()), user)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["sign-out", "expiry", "password", "another user"])
@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file"])
def test_stream_ends_with_its_session(
    ada: User, change: str, engine: str, settings: Any, tmp_path: Path
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_FILE_PATH = tmp_path
    session, viewer = signed_in(ada, "/tasks/stream/", "mine=1")

    def sign_in_as_another() -> None:
        session[SESSION_KEY] = str(User.objects.create_user("bob").pk)
        session.save()

    def expire() -> None:
        session.set_expiry(timezone.now() - timedelta(seconds=1))
        session.save()

    def change_password() -> None:
        user = User.objects.get(pk=ada.pk)
        user.set_password("another")
        user.save()

    changes = {
        "sign-out": session.flush,
        "expiry": expire,
        "password": change_password,
        "another user": sign_in_as_another,
    }
    assert finish(viewer, owner_channel(ada.pk), changes[change]) == []


@pytest.mark.usefixtures("often")
def test_stream_ends_when_its_task_is_removed(ada: User) -> None:
    task = enqueued(owner=ada)

    def remove() -> None:
        Task.objects.filter(pk=task.pk).delete()

    assert finish(ada, task_channel(task.pk), remove) == ["task_status"]


@pytest.mark.usefixtures("often")
def test_stream_ends_when_its_task_changes_owner(ada: User) -> None:
    task = enqueued(owner=ada)
    bob = User.objects.create_user("bob")

    def give_away() -> None:
        Task.objects.filter(pk=task.pk).update(owner=bob)

    assert finish(ada, task_channel(task.pk), give_away) == ["task_status"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("by_session", [True, False])
def test_stream_continues_while_its_viewer_may_read(ada: User, by_session: bool) -> None:
    task, claim = claimed(owner=ada)
    path = f"/tasks/{task.pk}/stream/"
    viewer = signed_in(ada, path)[1] if by_session else ada

    async def watch() -> list[str]:
        async with Watching(viewer, {task_channel(task.pk)}) as watching:
            for _ in range(10):  # keep-alives, and re-checks between them
                await watching.next()
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching.types

    assert async_to_sync(watch)() == ["task_status", "task_completed"]


def overflown() -> bool:
    """Return whether a listener's queue has overflowed."""
    manager = get_listener_manager()
    with manager.lock:
        found = list(manager.listeners_by_channel.values())
        return any(listener.overflow for listeners in found for listener in listeners)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("lines", [5, 30], ids=["kept", "overflow"])
@pytest.mark.parametrize("may_read", [True, False])
def test_no_event_is_sent_before_a_due_re_check(
    ada: User, monkeypatch: pytest.MonkeyPatch, lines: int, may_read: bool
) -> None:
    """While the site cannot decide, its streams send only keep-alives, and miss nothing."""
    task, claim = claimed(owner=ada)
    channel = task_channel(task.pk)
    decides, checks = asyncio.Event(), 0

    async def ask() -> set[str]:
        nonlocal checks
        checks += 1
        if not decides.is_set():
            raise OperationalError("the server went away")
        return {channel} if may_read else set()

    def held() -> bool:
        """Return whether something is queued for the viewer."""
        manager = get_listener_manager()
        with manager.lock:
            [listener] = manager.listeners_by_channel[channel]
            return (
                listener.overflow
                if lines > 10
                else len(listener.channel_items.get(channel, [])) > lines
            )

    async def watch() -> list[str]:
        async with Watching(Viewer(ada, ask), {channel}) as watching:
            while not checks:
                await watching.next()
            monkeypatch.setattr(stream_module, "TROUBLE_SECONDS", 0.01)
            log_lines = {claim: [LogLine("info", str(number)) for number in range(lines)]}
            await database_sync_to_async(lifecycle.log)(log_lines)
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            async with asyncio.timeout(20):
                while not held():
                    await asyncio.sleep(0.01)
            for _ in range(3):
                assert await watching.next() == []
            decides.set()
            await watching.finish()
            return watching.types

    facts = ["task_log"] * lines + ["task_completed"] if may_read else []
    assert async_to_sync(watch)() == ["task_status", *facts]


def test_re_check_does_not_wait_for_a_keep_alive(
    ada: User, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(stream_module, "RECHECK_SECONDS", 0.05)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 3600

    def leave() -> None:
        User.objects.filter(pk=ada.pk).update(is_active=False)

    assert finish(ada, owner_channel(ada.pk), leave) == []


@pytest.mark.usefixtures("tiny_pages")
def test_re_check_that_falls_due_between_two_pages_comes_first(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow viewer takes the pages of a burst of events one by one."""
    _, claim = claimed(owner=ada)
    channel = owner_channel(ada.pk)

    async def watch() -> list[str]:
        async with Watching(ada, {channel}) as watching:
            monkeypatch.setattr(stream_module, "RECHECK_SECONDS", 0.0)
            lines = {claim: [LogLine("info", str(number)) for number in range(5)]}
            await database_sync_to_async(lifecycle.log)(lines)
            await watching.sees("task_log")
            await database_sync_to_async(User.objects.filter(pk=ada.pk).update)(is_active=False)
            passed = time.monotonic() + 3600
            monkeypatch.setattr(stream_module.time, "monotonic", lambda: passed)
            await watching.finish()
            return watching.types

    assert async_to_sync(watch)() == ["task_status", "task_log"]


def test_fact_that_cannot_be_encoded_is_skipped_in_a_replay(
    ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a client would resume before it again and again, and get no further."""
    start = now()
    task, claim = claimed(owner=ada)
    TaskEvent.objects.create(
        task=task, event_type=EventType.LOG, timestamp=timezone.now(), data=["no", "mapping"]
    )
    lifecycle.complete({claim: 7})
    view = View([task_channel(task.pk)])
    assert opened(view, start.beginning()) == [
        "task_status",
        "task_queued",
        "task_started",
        "task_completed",
    ]
    assert view.ended
    assert "cannot be sent and was skipped" in caplog.text


def test_states_are_sent_again_if_the_replaced_database_was_away(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueued(owner=ada)
    view = View([owner_channel(ada.pk)])
    assert opened(view) == ["task_status"]
    real = View._of_owner

    def away(*_args: Any) -> Any:
        raise OperationalError("the server went away")

    until = dataclasses.replace(now(), before=snapshot(10), batch=snapshot(10), timeline="promoted")
    view.cursor = dataclasses.replace(until, timeline="lost")
    monkeypatch.setattr(View, "_of_owner", away)
    with pytest.raises(OperationalError):
        next(view.catch_up(until))
    monkeypatch.setattr(View, "_of_owner", real)
    assert [event.type for event in parsed(next(view.catch_up(until)))] == ["task_status"]


@pytest.mark.usefixtures("often")
def test_unavailable_database_ends_no_stream(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no event is lost: a slow viewer reads what the listener did not keep."""
    task, claim = claimed(owner=ada)
    away = 0
    real_replay = View._replay

    def ask(do: Any) -> Any:
        def failing_while_away(*args: Any) -> Any:
            nonlocal away
            away -= 1
            if away >= 0:
                raise OperationalError("the server went away")
            return do(*args)

        return failing_while_away

    async def watch() -> list[str]:
        nonlocal away
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            monkeypatch.setattr(View, "_replay", ask(real_replay))
            away = 3
            # More than a listener keeps.
            lines = {claim: [LogLine("info", str(number)) for number in range(30)]}
            await database_sync_to_async(lifecycle.log)(lines)
            # If it read earlier, it would take each event as it comes.
            async with asyncio.timeout(20):
                while not overflown():
                    await asyncio.sleep(0.01)
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching.types

    types = async_to_sync(watch)()
    assert away < 0
    facts_seen = [kind for kind in types if kind != "task_status"]
    assert facts_seen == ["task_log"] * 30 + ["task_completed"]


def test_stream_of_a_missing_task_ends_immediately() -> None:
    view = View([task_channel(uuid.uuid4())])
    assert opened(view) == []
    assert view.ended
