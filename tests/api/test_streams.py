"""The API's streams: sent by the pages' consumer, with the API's own errors."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.db import connections
from django.test import AsyncClient, Client
from django_eventstream.views import get_listener_manager

from project.asgi import application
from tasks_app.live import endpoint
from tasks_app.states import Status
from tests.api.asking import API, client_of, problem, someone
from tests.harness import PATIENCE
from tests.outages import ASKED, take_away
from tests.rows import ended, enqueued

pytestmark = pytest.mark.django_db(transaction=True)

REQUEST: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture
def ada() -> User:
    return someone()


def scope(user: User | None, path: str, query: str = "", **more: Any) -> dict[str, Any]:
    path = path if path.startswith("/") else API + path
    client = Client()
    headers = [(b"host", b"testserver")]
    if user is not None:
        client.force_login(user)
        headers.append((b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode()))
    for name, value in more.pop("headers", {}).items():
        headers.append((name.lower().encode(), value.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
    } | more


@asynccontextmanager
async def asked(scope: dict[str, Any]) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    """Send a request, yield the head and the first bytes of the response, and disconnect."""
    one = ApplicationCommunicator(application, scope)
    await one.send_input(REQUEST)
    head = await one.receive_output(10)
    body = await one.receive_output(10)
    try:
        yield head, body["body"]
    finally:
        await one.send_input({"type": "http.disconnect"})
        await one.wait(10)


def first(scope: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    async def go() -> tuple[int, dict[str, str], bytes]:
        async with asked(scope) as (head, body):
            headers = {key.decode().lower(): value.decode() for key, value in head["headers"]}
            return head["status"], headers, body

    return async_to_sync(go)()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the view sends the stream itself, because that would keep a thread."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the view sends the stream itself")

    monkeypatch.setattr(endpoint, "StreamResponse", refuse)


@pytest.mark.usefixtures("handed_over")
@pytest.mark.parametrize("query", ["one", "task=", "mine=1"])
def test_consumer_serves_the_stream(ada: User, query: str) -> None:
    task = enqueued(owner=ada)
    path = f"{task.pk}/stream" if query == "one" else "stream"
    query = {"one": "", "task=": f"task={task.pk}"}.get(query, query)
    status, headers, body = first(scope(ada, path, query))
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert b"event: task_status" in body
    assert str(task.pk).encode() in body


@pytest.mark.usefixtures("handed_over")
def test_stream_is_closed_when_its_client_disconnects(ada: User) -> None:
    enqueued(owner=ada)
    manager = get_listener_manager()
    request = scope(ada, "stream", "mine=1")

    async def go() -> int:
        async with asked(request):
            return sum(map(len, manager.listeners_by_channel.values()))

    assert async_to_sync(go)() == 1
    assert sum(map(len, manager.listeners_by_channel.values())) == 0


@pytest.mark.usefixtures("handed_over")
def test_open_streams_need_no_thread(ada: User) -> None:
    """Except the relay's, which all streams of a process share."""
    enqueued(owner=ada)

    async def are_served_by_the_relay_alone(others: set[threading.Thread]) -> None:
        # The thread of a request ends a moment after its response.
        async with asyncio.timeout(PATIENCE):
            while {one.name for one in set(threading.enumerate()) - others} != {"tasks-relay"}:
                await asyncio.sleep(0.01)

    async def go() -> None:
        others = set(threading.enumerate())
        async with asked(scopes[0]), asked(scopes[1]):
            await are_served_by_the_relay_alone(others)
            async with asked(scopes[2]), asked(scopes[3]), asked(scopes[4]), asked(scopes[5]):
                await are_served_by_the_relay_alone(others)

    scopes = [scope(ada, "stream", "mine=1") for _ in range(6)]
    async_to_sync(go)()


def detail_of(answer: tuple[int, dict[str, str], bytes], status: int) -> str:
    body = json.loads(answer[2])
    assert answer[0] == status == body["status"]
    assert answer[1]["content-type"] == "application/problem+json"
    return str(body["detail"])


