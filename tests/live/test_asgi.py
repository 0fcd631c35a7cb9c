"""Streams over ASGI: with the Channels consumer, and with the plain view."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.asgi import get_asgi_application
from django.db import connections
from django.test import AsyncClient, Client
from django.urls import reverse
from django_eventstream.views import get_listener_manager

from project.asgi import application
from tasks_app.live import endpoint, turns
from tasks_app.live.asgi import TaskStreamConsumer, with_task_streams
from tasks_app.live.handoff import ASGIApp
from tasks_app.models import Task
from tests.outages import ASKED, take_away
from tests.rows import enqueued

pytestmark = pytest.mark.django_db(transaction=True)

STREAMS = "/tasks/stream/"
TOO_MANY = "&".join(["task=x"] * 1001)


@pytest.fixture
def ada() -> User:
    return User.objects.create_superuser("ada")


def communicator(
    user: User | None, path: str, query: str = "", method: str = "GET"
) -> ApplicationCommunicator:
    client = Client()
    cookie = ""
    if user is not None:
        client.force_login(user)
        cookie = f"sessionid={client.cookies['sessionid'].value}"
    return ApplicationCommunicator(
        application,
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"testserver"), (b"cookie", cookie.encode())],
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1),
        },
    )


async def open_stream(
    stream_client: ApplicationCommunicator, request: dict[str, Any]
) -> tuple[int, bytes]:
    """Send a request, and return the status and the first bytes of the response."""
    await stream_client.send_input(request)
    head = await stream_client.receive_output(10)
    body = await stream_client.receive_output(10)
    return head["status"], body["body"]


REQUEST: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}


# The consumer.


@pytest.mark.parametrize("query", ["mine=1", "all=1", "task="])
def test_consumer_streams_until_the_client_disconnects(ada: User, query: str) -> None:
    task = enqueued(owner=ada)
    stream_client = communicator(ada, STREAMS, f"task={task.pk}" if query == "task=" else query)

    async def go() -> tuple[int, bytes]:
        answer = await open_stream(stream_client, REQUEST)
        await stream_client.send_input({"type": "http.disconnect"})
        await stream_client.wait(10)
        return answer

    status, body = async_to_sync(go)()
    assert status == 200
    assert b"event: task_status" in body


def test_response_does_not_wait_for_the_body(ada: User) -> None:
    """The response follows the first message of a request; the rest need not arrive."""
    stream_client = communicator(ada, STREAMS, "mine=1", method="POST")
    request = {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def go() -> tuple[int, bytes]:
        answer = await open_stream(stream_client, request)
        await stream_client.wait(10)
        return answer

    assert async_to_sync(go)() == (405, b"Use GET to read a stream.")


def test_consumer_refuses_more_fields_than_django_allows(ada: User) -> None:
    stream_client = communicator(ada, STREAMS, TOO_MANY)

    async def go() -> int:
        status, _ = await open_stream(stream_client, REQUEST)
        await stream_client.wait(10)
        return status

    assert async_to_sync(go)() == 400


@pytest.mark.parametrize(
    ("prefix", "root_path"), [("", ""), ("/sub", ""), ("", "/sub"), ("/sub", "/other")]
)
@pytest.mark.parametrize("path", ["/de/tasks/stream/", "/en/tasks/stream/", "/plain/stream/"])
def test_consumer_serves_streams_under_any_prefix(
    ada: User, settings: Any, path: str, prefix: str, root_path: str
) -> None:
    """A language, a server or a setting may add a prefix to the path."""
    settings.ROOT_URLCONF = "tests.i18n_urls"
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    settings.FORCE_SCRIPT_NAME = prefix or None
    served = with_task_streams(get_asgi_application())
    stream_client = communicator(ada, (prefix or root_path) + path, "mine=1")
    stream_client = ApplicationCommunicator(served, {**stream_client.scope, "root_path": root_path})
    consumed = []

    async def handle(consumer: Any, body: bytes) -> None:
        consumed.append(consumer.scope["path"])
        await consumer.send_response(200, b"")

    async def go() -> int:
        await stream_client.send_input(REQUEST)
        head = await stream_client.receive_output(10)
        await stream_client.wait(10)
        return int(head["status"])

    with patch.object(TaskStreamConsumer, "handle", handle):
        assert async_to_sync(go)() == 200
    assert consumed == [(prefix or root_path) + path]


# Middleware of the site.


def served(settings: Any, *middleware: str, first: bool = False) -> ASGIApp:
    """Return the site with additional middleware, after its own or before it."""
    more = [
        name if name.startswith("django") else f"tests.site_middleware.{name}"
        for name in middleware
    ]
    settings.MIDDLEWARE = [*more, *settings.MIDDLEWARE] if first else [*settings.MIDDLEWARE, *more]
    return with_task_streams(get_asgi_application())


def answered(
    site: ASGIApp, user: User | None, path: str = STREAMS, query: str = "mine=1", **more: Any
) -> tuple[int, dict[str, str], bytes]:
    """Open a stream, read its first bytes, and disconnect."""
    scope = communicator(user, path, query, more.pop("method", "GET")).scope
    for name, value in more.items():
        key = name.replace("_", "-").encode()
        others = [pair for pair in scope["headers"] if pair[0] != key]
        scope["headers"] = [*others, (key, value.encode())]
    stream_client = ApplicationCommunicator(site, scope)

    async def go() -> tuple[int, dict[str, str], bytes]:
        await stream_client.send_input(REQUEST)
        head = await stream_client.receive_output(10)
        body = (await stream_client.receive_output(10))["body"]
        await stream_client.send_input({"type": "http.disconnect"})
        await stream_client.wait(10)
        headers: dict[str, str] = {}
        for name, value in head["headers"]:
            key = name.decode().lower()
            headers[key] = ", ".join(filter(None, [headers.get(key), value.decode()]))
        return head["status"], headers, body

    return async_to_sync(go)()


def test_stream_belongs_to_the_user_set_by_middleware(ada: User, settings: Any) -> None:
    bob = User.objects.create_user("bob")
    hers, his = enqueued(owner=ada), enqueued(owner=bob)
    site = served(settings, "acting")
    for path in (STREAMS, "/api/tasks/stream"):
        status, _, body = answered(site, None, path, cookie="acting_as=bob")
        assert (status, str(his.pk).encode() in body, str(hers.pk).encode() in body) == (
            200,
            True,
            False,
        )


@pytest.mark.parametrize(
    "middleware",
    [
        ["marking"],
        ["marking", "django.middleware.gzip.GZipMiddleware"],
        ["marking", "django.middleware.http.ConditionalGetMiddleware"],
        [
            "django.middleware.cache.UpdateCacheMiddleware",
            "marking",
            "django.middleware.cache.FetchFromCacheMiddleware",
        ],
    ],
    ids=["sync", "gzip", "conditional", "cache"],
)
def test_headers_from_middleware_are_kept(ada: User, settings: Any, middleware: list[str]) -> None:
    """Changes for ordinary responses do not break the stream, even when it is opened again."""
    enqueued(owner=ada)
    site = served(settings, *middleware, first=True)
    for _ in range(2):
        status, headers, body = answered(site, ada, accept_encoding="gzip")
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert (headers["x-mark"], headers["set-cookie"]) == ("seen", "mark=seen; Path=/")
        assert headers.keys().isdisjoint({"content-length", "content-encoding", "etag"})
        assert b"event: task_status" in body


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [("closed", (503, b"Back soon.")), ("replacing", (200, b"Read the new terms first."))],
)
def test_response_that_middleware_replaces_is_no_stream(
    ada: User, settings: Any, middleware: str, expected: tuple[int, bytes]
) -> None:
    """If the view has opened a stream already, it is closed."""
    status, _, body = answered(served(settings, middleware), ada)
    assert (status, body) == expected
    assert not get_listener_manager().listeners_by_channel


def test_urlconf_set_by_middleware_is_used(
    ada: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "StreamResponse", None)
    status, _, body = answered(served(settings, "elsewhere"), ada, "/plain/stream/")
    assert (status, b": events of tasks" in body) == (200, True)


@pytest.mark.parametrize("door", [STREAMS, "/api/tasks/stream"])
@pytest.mark.parametrize("case", ["every request", "rotated key", "new password", "logged out"])
def test_stream_never_writes_a_session(ada: User, settings: Any, case: str, door: str) -> None:
    settings.SESSION_SAVE_EVERY_REQUEST = case == "every request"
    scope = communicator(ada, door, "mine=1").scope
    [cookie] = [value.decode() for name, value in scope["headers"] if name == b"cookie"]
    if case == "rotated key":
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another" * 10
    elif case == "logged out":
        Session.objects.all().delete()
    elif case == "new password":
        ada.set_password("another")
        ada.save()
    before = list(Session.objects.values())
    site = served(settings, "marking", first=True)
    status, headers, _ = answered(site, None, door, cookie=cookie)
    is_refused = case in ("new password", "logged out")
    assert status == (200 if not is_refused else 401 if "api" in door else 403)
    assert list(Session.objects.values()) == before
    # The client may have a newer session cookie by now, and this request must not delete it.
    assert headers.get("set-cookie") == "mark=seen; Path=/"


def test_openings_are_limited(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each client that reconnects after a deploy would take a database connection."""
    lock, now, peak = threading.Lock(), 0, 0

    def readable(user: Any, channels: Any) -> Any:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return real(user, channels)

    real = endpoint.readable
    monkeypatch.setattr(endpoint, "readable", readable)
    monkeypatch.setattr(turns, "OPENINGS", 2)
    stream_clients = [communicator(ada, STREAMS, "mine=1") for _ in range(8)]

    async def go() -> list[int]:
        answer = await asyncio.gather(*(open_stream(one, REQUEST) for one in stream_clients))
        for one in stream_clients:
            await one.send_input({"type": "http.disconnect"})
            await one.wait(10)
        return [status for status, _ in answer]

    assert async_to_sync(go)() == [200] * 8
    assert peak == 2


