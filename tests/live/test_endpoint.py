"""From a request to a stream, or to the reason why there is none."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser, User
from django.test import RequestFactory

from tasks_app.live.endpoint import CURSOR_MAX, Answer, answer
from tasks_app.states import Status
from tests.rows import ended, enqueued

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def answered(
    user: Any, query: Any = None, task_id: UUID | None = None, method: str = "GET", **headers: str
) -> Answer:
    request = RequestFactory().generic(
        method, "/tasks/stream/", query_params=query, headers=headers
    )

    async def go() -> Answer:
        found = await answer(request, user, task_id)
        if found.stream is not None:
            await anext(found.stream)
            await found.stream.aclose()  # type: ignore[attr-defined]
        return found

    return async_to_sync(go)()


def test_a_stream_is_one(ada: User) -> None:
    found = answered(ada, task_id=enqueued(owner=ada).pk)
    assert (found.status, found.headers["Content-Type"]) == (HTTPStatus.OK, "text/event-stream")


@pytest.mark.parametrize(
    "last",
    [
        "9" * 3000,
        "1@ff" + ".1" * 101 + "@@ab",
        "x",
        "7@",
        "7@@@",
    ],
)
@pytest.mark.parametrize("by", ["header", "query"])
def test_what_is_no_id_of_a_stream_is_refused(ada: User, last: str, by: str) -> None:
    task = enqueued(owner=ada)
    if by == "header":
        found = answered(ada, task_id=task.pk, **{"Last-Event-ID": last})
    else:
        found = answered(ada, {"lastEventId": last}, task.pk)
    assert found.status == HTTPStatus.BAD_REQUEST
    assert found.text == (
        f"{last[:80]!r} is no id of this stream. Send the id of the last event, or none."
    )


@pytest.mark.parametrize(
    "last",
    [
        "9" * 30,
        "9" * CURSOR_MAX,
        f"0@{'f' * 30}@@",
        f"{'9' * 30}@9@@",
        "-5@-9@@",
        f"{'9' * 30}@1:9:@1:9:",
    ],
)
def test_a_number_that_no_database_has_is_no_trouble(ada: User, last: str) -> None:
    """Nobody gave it as an id; whether it is taken or refused, it is answered."""
    found = answered(ada, task_id=enqueued(owner=ada).pk, **{"Last-Event-ID": last})
    assert found.status in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST)


def test_who_had_everything_is_told_so(ada: User) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    last = task.events.latest("id").pk
    found = answered(ada, task_id=task.pk, **{"Last-Event-ID": f"{last}"})
    assert (found.status, found.text) == (HTTPStatus.NO_CONTENT, "")


def test_of_several_ids_the_earliest_counts(ada: User) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    newest = task.events.latest("id").pk
    had = answered(ada, {"lastEventId": [newest, newest]}, task.pk)
    assert had.status == HTTPStatus.NO_CONTENT
    some = answered(ada, {"lastEventId": [newest, newest - 1]}, task.pk)
    assert some.status == HTTPStatus.OK


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_streams_are_read_by_get(ada: User, method: str) -> None:
    found = answered(ada, task_id=enqueued(owner=ada).pk, method=method)
    assert (found.status, found.headers["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET")


def test_who_is_not_logged_in_watches_nothing(ada: User) -> None:
    found = answered(AnonymousUser(), task_id=enqueued(owner=ada).pk)
    assert (found.status, found.text) == (HTTPStatus.FORBIDDEN, "Log in to watch tasks.")


def test_what_is_anothers_is_not_there(ada: User) -> None:
    found = answered(User.objects.create_user("bob"), task_id=enqueued(owner=ada).pk)
    assert found.status == HTTPStatus.NOT_FOUND
    assert answered(ada, {"all": "1"}).status == HTTPStatus.NOT_FOUND