@pytest.mark.usefixtures("handed_over")
def test_errors_are_problems(ada: User) -> None:
    task = enqueued(owner=someone())
    for path in (f"{task.pk}/stream", f"{uuid.uuid4()}/stream"):
        assert (
            detail_of(first(scope(ada, path)), 404)
            == "Task not found, or you don't have permission to view it."
        )
    detail_of(first(scope(ada, "stream", "all=1")), 404)
    assert (
        detail_of(first(scope(None, "stream", "mine=1")), 401)
        == "Authentication required. Log in first."
    )
    detail_of(first(scope(ada, "stream", "&".join(["task=x"] * 1001))), 400)
    answer = first(scope(ada, "stream", "mine=1", method="POST"))
    assert detail_of(answer, 405) == "POST is not allowed at this path. Use GET."
    assert answer[1]["allow"] == "GET"


@pytest.mark.usefixtures("handed_over")
@pytest.mark.parametrize(
    ("query", "headers", "fields", "detail"),
    [
        ("", {}, ["task"], "Use exactly one of ?task=<id> (may be repeated), "),
        ("mine=1&all=1", {}, ["mine", "all"], "Use exactly one of ?task="),
        ("task=x", {}, ["task"], "A task ID must be a UUID, such as "),
        (
            "&".join(f"task={n}" for n in range(101)),
            {},
            ["task"],
            "101 tasks requested, but ",
        ),
        (
            "mine=1",
            {"Last-Event-ID": "x"},
            ["Last-Event-ID"],
            "'x' is not an event ID of this stream. ",
        ),
        ("mine=1&lastEventId=y", {}, ["lastEventId"], "'y' is not an event ID of this "),
    ],
)
def test_invalid_parameters_are_reported_by_field(
    ada: User, query: str, headers: dict[str, str], fields: list[str], detail: str
) -> None:
    answer = first(scope(ada, "stream", query, headers=headers))
    assert detail in detail_of(answer, 422)
    errors = json.loads(answer[2])["errors"]
    assert list(errors) == fields
    assert all(error.startswith(detail) for error in errors.values())


@pytest.mark.usefixtures("handed_over")
@pytest.mark.parametrize("at", ASKED)
def test_database_outage_is_a_problem(
    at: str, ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is noticed, and in one line of the log."""
    asgi_scope = scope(ada, "stream", "mine=1")
    take_away(monkeypatch, at)
    answer = first(asgi_scope)
    assert detail_of(answer, 503) == "The database does not answer. Try again later."
    assert answer[1]["retry-after"] == "5"
    [record] = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "the database does not answer (connection refused): /api/" in record.getMessage()


@pytest.mark.usefixtures("handed_over")
def test_client_that_had_everything_gets_204(ada: User) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    last = task.events.last().pk
    status, _, body = first(scope(ada, f"{task.pk}/stream"))
    [cursor] = {line[4:] for line in body.decode().splitlines() if line.startswith("id: ")} or {
        str(last)
    }
    answer = first(scope(ada, f"{task.pk}/stream", headers={"Last-Event-ID": cursor}))
    assert (status, answer[0], answer[2]) == (200, 204, b"")


@pytest.mark.parametrize("atomic", [False, True])
def test_view_serves_the_stream_without_the_consumer(
    ada: User, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", atomic)
    enqueued(owner=ada)
    client = AsyncClient()
    client.force_login(ada)

    async def go() -> tuple[int, bytes]:
        response: Any = await client.get(f"{API}stream?mine=1")
        async with aclosing(response.stream) as chunks:
            return response.status_code, await anext(chunks)

    status, chunk = async_to_sync(go)()
    assert status == 200
    assert b"event: task_status" in chunk


@pytest.mark.parametrize("path", ["stream?mine=1", f"{uuid.UUID(int=1)}/stream"])
def test_streams_need_asgi(ada: User, path: str) -> None:
    assert problem(client_of(ada).get(API + path), 501) == {
        "detail": "Streams need ASGI. Serve this site with uvicorn or daphne."
    }
