"""What one viewer is sent, and when the stream ends."""

from __future__ import annotations

import asyncio
import io
import itertools
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
from django.db import OperationalError
from django.db.models import QuerySet
from django.test import AsyncRequestFactory, Client
from django.utils import timezone
from django_eventstream.views import get_listener_manager

from tasks_app.live import pages as pages_module
from tasks_app.live import stream as stream_module
from tasks_app.live import wire
from tasks_app.live.channels import ALL_TASKS, Wanted, owner_channel, task_channel
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


# Who was away for long.


def test_who_was_away_is_told_all_in_bounded_pieces(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is: a step reads one page, and the next is read when that one is taken."""
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
        # The state and the end of the one task that has a large result, each by itself.
        assert all(len(parsed(piece)) == 1 for piece in large)
        assert len(sent) > 5


def test_who_is_slow_is_sent_what_it_missed_and_no_state_again(ada: User) -> None:
    (_, first), (_, second) = claimed(owner=ada), claimed(owner=ada)
    view = View([owner_channel(ada.pk)])
    until = now()
    assert opened(view) == ["task_status"] * 2
    lifecycle.log({first: [LogLine("info", "said")]})
    lifecycle.report({first: TaskProgressUpdate(text="", value=0.5)})
    assert view.had.id == until.id  # Others of this cluster may have committed meanwhile.
    missed = parsed(b"".join(view.catch_up(now(), progress=True)))
    assert [event.type for event in missed] == ["task_log", "progress_update"]
    assert not any(view.catch_up(now(), progress=True))
    # Of an attempt whose beginning is yet to be told, nothing is told before it.
    until = now()
    lifecycle.release([second])
    Task.objects.filter(pk=second.task_id).update(run_after=timezone.now() - timedelta(days=1))
    [taken] = lifecycle.claim(worker(), 1)
    lifecycle.report({claim_of(taken): TaskProgressUpdate(text="", value=0.1)})
    assert not any(view.catch_up(until, progress=True))
    missed = parsed(b"".join(view.catch_up(now(), progress=True)))
    assert [event.type for event in missed] == ["task_queued", "task_started", "progress_update"]


# Who is cut off in the middle.


def snapshot(xmax: int, *in_progress: int) -> Snapshot:
    return Snapshot(xmax, frozenset(in_progress))


def replayed(
    had: Cursor, facts: QuerySet[TaskEvent], until: Cursor
) -> list[tuple[TaskEvent, Cursor]]:
    return list(itertools.chain.from_iterable(had.replay(facts, until)))


def test_nothing_comes_twice_or_out_of_order_wherever_a_viewer_is_cut_off() -> None:
    """Transaction 100 drew the id 11 and committed after those with 12 to 14 were sent.

    The viewer is cut off in the first batch, and again in what is replayed.
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


def test_what_came_late_follows_the_batch_that_was_cut() -> None:
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


# What is wanted.


def test_a_stream_carries_no_more_than_is_wanted(ada: User) -> None:
    """Of what it opens with, of what the relay brings, and of what it reads afterwards."""
    wanted = Wanted(frozenset({"task_status", "task_completed", "progress_update"}), results=False)
    (running, claim), (done, ended) = claimed(owner=ada), claimed(owner=ada)
    lifecycle.complete({ended: "y" * 1_000})
    channels = [task_channel(running.pk), task_channel(done.pk)]
    start = now()

    async def watch() -> Watching:
        async with Watching(ada, channels, start.beginning(), wanted) as watching:
            lines = {claim: [LogLine("info", str(number)) for number in range(30)]}
            await database_sync_to_async(lifecycle.log)(lines)
            await database_sync_to_async(lifecycle.complete)({claim: "y" * 1_000})
            await watching.finish()
            return watching

    watching = async_to_sync(watch)()
    # Of a viewer who resumed, progress may be told once more after the facts that led to it.
    told = [kind for kind in watching.types if kind != "progress_update"]
    assert told == ["task_status"] * 2 + ["task_completed"] * 2
    assert not any("result" in event.data for event in watching.seen)


def test_a_view_ends_though_no_end_is_wanted(ada: User) -> None:
    task, claim = claimed(owner=ada)
    view = View([task_channel(task.pk)], Wanted(frozenset({"task_log"})))
    assert opened(view) == []
    lifecycle.log({claim: [LogLine("info", "said")]})
    lifecycle.complete({claim: None})
    told = [event.type for event in parsed(b"".join(view.catch_up(now(), progress=True)))]
    assert told == ["task_log"]
    assert view.ended


# Narrowing.


def test_a_view_of_tasks_ends_with_the_last_that_may_be_read(ada: User) -> None:
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


def test_nothing_more_is_sent_of_what_may_not_be_read_any_more(ada: User) -> None:
    """While the rest of the stream goes on; nor by healing, which reads the database."""
    (kept, kept_claim), (taken, taken_claim) = claimed(owner=ada), claimed(owner=ada)
    channels = [task_channel(task.pk) for task in (kept, taken)]
    view = View(channels)
    opening_of(view, None, now())
    had = view.had
    view.narrow(channels[:1])
    lifecycle.log({claim: [LogLine("info", "said")] for claim in (kept_claim, taken_claim)})
    lines = TaskEvent.objects.filter(event_type=EventType.LOG).order_by("pk")
    sent = [wire.fact(row, had.at(row.pk, now())) for row in lines]
    assert [fact.task_id for fact in sent if view.admit(fact)] == [kept.pk]
    healed = parsed(opening_of(view, had, now()) or b"")
    assert {event.message["task_id"] for event in healed} == {str(kept.pk)}


def test_narrowing_brings_no_ended_task_back(ada: User) -> None:
    task, claim = claimed(owner=ada)
    lifecycle.complete({claim: None})
    view = View([task_channel(task.pk)])
    opening_of(view, None, now())
    view.narrow([task_channel(task.pk)])
    assert view.ended


@pytest.mark.parametrize("channel", [ALL_TASKS, "owner-1"])
def test_a_view_without_end_ends_when_it_may_not_be_read(channel: str) -> None:
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
    """Watch, change something in the database, watch to the end; return what was seen."""

    async def watch() -> list[str]:
        async with Watching(viewer, {channel}) as watching:
            await database_sync_to_async(change)()
            await watching.finish()
            return watching.types

    return async_to_sync(watch)()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["permission", "account", "deletion"])
