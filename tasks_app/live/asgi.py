"""The ASGI side of streams: taken over from the site's own application once it has answered."""

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

#: What described the empty response that a stream takes the place of.
_DROPPED = {b"content-length", b"content-encoding"}


def with_task_streams(application: ASGIApp) -> ASGIApp:
    """Serve the site's own ASGI application, and the streams that its views hand over.

    Every request passes the whole of it, middleware too. When a view hands a stream over and the
    site answers 200, the request ends there: its thread and its database connection are let go.
    Then the stream is sent, with the headers of that answer. Any other answer is sent as it is.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            server.notice(scope)
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
    """Sends an open stream to one client until it ends or the client leaves."""

    #: A stream takes no part in a channel layer: one of Redis would cost each a connection.
    channel_layer_alias = ""

    def __init__(self, stream: OpenStream, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.stream = stream
        self.headers = [(name, value) for name, value in headers if name.lower() not in _DROPPED]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.receive = receive
        requests = iter([{"type": "http.request"}])

        async def request() -> Any:
            # The site has read the request. What follows is the client's leaving.
            return next(requests, None) or await asyncio.Future()

        await super().__call__(scope, request, send)

    async def handle(self, body: bytes) -> None:
        await self.send_headers(headers=self.headers)
        await self._race(self._pump(), self._left(), server.gone())

    async def _pump(self) -> None:
        async for chunk in self.stream:
            await self.send_body(chunk, more_body=True)
        await self.send_body(b"")

    async def _left(self) -> None:
        """Wait until the client is gone. A server says so by a message, not by failing to send."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @staticmethod
    async def _race(*runners: Any) -> None:
        """Run until one of them is done; cancel the others, and wait until they have closed."""
        tasks = [asyncio.ensure_future(runner) for runner in runners]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Requests:
    """What a client sends, read by the site first and then by the stream.

    Django stops waiting for a disconnect when it has answered. A server's `receive` need not stand
    that, so what was begun goes on for the next who asks.
    """

    def __init__(self, scope: Any, receive: Any) -> None:
        self._scope = scope
        self._receive = receive
        self._next: asyncio.Future[Any] | None = None
        #: Whether the body is dropped as it comes; None until it is known whether there is one.
        self._drops: bool | None = None

    async def receive(self) -> Any:
        while True:
            if self._next is None:
                self._next = asyncio.ensure_future(self._receive())
            message = await asyncio.shield(self._next)
            if message["type"] == "http.disconnect":
                # Kept, so that whoever asks next is told as well.
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
    """Whether a request has a body that our view would refuse by the length it tells, or by none.

    Django would read all of it, into a file where it is long, before any view is asked. Where it
    is given an empty one instead, the view refuses the request all the same.
    """
    if not first.get("body") and not first.get("more_body"):
        return False
    most = _body_limit(scope)
    if most is None:
        return False
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return not (len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= most)


def _body_limit(scope: Any) -> int | None:
    """The longest body that the view of a request reads; None for views that are not ours.

    The view is found as Django's handler and its LocaleMiddleware find it.
    """
    path = scope["path"].removeprefix(settings.FORCE_SCRIPT_NAME or scope.get("root_path", ""))
    with translation.override(translation.get_language_from_path(path) or settings.LANGUAGE_CODE):
        try:
            limit = getattr(resolve(path).func, "body_limit", None)
        except Resolver404:
            return None
    return None if limit is None else limit()
