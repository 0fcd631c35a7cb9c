"""From a request to a stream, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from channels.db import database_sync_to_async
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_eventstream.utils import add_default_headers

from tasks_app.streaming.channels import BadRequest, readable, requested
from tasks_app.streaming.cursor import Cursor
from tasks_app.streaming.relay import relay
from tasks_app.streaming.stream import open_stream
from tasks_app.streaming.viewer import Viewer

if TYPE_CHECKING:
    from tasks_app.permissions import User

#: The names of the API's URLs of streams, in whatever namespace a site has put them.
API_STREAM, API_STREAMS = "tasks_app_stream", "tasks_app_streams"

#: What is answered where the database does not, and how long to wait before asking again.
AWAY, AWAY_SECONDS = "The database does not answer. Ask again later.", 5

#: The longest id that is read. One that a stream gives names the transactions in progress at two
#: moments: of three hundred it is as long as the header that proxies let pass.
CURSOR_MAX = 7_500


@dataclass
class Answer:
    """An HTTP response: a stream of bytes, or a line of text."""

    status: HTTPStatus
    text: str = ""
    stream: AsyncIterator[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    #: What of the request is wrong, where that is why.
    fields: Collection[str] = ()


class StreamResponse(StreamingHttpResponse):
    """A stream as a view returns it."""

    def __init__(self, stream: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(stream, headers=headers)
        #: As it was given: who reads it must close it, and Django's own wrapper does not.
        self.stream = stream


def respond(found: Answer) -> HttpResponse | StreamResponse:
    if found.stream is not None:
        return StreamResponse(found.stream, found.headers)
    return HttpResponse(found.text, status=found.status, headers=found.headers)


async def answer(request: HttpRequest, user: User, task_id: UUID | None = None) -> Answer:
    """Answer a request for the stream of one task, or of what its query names.

    Tasks that the user may not see are left out as if they did not exist; 404 where none is left.
    204, at which browsers stop to reconnect, to a client that resumes and has had everything.
    """
    found = await _answer(request, user, task_id)
    is_stream = found.stream is not None
    found.headers["Content-Type"] = (
        "text/event-stream" if is_stream else "text/plain; charset=utf-8"
    )
    add_default_headers(found.headers, request)
    return found


async def _answer(request: HttpRequest, user: User, task_id: UUID | None) -> Answer:
    if request.method != "GET":
        return Answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Streams are read by GET.", None, {"Allow": "GET"}
        )
    if not user.is_authenticated:
        return Answer(HTTPStatus.FORBIDDEN, "Log in to watch tasks.")
    try:
        channels = requested(request, user, task_id)
        resumed = _resumed(request)
    except BadRequest as error:
        return Answer(HTTPStatus.BAD_REQUEST, str(error), fields=error.fields)
    allowed = await database_sync_to_async(readable)(user, channels)
    if not allowed:
        return Answer(HTTPStatus.NOT_FOUND, "There is no such task, or not for you.")
    viewer = await database_sync_to_async(Viewer.of)(request, user)
    stream = await open_stream(relay, viewer, allowed, resumed)
    if stream is None:
        return Answer(HTTPStatus.NO_CONTENT)
    return Answer(HTTPStatus.OK, stream=stream)


def _resumed(request: HttpRequest) -> Cursor | None:
    """Return what the client had: by the header a browser sends, else by the query.

    A page whose parts were rendered at several moments names all of them; the earliest counts.
    """
    header = request.headers.get("Last-Event-ID")
    named = [header] if header else list(filter(None, request.GET.getlist("lastEventId")))
    if not named:
        return None
    try:
        if sum(map(len, named)) > CURSOR_MAX:
            raise ValueError
        return Cursor.earliest([Cursor.parse(text) for text in named])
    except ValueError:
        raise BadRequest(
            f"{named[0][:80]!r} is no id of this stream. Send the id of the last event, or none.",
            fields=["Last-Event-ID" if header else "lastEventId"],
        ) from None
