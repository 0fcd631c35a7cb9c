"""The stream endpoint for ASGI: a Channels consumer, which holds no thread."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.generic.http import AsyncHttpConsumer
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError
from django.http import HttpResponse
from django.urls import Resolver404, ResolverMatch, resolve
from django.utils import translation

from tasks_app.api.problems import unavailable
from tasks_app.streaming.endpoint import (
    API_STREAM,
    API_STREAMS,
    AWAY,
    AWAY_SECONDS,
    StreamResponse,
)
from tasks_app.urls import STREAM_VIEWS

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

logger = logging.getLogger("tasks_app.relay")


class TaskStreamConsumer(AsyncHttpConsumer):
    """Streams tasks' events to one client until they end or it leaves.

    A Django view for the same would keep a thread for as long.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.receive = receive
        await super().__call__(scope, receive, send)

    async def http_request(self, message: Any) -> None:
        # Whatever body comes is not read: a stream needs none.
        await super().http_request({"type": "http.request"})

    async def handle(self, body: bytes) -> None:
        request = ASGIRequest(self.scope, io.BytesIO(body))
        try:
            request.get_host()
            await self._answer(request)
        except SuspiciousOperation:
            # As Django answers a foreign host, or more query fields than it reads.
            await self.send_response(400, b"Bad Request (400)")

    async def _answer(self, request: ASGIRequest) -> None:
        user = self.scope["user"]

        async def auser() -> Any:
            return user

        # As Django's middleware has them.
        request.user, request.auser = user, auser
        request.session = self.scope["session"]
        route = self.scope["url_route"]
        response = await route["view"](request, **route["kwargs"])
        headers = [(key.encode(), value.encode()) for key, value in response.items()]
        if not isinstance(response, StreamResponse):
            await self.send_response(response.status_code, response.content, headers=headers)
            return
        await self.send_headers(status=response.status_code, headers=headers)
        await self._race(self._pump(response.stream), self._left())

    async def _pump(self, stream: Any) -> None:
        async with aclosing(stream):
            async for chunk in stream:
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


def _is_stream(match: ResolverMatch) -> bool:
    ours = match.url_name in STREAM_VIEWS and "tasks_app" in match.app_names
    return ours or _is_of_api(match)


def _is_of_api(match: ResolverMatch) -> bool:
    return match.url_name in (API_STREAM, API_STREAMS)


async def _or_unavailable(
    application: ASGIApp, match: ResolverMatch, scope: Any, receive: Any, send: Any
) -> None:
    """Answer 503 where a stream cannot open because the database does not answer.

    A site's log has one line instead of a traceback for each client. The pages' own script comes
    back by itself; a plain EventSource gives up at any answer but a stream.
    """
    started = False

    async def sent(message: Any) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await application(scope, receive, sent)
    except (OperationalError, InterfaceError) as error:
        if started:
            raise
        response = _unavailable(ASGIRequest(scope, io.BytesIO()), match, error)
        headers = [(key.lower().encode(), value.encode()) for key, value in response.items()]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": response.content})


def _unavailable(request: ASGIRequest, match: ResolverMatch, error: Exception) -> HttpResponse:
    if _is_of_api(match):
        return unavailable(request, error)
    logger.warning("No stream: the database does not answer (%s)", str(error).strip())
    return HttpResponse(
        AWAY,
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(AWAY_SECONDS)},
    )


def _resolved(scope: Any) -> ResolverMatch | None:
    """Find the view of a request as Django's handler does, and its LocaleMiddleware."""
    path = scope["path"].removeprefix(settings.FORCE_SCRIPT_NAME or scope.get("root_path", ""))
    with translation.override(translation.get_language_from_path(path) or settings.LANGUAGE_CODE):
        try:
            return resolve(path)
        except Resolver404:
            return None


def with_task_streams(application: ASGIApp) -> ASGIApp:
    """Serve task streams by their consumer, wherever the URLs of `tasks_app` or of its API are
    included, and all else by the site's own ASGI application.
    """
    consumer = AuthMiddlewareStack(TaskStreamConsumer.as_asgi())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            match = _resolved(scope)
            if match is not None and _is_stream(match):
                route = {"view": match.func, "kwargs": match.kwargs}
                scope = {**scope, "url_route": route}
                await _or_unavailable(consumer, match, scope, receive, send)
                return
        await application(scope, receive, send)

    return app
