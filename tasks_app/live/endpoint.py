"""From a request to a stream, or to the reason why there is none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError, close_old_connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.log import log_response
from django.views.decorators.csrf import csrf_exempt

from tasks_app.conf import task_settings
from tasks_app.live import origins
from tasks_app.live.channels import BadRequest, Wanted, readable, requested
from tasks_app.live.cursor import Cursor
from tasks_app.live.handoff import MEDIA_TYPE, Handoff, OpenStream
from tasks_app.live.relay import relay
from tasks_app.live.serving import server
from tasks_app.live.sessions import read_only
from tasks_app.live.stream import open_stream
from tasks_app.live.turns import Turn
from tasks_app.live.viewer import Viewer
from tasks_app.logs import SafeLogger

if TYPE_CHECKING:
    from tasks_app.permissions import User

logger = SafeLogger("tasks_app.relay")

#: The names of the API's URLs of streams, in whatever namespace a site has put them.
API_STREAM, API_STREAMS = "tasks_app_stream", "tasks_app_streams"

#: What is answered where the database does not, and how long to wait before asking again.
AWAY, AWAY_SECONDS = "The database does not answer. Ask again later.", 5
CLOSING = "This server is shutting down. Ask again later."

#: The longest id that is read. One that a stream gives names at most 200 transactions, by their
#: distance from each other: as a rule it has less than 100 characters, and never more than this.
CURSOR_MAX = 2_000

#: How many streams each user has open in this process.
_open: Counter[Any] = Counter()

#: Nobody may keep a stream, nor change it on the way. The site's own caches heed `private`.
HEADERS = {
    "Cache-Control": "no-cache, no-store, no-transform, private",
    "X-Accel-Buffering": "no",
}

StreamView = Callable[..., Coroutine[Any, Any, HttpResponseBase]]
Unavailable = Callable[[HttpRequest, Exception], HttpResponse]


@dataclass
class Answer:
    """An HTTP response: a stream, the channels it would carry, or a line of text."""

    status: HTTPStatus
    text: str = ""
    stream: OpenStream | None = None
    headers: dict[str, str] = field(default_factory=dict)
    #: What of the request is wrong, where that is why.
    fields: Collection[str] = ()
    #: The channels that the user may read of those asked for, where only that is asked.
    allowed: Collection[str] = ()


def unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
    """Answer 503 where a stream cannot open because the database does not answer.

    A site's log has one line instead of a traceback for each client. The pages' own script comes
    back by itself; a plain EventSource gives up at any answer but a stream.
    """
    headers = {**HEADERS, "Retry-After": str(AWAY_SECONDS)}
    response = HttpResponse(
        AWAY,
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        content_type="text/plain; charset=utf-8",
        headers=headers,
    )
    note_away(request, response, "No stream: the database does not answer (%s)", str(error))
    return response


def note_away(
    request: HttpRequest,
    response: HttpResponse,
    message: str,
    *args: str,
    logger: logging.Logger = logger,
) -> None:
    """Note that the database did not answer: for `ask_again`, and in the log, in place of Django's.

    A re-check is no line of the log: each open stream repeats it for as long as the trouble lasts.
    """
    handoff = Handoff.of(request)
    if handoff is not None:
        handoff.database_away = True
    log_response(
        message,
        *map(str.strip, args),
        request=request,
        response=response,
        logger=logger,
        level="debug" if handoff is not None and handoff.asking else "warning",
    )


def stream_view(view: StreamView, unavailable: Unavailable = unavailable) -> StreamView:
    """Make a view one that serves streams: pages' and the API's differ only in their errors.

    The site's middleware has run. The session is read and not written from here on, and the user
    is the one that middleware put into the request.
    """

    @wraps(view)
    async def streaming(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        if handoff := Handoff.of(request):
            handoff.reached = True
        if request.method == "OPTIONS":
            headers = {**HEADERS, "Allow": "GET, OPTIONS"}
            response: HttpResponseBase = HttpResponse(status=HTTPStatus.NO_CONTENT, headers=headers)
        else:
            read_only(request)
            async with Turn():
                try:
                    await sync_to_async(_resolve_user)(request)
                    response = await view(request, **kwargs)
                except (OperationalError, InterfaceError) as error:
                    response = unavailable(request, error)
                if isinstance(request, ASGIRequest):
                    # Not only when the request ends: the next one opens a connection of its own.
                    await sync_to_async(close_old_connections)()
        origins.allow(request, response)
        return response

    # Nothing is changed by asking for a stream, so POST is told 405 like any other method.
    exempt = csrf_exempt(transaction.non_atomic_requests(streaming))
    return cast(StreamView, limit_body(exempt, lambda: 0))


def limit_body(view: Any, limit: Callable[[], int]) -> Any:
    """Have `with_task_streams` drop the bodies of requests to a view that are longer than this."""
    view.body_limit = limit
    return view


def _resolve_user(request: HttpRequest) -> None:
    """Read the lazy user of Django's middleware, which must not be done in an event loop."""
    if (user := getattr(request, "user", None)) is not None:
        _ = user.is_authenticated


