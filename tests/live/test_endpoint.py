"""The endpoint: from a request to a stream, or to an error."""

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
        result = await answer(request, user, task_id)
        if result.stream is not None:
            await anext(result.stream)
            await result.stream.aclose()  # type: ignore[attr-defined]
        return result

    return async_to_sync(go)()


def test_request_opens_a_stream(ada: User) -> None:
    result = answered(ada, task_id=enqueued(owner=ada).pk)
    assert (result.status, result.headers["Content-Type"]) == (HTTPStatus.OK, "text/event-stream")


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
def test_invalid_last_event_id_is_refused(ada: User, last: str, by: str) -> None:
    task = enqueued(owner=ada)
    if by == "header":
        result = answered(ada, task_id=task.pk, **{"Last-Event-ID": last})
    else:
        result = answered(ada, {"lastEventId": last}, task.pk)
    assert result.status == HTTPStatus.BAD_REQUEST
    assert result.text == (
        f"{last[:80]!r} is not an event ID of this stream. Send the ID of the last event that you "
        f"received, or none."
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
def test_numbers_beyond_the_databases_range_are_handled(ada: User, last: str) -> None:
    """The server never sent such an id. It may be accepted or refused, but must not fail."""
    result = answered(ada, task_id=enqueued(owner=ada).pk, **{"Last-Event-ID": last})
    assert result.status in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST)


def test_viewer_that_had_everything_gets_204(ada: User) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    last = task.events.latest("id").pk
    result = answered(ada, task_id=task.pk, **{"Last-Event-ID": f"{last}"})
    assert (result.status, result.text) == (HTTPStatus.NO_CONTENT, "")


def test_earliest_of_several_ids_counts(ada: User) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    newest = task.events.latest("id").pk
    had = answered(ada, {"lastEventId": [newest, newest]}, task.pk)
    assert had.status == HTTPStatus.NO_CONTENT
    some = answered(ada, {"lastEventId": [newest, newest - 1]}, task.pk)
    assert some.status == HTTPStatus.OK


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_only_get_is_allowed(ada: User, method: str) -> None:
    result = answered(ada, task_id=enqueued(owner=ada).pk, method=method)
    assert (result.status, result.headers["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET")


def test_anonymous_user_is_refused(ada: User) -> None:
    result = answered(AnonymousUser(), task_id=enqueued(owner=ada).pk)
    assert (result.status, result.text) == (HTTPStatus.FORBIDDEN, "Log in to watch tasks.")


def test_other_users_task_is_not_found(ada: User) -> None:
    result = answered(User.objects.create_user("bob"), task_id=enqueued(owner=ada).pk)
    assert result.status == HTTPStatus.NOT_FOUND
    assert answered(ada, {"all": "1"}).status == HTTPStatus.NOT_FOUND