@pytest.mark.parametrize("door", [STREAMS, "/api/tasks/stream"])
def test_slow_openings_of_one_user_leave_turns_to_others(
    ada: User, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """They all open in the end, as the streams of one page must."""
    bob = User.objects.create_user("bob")
    gate, opening, peak = asyncio.Event(), 0, 0

    async def slow(relay: Any, viewer: Any, *more: Any) -> Any:
        nonlocal opening, peak
        if viewer.user == ada:
            opening += 1
            peak = max(peak, opening)
            await gate.wait()
            opening -= 1
        return await real(relay, viewer, *more)

    real = endpoint.open_stream
    monkeypatch.setattr(endpoint, "open_stream", slow)
    hers = [communicator(ada, door, "mine=1") for _ in range(turns.OPENINGS + 2)]
    his = communicator(bob, door, "mine=1")

    async def go() -> list[int]:
        hers_opening = [asyncio.create_task(open_stream(one, REQUEST)) for one in hers]
        try:
            async with asyncio.timeout(10):
                while opening < turns.OPENINGS_PER_USER:
                    await asyncio.sleep(0.01)
            status, _ = await open_stream(his, REQUEST)
        finally:
            gate.set()
        answer = await asyncio.gather(*hers_opening)
        for one in [his, *hers]:
            await one.send_input({"type": "http.disconnect"})
            await one.wait(10)
        return [status, *(status for status, _ in answer)]

    assert async_to_sync(go)() == [200] * (1 + len(hers))
    assert peak == turns.OPENINGS_PER_USER


def test_rights_are_read_after_the_wait_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = User.objects.create_user("bob")
    task = enqueued(owner=bob)
    gate, turns_of_users = asyncio.Event(), 0

    async def slow(*args: Any) -> Any:
        await gate.wait()
        return await real_open(*args)

    async def become(turn: turns.Turn, user_id: Any) -> None:
        nonlocal turns_of_users
        turns_of_users += 1
        await real_count_for(turn, user_id)

    real_open, real_count_for = endpoint.open_stream, turns.Turn._count_for
    monkeypatch.setattr(endpoint, "open_stream", slow)
    monkeypatch.setattr(turns.Turn, "_count_for", become)
    first = [communicator(bob, STREAMS, "mine=1") for _ in range(turns.OPENINGS_PER_USER)]
    last = communicator(bob, STREAMS, f"task={task.pk}")

    async def all_have_asked(count: int) -> None:
        async with asyncio.timeout(10):
            while turns_of_users < count:
                await asyncio.sleep(0.01)

    async def go() -> int:
        opening = [asyncio.create_task(open_stream(one, REQUEST)) for one in first]
        await all_have_asked(len(first))
        waiting = asyncio.create_task(open_stream(last, REQUEST))
        await all_have_asked(len(first) + 1)
        await database_sync_to_async(Task.objects.filter(pk=task.pk).update)(owner=None)
        gate.set()
        await asyncio.gather(*opening)
        status, _ = await waiting
        for one in [last, *first]:
            await one.send_input({"type": "http.disconnect"})
            await one.wait(10)
        return status

    assert async_to_sync(go)() == 404


def test_streams_per_user_are_limited(ada: User, settings: Any) -> None:
    """A client that disconnects makes room. Other users are not affected."""
    settings.TASK_STREAM_MAX_PER_USER = 2
    bob = User.objects.create_user("bob")
    first, second = (communicator(ada, STREAMS, "mine=1") for _ in range(2))

    async def opened(stream_client: ApplicationCommunicator) -> int:
        return (await open_stream(stream_client, REQUEST))[0]

    async def close_stream(stream_client: ApplicationCommunicator) -> None:
        await stream_client.send_input({"type": "http.disconnect"})
        await stream_client.wait(10)

    async def go() -> list[int]:
        statuses = [await opened(first), await opened(second)]
        for stream_client in more[:3]:
            statuses.append(await opened(stream_client))
            await close_stream(stream_client)
        await close_stream(first)
        statuses.append(await opened(more[3]))
        await close_stream(more[3])
        await close_stream(second)
        return statuses

    api = "/api/tasks/stream"
    more = [communicator(*args, "mine=1") for args in ((ada, STREAMS), (ada, api), (bob, api))]
    more.append(communicator(ada, STREAMS, "mine=1"))
    assert async_to_sync(go)() == [200, 200, 429, 429, 200, 200]
    assert not endpoint._open


@pytest.mark.parametrize("length", [None, "3000000"])
def test_body_refused_by_the_api_is_not_read(ada: User, length: str | None) -> None:
    """With or without authentication.

    The part that has arrived is dropped, and the rest need not arrive.
    """
    scope = communicator(None, "/api/tasks/", method="POST").scope
    scope["headers"].append((b"content-type", b"application/json"))
    if length:
        scope["headers"].append((b"content-length", length.encode()))
    stream_client = ApplicationCommunicator(application, scope)
    request = {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def go() -> tuple[int, bytes]:
        answer = await open_stream(stream_client, request)
        await stream_client.wait(10)
        return answer

    assert async_to_sync(go)()[0] == 401


# The plain view.


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic_requests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "ATOMIC_REQUESTS", request.param)


@pytest.fixture
def client(ada: User) -> Iterator[AsyncClient]:
    client = AsyncClient()
    client.force_login(ada)
    return client  # type: ignore[return-value]


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("query", ["mine=1", "all=1", "task=", "one"])
def test_view_streams(ada: User, client: AsyncClient, query: str) -> None:
    task = enqueued(owner=ada)
    url = {
        "task=": f"{STREAMS}?task={task.pk}",
        "one": reverse("tasks_app:stream", args=[task.pk]),
    }.get(query, f"{STREAMS}?{query}")

    async def go() -> tuple[int, str, bytes]:
        response: Any = await client.get(url)
        async with aclosing(aiter(response)) as chunks:
            return response.status_code, response.headers["Content-Type"], await anext(chunks)

    status, kind, chunk = async_to_sync(go)()
    assert (status, kind) == (200, "text/event-stream")
    assert b"event: task_status" in chunk


def test_view_forbids_transformation_of_the_stream(
    ada: User, client: AsyncClient, settings: Any
) -> None:
    """If each chunk were compressed as a separate file, browsers would read only the first."""
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", *settings.MIDDLEWARE]
    enqueued(owner=ada)

    async def go() -> tuple[str, str, bytes]:
        response: Any = await client.get(f"{STREAMS}?mine=1", headers={"Accept-Encoding": "gzip"})
        async with aclosing(response.stream) as chunks:
            headers = response.headers
            return headers["Content-Encoding"], headers["Cache-Control"], await anext(chunks)

    encoding, cache, chunk = async_to_sync(go)()
    assert (encoding, cache) == ("identity", "no-cache, no-store, no-transform, private")
    assert b"event: task_status" in chunk


@pytest.mark.usefixtures("atomic_requests")
def test_view_refuses_what_the_consumer_refuses(client: AsyncClient) -> None:
    assert async_to_sync(client.get)(STREAMS).status_code == 400
    assert async_to_sync(client.get)(f"{STREAMS}?{TOO_MANY}").status_code == 400
    assert async_to_sync(client.post)(STREAMS).status_code in (403, 405)


@pytest.mark.parametrize("at", ASKED)
def test_unavailable_database_gives_503(
    at: str, ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At every query before the first byte."""
    stream_client = communicator(ada, STREAMS, "all=1")
    take_away(monkeypatch, at)

    async def answered() -> tuple[int, bytes]:
        status, body = await open_stream(stream_client, {"type": "http.request"})
        await stream_client.wait()
        return status, body

    assert async_to_sync(answered)() == (503, b"The database does not answer. Try again later.")
    assert "No stream: the database does not answer (connection refused)" in caplog.text