class StreamResponse(StreamingHttpResponse):
    """A stream as a view returns it where nobody takes it over."""

    def __init__(self, stream: OpenStream, headers: dict[str, str]) -> None:
        # GZipMiddleware would compress each chunk by itself, and browsers read only the first.
        super().__init__(stream, headers={**headers, "Content-Encoding": "identity"})
        #: As it was given: who reads it must close it, and Django's own wrapper does not.
        self.stream = stream


def respond(request: HttpRequest, found: Answer) -> HttpResponseBase:
    """Return an answer as a response; a stream as an empty one if it can be handed over."""
    handoff = Handoff.of(request)
    if handoff is not None:
        handoff.stream, handoff.allowed = found.stream, set(found.allowed)
    elif found.stream is not None:
        return StreamResponse(found.stream, found.headers)
    return HttpResponse(found.text, status=found.status, headers=found.headers)


async def answer(request: HttpRequest, user: User, task_id: UUID | None = None) -> Answer:
    """Answer a request for the stream of one task, or of what its query names.

    Tasks that the user may not see are left out as if they did not exist; 404 where none is left.
    204, at which browsers stop to reconnect, to a client that resumes and has had everything.
    """
    found = await _answer(request, user, task_id)
    is_stream = found.status == HTTPStatus.OK
    content_type = MEDIA_TYPE if is_stream else "text/plain; charset=utf-8"
    found.headers |= {**HEADERS, "Content-Type": content_type}
    return found


async def _answer(request: HttpRequest, user: User, task_id: UUID | None) -> Answer:
    if request.method != "GET":
        return Answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Streams are read by GET.", headers={"Allow": "GET"}
        )
    if not user.is_authenticated:
        return Answer(HTTPStatus.FORBIDDEN, "Log in to watch tasks.")
    try:
        channels = requested(request, user, task_id)
        resumed = _resumed(request)
        wanted = Wanted.of(request)
    except BadRequest as error:
        return Answer(HTTPStatus.BAD_REQUEST, str(error), fields=error.fields)
    handoff = Handoff.of(request)
    asking = handoff is not None and handoff.asking
    if not asking:
        # Before the rights are read: the wait may be long.
        await Turn.becomes(user.pk)
    allowed = await sync_to_async(readable)(user, channels)
    if not allowed:
        return Answer(HTTPStatus.NOT_FOUND, "There is no such task, or you may not see it.")
    if asking:
        return Answer(HTTPStatus.OK, allowed=allowed)
    server.notice(getattr(request, "scope", {}))
    if server.is_closing:
        headers = {"Retry-After": str(AWAY_SECONDS)}
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, CLOSING, headers=headers)
    most = task_settings().stream_max_per_user
    if most is not None and _open[user.pk] >= most:
        return Answer(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"You have {most} streams open, and that is the most. Close some.",
            headers={"Retry-After": str(AWAY_SECONDS)},
        )
    stream = await OpenStream.of(_opened(Viewer.of(request, user), allowed, resumed, wanted))
    if stream is None:
        return Answer(HTTPStatus.NO_CONTENT)
    return Answer(HTTPStatus.OK, stream=stream)


@contextmanager
def _counted(user: User) -> Iterator[None]:
    _open[user.pk] += 1
    try:
        yield
    finally:
        _open[user.pk] -= 1
        if not _open[user.pk]:
            del _open[user.pk]


async def _opened(
    viewer: Viewer, channels: Collection[str], resumed: Cursor | None, wanted: Wanted
) -> AsyncGenerator[bytes]:
    """Open a stream and read it; nothing if the viewer has had everything."""
    with _counted(viewer.user), server.watched():
        stream = await open_stream(relay, viewer, channels, resumed, wanted)
        if stream is None:
            return
        async with aclosing(cast(AsyncGenerator[bytes], stream)):
            async for chunk in stream:
                yield chunk


def _resumed(request: HttpRequest) -> Cursor | None:
    """Return what the client had: by the header a browser sends, else by the query.

    A page whose parts were rendered at several moments names all of them; the earliest counts.
    """
    header = request.headers.get("Last-Event-ID")
    named = [header] if header else list(filter(None, request.GET.getlist("lastEventId")))
    if not named:
        return None
    try:
        if max(map(len, named)) > CURSOR_MAX:
            raise ValueError
        return Cursor.earliest([Cursor.parse(text) for text in named])
    except ValueError:
        raise BadRequest(
            f"{named[0][:80]!r} is no id of this stream. Send the id of the last event, or none.",
            fields=["Last-Event-ID" if header else "lastEventId"],
        ) from None