def test_a_stream_of_all_ends_with_the_right_to_it(staff: User, change: str) -> None:
    changes = {
        "permission": staff.user_permissions.clear,
        "account": lambda: User.objects.filter(pk=staff.pk).update(is_active=False),
        "deletion": lambda: User.objects.filter(pk=staff.pk).delete(),
    }
    assert finish(staff, ALL_TASKS, changes[change]) == []


@pytest.mark.usefixtures("often")
def test_a_stream_of_ones_own_ends_with_the_account(ada: User) -> None:
    enqueued(owner=ada)

    def leave() -> None:
        User.objects.filter(pk=ada.pk).update(is_active=False)

    assert finish(ada, owner_channel(ada.pk), leave) == ["task_status"]


def signed_in(user: User, path: str, query: str = "") -> tuple[SessionBase, Viewer]:
    """The session of a user, and the viewer who opened a stream by it, at this path."""
    client = Client()
    client.force_login(user)
    scope = AsyncRequestFactory()._base_scope(path=path, query_string=query)
    cookie = f"sessionid={client.session.session_key}"
    scope["headers"] = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
    # Made here, so that it goes by the settings of the test.
    scope[KEY] = Handoff(ASGIHandler())
    return client.session, Viewer.of(ASGIRequest(scope, io.BytesIO()), user)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["sign-out", "expiry", "password", "another user"])
