"""The endpoint of streams: it answers a request with a stream, or with the reason for none."""

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
from tasks_app.live.channels import EventFilter, InvalidStreamRequest, readable, requested
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

#: The names of the API's URLs of streams. The site chooses their namespace.
API_STREAM, API_STREAMS = "tasks_app_stream", "tasks_app_streams"

#: The text of a 503, and the seconds after which a client may try again.
NO_DATABASE, RETRY_SECONDS = "The database does not answer. Try again later.", 5
CLOSING = "This server is shutting down. Try again later."

#: The longest id that is accepted. The id of a stream names at most 200 transactions, by their
#: distance from each other. It usually has less than 100 characters, and never more than this.
CURSOR_MAX = 2_000

#: The number of open streams of each user in this process.
_open: Counter[Any] = Counter()

#: No cache may store a stream, and no proxy may change it. The site's own caches obey `private`.
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
    #: The parameters that are wrong, if that is the reason.
    fields: Collection[str] = ()
    #: For a hand-off with `check_only`: the requested channels that the user may read.
    allowed: Collection[str] = ()


def unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
    """Answer 503 if a stream cannot open because the database does not answer.

    The site's log gets one line, and not a traceback, for each client. The script of the pages
    reconnects by itself. A plain EventSource gives up at any answer that is not a stream.
    """
    headers = {**HEADERS, "Retry-After": str(RETRY_SECONDS)}
    response = HttpResponse(
        NO_DATABASE,
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        content_type="text/plain; charset=utf-8",
        headers=headers,
    )
    log_unavailable(request, response, "No stream: the database does not answer (%s)", str(error))
    return response


def log_unavailable(
    request: HttpRequest,
    response: HttpResponse,
    message: str,
    *args: str,
    logger: logging.Logger = logger,
) -> None:
    """Record in the log and in the hand-off that the database did not answer.

    The line replaces the one that Django would log. For a re-check it has the level debug, because
    each open stream repeats its re-check as long as the outage lasts.
    """
    handoff = Handoff.of(request)
    if handoff is not None:
        handoff.database_failed = True
    log_response(
        message,
        *map(str.strip, args),
        request=request,
        response=response,
        logger=logger,
        level="debug" if handoff is not None and handoff.check_only else "warning",
    )


def stream_view(view: StreamView, unavailable: Unavailable = unavailable) -> StreamView:
    """Make a view serve streams. The views of pages and of the API differ only in their errors.

    The site's middleware has already run. From here on, the session is read and never written. The
    user is the one that middleware put into the request.
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
                    # Close the connection before the turn ends: the next request opens its own.
                    await sync_to_async(close_old_connections)()
        origins.allow(request, response)
        return response

    # A stream changes nothing, so it needs no CSRF token. POST gets 405 like other methods.
    exempt = csrf_exempt(transaction.non_atomic_requests(streaming))
    return cast(StreamView, limit_body(exempt, lambda: 0))


def limit_body(view: Any, limit: Callable[[], int]) -> Any:
    """Make `with_task_streams` drop request bodies of this view that are longer than the limit."""
    view.body_limit = limit
    return view


def _resolve_user(request: HttpRequest) -> None:
    """Load the lazy user of Django's middleware, which must not be done in an event loop."""
    if (user := getattr(request, "user", None)) is not None:
        _ = user.is_authenticated


class StreamResponse(StreamingHttpResponse):
    """A stream that the view itself sends, on a site without `with_task_streams`."""

    def __init__(self, stream: OpenStream, headers: dict[str, str]) -> None:
        # GZipMiddleware would compress each chunk separately, and browsers read only the first.
        super().__init__(stream, headers={**headers, "Content-Encoding": "identity"})
        #: The stream itself: its reader must close it, and Django's wrapper does not.
        self.stream = stream


def respond(request: HttpRequest, answered: Answer) -> HttpResponseBase:
    """Return the response for an answer. If a stream can be handed over, the response is empty."""
    handoff = Handoff.of(request)
    if handoff is not None:
        handoff.stream, handoff.allowed = answered.stream, set(answered.allowed)
    elif answered.stream is not None:
        return StreamResponse(answered.stream, answered.headers)
    return HttpResponse(answered.text, status=answered.status, headers=answered.headers)


async def answer(request: HttpRequest, user: User, task_id: UUID | None = None) -> Answer:
    """Answer a request for the stream of one task, or of the channels in its query.

    Tasks that the user may not see are left out as if they did not exist. If none is left, the
    answer is 404. If a client resumes and has received everything, it is 204: browsers then stop
    reconnecting.
    """
    answered = await _answer(request, user, task_id)
    is_stream = answered.status == HTTPStatus.OK
    content_type = MEDIA_TYPE if is_stream else "text/plain; charset=utf-8"
    answered.headers |= {**HEADERS, "Content-Type": content_type}
    return answered


async def _answer(request: HttpRequest, user: User, task_id: UUID | None) -> Answer:
    if request.method != "GET":
        return Answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Use GET to read a stream.", headers={"Allow": "GET"}
        )
    if not user.is_authenticated:
        return Answer(HTTPStatus.FORBIDDEN, "Log in to watch tasks.")
    try:
        channels = requested(request, user, task_id)
        resumed = _resumed(request)
        event_filter = EventFilter.of(request)
    except InvalidStreamRequest as error:
        return Answer(HTTPStatus.BAD_REQUEST, str(error), fields=error.fields)
    handoff = Handoff.of(request)
    check_only = handoff is not None and handoff.check_only
    if not check_only:
        # Wait before the rights are read, because the wait may be long.
        await Turn.count_for(user.pk)
    allowed = await sync_to_async(readable)(user, channels)
    if not allowed:
        return Answer(
            HTTPStatus.NOT_FOUND, "Task not found, or you don't have permission to view it."
        )
    if check_only:
        return Answer(HTTPStatus.OK, allowed=allowed)
    server.find_sockets(getattr(request, "scope", {}))
    if server.is_closing:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, CLOSING, headers=headers)
    limit = task_settings().stream_max_per_user
    if limit is not None and _open[user.pk] >= limit:
        return Answer(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"You have {limit} open streams, which is the maximum. Close one and try again.",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )
    stream = await OpenStream.of(_opened(Viewer.of(request, user), allowed, resumed, event_filter))
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
    viewer: Viewer, channels: Collection[str], resumed: Cursor | None, event_filter: EventFilter
) -> AsyncGenerator[bytes]:
    """Open a stream and yield its bytes; none if the viewer has received everything."""
    with _counted(viewer.user), server.watched():
        stream = await open_stream(relay, viewer, channels, resumed, event_filter)
        if stream is None:
            return
        async with aclosing(cast(AsyncGenerator[bytes], stream)):
            async for chunk in stream:
                yield chunk


def _resumed(request: HttpRequest) -> Cursor | None:
    """Return the client's cursor: from the header that browsers send, else from the query.

    A page may have parts that were rendered at several moments. It sends one cursor for each, and
    the earliest counts.
    """
    header = request.headers.get("Last-Event-ID")
    ids = [header] if header else list(filter(None, request.GET.getlist("lastEventId")))
    if not ids:
        return None
    try:
        if max(map(len, ids)) > CURSOR_MAX:
            raise ValueError
        return Cursor.earliest([Cursor.parse(text) for text in ids])
    except ValueError:
        raise InvalidStreamRequest(
            f"{ids[0][:80]!r} is not an event ID of this stream. Send the ID of the last event "
            f"that you received, or none.",
            fields=["Last-Event-ID" if header else "lastEventId"],
        ) from None
