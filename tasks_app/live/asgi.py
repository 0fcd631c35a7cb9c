"""The ASGI application that wraps the site's own, and serves the streams of its views."""

from __future__ import annotations

import asyncio
from typing import Any

from channels.generic.http import AsyncHttpConsumer
from django.conf import settings
from django.urls import Resolver404, resolve
from django.utils import translation

from tasks_app.live.handoff import KEY, ASGIApp, Handoff, OpenStream, is_stream
from tasks_app.live.serving import server
from tasks_app.live.sessions import without_cookie

#: Headers that describe the view's empty body. A stream is sent in its place.
_DROPPED = {b"content-length", b"content-encoding"}


def with_task_streams(application: ASGIApp) -> ASGIApp:
    """Wrap the site's ASGI application, so that an open stream costs no thread.

    Each request passes through the whole application, including its middleware. If a view hands
    over a stream and the site answers 200, the request ends there, and its thread and database
    connection are released. Then the stream is sent with the headers of that answer. Any other
    answer is sent unchanged.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            server.find_sockets(scope)
            await _serve(application, scope, _Requests(scope, receive), send)
        else:
            await application(scope, receive, send)

    return app


async def _serve(application: ASGIApp, scope: Any, requests: _Requests, send: Any) -> None:
    handoff = Handoff(application)
    headers: list[tuple[bytes, bytes]] | None = None

    async def site_sends(message: Any) -> None:
        nonlocal headers
        begins = message["type"] == "http.response.start"
        if begins and handoff.reached:
            message = {**message, "headers": without_cookie(message["headers"])}
        if begins and handoff.stream is not None and is_stream(message):
            headers = message["headers"]
        elif headers is None:
            await send(message)

    try:
        await application({**scope, KEY: handoff}, requests.receive, site_sends)
        if headers is not None:
            consumer = TaskStreamConsumer.as_asgi(stream=handoff.stream, headers=headers)
            await consumer(scope, requests.receive, send)
    finally:
        await requests.close()
        if handoff.stream is not None:
            await handoff.stream.aclose()


class TaskStreamConsumer(AsyncHttpConsumer):
    """Sends an open stream to one client until the stream ends or the client leaves."""

    #: A stream uses no channel layer. A layer on Redis would cost a connection for each stream.
    channel_layer_alias = ""

    def __init__(self, stream: OpenStream, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.stream = stream
        self.headers = [(name, value) for name, value in headers if name.lower() not in _DROPPED]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.receive = receive
        requests = iter([{"type": "http.request"}])

        async def request() -> Any:
            # The site has read the body. The next message is the disconnect; `_left` waits for it.
            return next(requests, None) or await asyncio.Future()

        await super().__call__(scope, request, send)

    async def handle(self, body: bytes) -> None:
        await self.send_headers(headers=self.headers)
        await self._race(self._pump(), self._left(), server.grace_over())

    async def _pump(self) -> None:
        async for chunk in self.stream:
            await self.send_body(chunk, more_body=True)
        await self.send_body(b"")

    async def _left(self) -> None:
        """Wait until the client disconnects. Servers report that as a message; `send` works on."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @staticmethod
    async def _race(*coroutines: Any) -> None:
        """Run all until one is done. Cancel the others, and wait until they are closed."""
        tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Requests:
    """The messages of a client. First the site reads them, and then the stream.

    Once Django has answered, it cancels its wait for a disconnect. A server's `receive` may not
    support that, so a call that has begun continues, and the next reader gets its message.
    """

    def __init__(self, scope: Any, receive: Any) -> None:
        self._scope = scope
        self._receive = receive
        self._next: asyncio.Future[Any] | None = None
        #: True if the body is dropped as it arrives; None until the first message.
        self._drops: bool | None = None

    async def receive(self) -> Any:
        while True:
            if self._next is None:
                self._next = asyncio.ensure_future(self._receive())
            message = await asyncio.shield(self._next)
            if message["type"] == "http.disconnect":
                # Keep it, so that the next reader gets it too.
                return message
            self._next = None
            if self._drops is None:
                self._drops = _is_refused_body(self._scope, message)
                if self._drops:
                    return {"type": "http.request", "body": b"", "more_body": False}
            if not self._drops:
                return message

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)


def _is_refused_body(scope: Any, first: Any) -> bool:
    """Return whether our view will refuse the body, for its Content-Length or for the lack of one.

    Before it calls a view, Django reads the whole body, and writes a long one to a file. So Django
    gets an empty body instead. The view still refuses the request, because of the headers.
    """
    if not first.get("body") and not first.get("more_body"):
        return False
    limit = _body_limit(scope)
    if limit is None:
        return False
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return not (len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= limit)


def _body_limit(scope: Any) -> int | None:
    """Return the longest body that the view of a request reads; None for views of the site.

    Resolves the path as Django's handler and its LocaleMiddleware do.
    """
    path = scope["path"].removeprefix(settings.FORCE_SCRIPT_NAME or scope.get("root_path", ""))
    with translation.override(translation.get_language_from_path(path) or settings.LANGUAGE_CODE):
        try:
            limit = getattr(resolve(path).func, "body_limit", None)
        except Resolver404:
            return None
    return None if limit is None else limit()