@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file"])
def test_a_stream_ends_with_the_session_it_was_opened_by(
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
def test_a_stream_ends_when_its_task_is_removed(ada: User) -> None:
    task = enqueued(owner=ada)

    def remove() -> None:
        Task.objects.filter(pk=task.pk).delete()

    assert finish(ada, task_channel(task.pk), remove) == ["task_status"]


@pytest.mark.usefixtures("often")
def test_a_stream_ends_when_its_task_is_anothers(ada: User) -> None:
    task = enqueued(owner=ada)
    bob = User.objects.create_user("bob")

    def give_away() -> None:
        Task.objects.filter(pk=task.pk).update(owner=bob)

    assert finish(ada, task_channel(task.pk), give_away) == ["task_status"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("by_session", [True, False])
def test_who_still_may_reads_on(ada: User, by_session: bool) -> None:
    task, claim = claimed(owner=ada)
    path = f"/tasks/{task.pk}/stream/"
    viewer = signed_in(ada, path)[1] if by_session else ada

    async def watch() -> list[str]:
        async with Watching(viewer, {task_channel(task.pk)}) as watching:
            for _ in range(10):  # signs of life, and looks between them
                await watching.next()
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            await watching.finish()
            return watching.types

    assert async_to_sync(watch)() == ["task_status", "task_completed"]


def overflown() -> bool:
    """Whether more has come for somebody than a listener keeps."""
    manager = get_listener_manager()
    with manager.lock:
        found = list(manager.listeners_by_channel.values())
        return any(listener.overflow for listeners in found for listener in listeners)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("lines", [5, 30], ids=["kept", "overflow"])
@pytest.mark.parametrize("may_read", [True, False])
def test_no_event_is_sent_before_a_re_check_that_is_due(
    ada: User, monkeypatch: pytest.MonkeyPatch, lines: int, may_read: bool
) -> None:
    """While the site cannot decide, its streams say only that they are alive, and miss nothing."""
    task, claim = claimed(owner=ada)
    channel = task_channel(task.pk)
    decides, asked = asyncio.Event(), 0

    async def ask() -> set[str]:
        nonlocal asked
        asked += 1
        if not decides.is_set():
            raise OperationalError("the server went away")
        return {channel} if may_read else set()

    def held() -> bool:
        """Whether something waits for the viewer."""
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
            while not asked:
                await watching.next()
            monkeypatch.setattr(stream_module, "TROUBLE_SECONDS", 0.01)
            said = {claim: [LogLine("info", str(number)) for number in range(lines)]}
            await database_sync_to_async(lifecycle.log)(said)
            await database_sync_to_async(lifecycle.complete)({claim: 7})
            async with asyncio.timeout(20):
                while not held():
                    await asyncio.sleep(0.01)
            for _ in range(3):
                assert await watching.next() == []
            decides.set()
            await watching.finish()
            return watching.types

    told = ["task_log"] * lines + ["task_completed"] if may_read else []
    assert async_to_sync(watch)() == ["task_status", *told]


def test_a_re_check_waits_for_no_sign_of_life(
    ada: User, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(stream_module, "RECHECK_SECONDS", 0.05)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 3600

    def leave() -> None:
        User.objects.filter(pk=ada.pk).update(is_active=False)

    assert finish(ada, owner_channel(ada.pk), leave) == []


@pytest.mark.usefixtures("often")
def test_a_database_that_is_away_ends_no_stream(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a viewer miss an event by it: a slow one is told what the listener did not keep."""
    task, claim = claimed(owner=ada)
    away = 0
    real_replay = View._replay

    def ask(do: Any) -> Any:
        def asked(*args: Any) -> Any:
            nonlocal away
            away -= 1
            if away >= 0:
                raise OperationalError("the server went away")
            return do(*args)

        return asked

    async def watch() -> list[str]:
        nonlocal away
        async with Watching(ada, {task_channel(task.pk)}) as watching:
            monkeypatch.setattr(View, "_replay", ask(real_replay))
            away = 3
            # More at once than a listener keeps.
            lines = {claim: [LogLine("info", str(number)) for number in range(30)]}
            await database_sync_to_async(lifecycle.log)(lines)
            # Read on before, it would take what comes as it comes.
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


def test_a_stream_of_nothing_that_exists_ends_at_once() -> None:
    view = View([task_channel(uuid.uuid4())])
    assert opened(view) == []
    assert view.ended
