"""The hand-off of an open stream: from a view, past the site's middleware, to the ASGI wrapper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError
from django.http import HttpRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

KEY = "tasks_app.handoff"

MEDIA_TYPE = "text/event-stream"


class Handoff:
    """The object in which a view leaves an open stream for `with_task_streams`.

    It is in the ASGI scope, so middleware need not know of it. With `check_only`, the view opens no
    stream, and records only which channels the request may read.
    """

    def __init__(self, site: ASGIApp, check_only: bool = False) -> None:
        self.site = site
        self.check_only = check_only
        #: True once the request has reached the view of a stream, also if the view refuses it.
        self.reached = False
        self.stream: OpenStream | None = None
        self.allowed: set[str] = set()
        #: True if the view could not decide because the database did not answer.
        self.database_failed = False

    @classmethod
    def of(cls, request: HttpRequest) -> Handoff | None:
        handoff: Handoff | None = getattr(request, "scope", {}).get(KEY)
        return handoff


class OpenStream:
    """A stream whose first bytes have been read.

    So its generator has started, and releases its resources however it is closed: by `aclose`, or
    by the event loop when nothing refers to it any more.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    @classmethod
    async def of(cls, stream: AsyncGenerator[bytes]) -> OpenStream | None:
        """Read the first bytes of a stream. Return None if it has none."""
        try:
            return cls(await anext(stream), stream)
        except StopAsyncIteration:
            return None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if (first := self._first) is not None:
            self._first = None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


async def ask_again(site: ASGIApp | None, scope: Mapping[str, Any]) -> set[str]:
    """Return the channels that the sender of a request may read now.

    Sends the same request to the site again, without a client, so that all of its middleware
    decides again. Only the view's own answer grants something; a maintenance page, for example,
    does not. Raises OperationalError if the view found that the database does not answer.
    """
    handoff = Handoff(site or await _own_site(), check_only=True)
    granted = False
    unread = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        # After the request, Django waits for a disconnect until it has answered. None comes.
        return next(unread, None) or await asyncio.Future()

    async def send(message: Any) -> None:
        nonlocal granted
        if message["type"] == "http.response.start":
            granted = is_stream(message)

    await handoff.site({**scope, KEY: handoff}, receive, send)
    if handoff.database_failed:
        raise OperationalError(
            "Could not check who may still read a stream: the database does not answer."
        )
    return handoff.allowed if granted else set()


def is_stream(start: Mapping[str, Any]) -> bool:
    """Return whether a response is a stream of a view. If not, middleware answered in its place.

    Middleware may also answer 200, with a log-in page or with terms to accept.
    """
    return start["status"] == HTTPStatus.OK and any(
        name.lower() == b"content-type" and value.startswith(MEDIA_TYPE.encode())
        for name, value in start["headers"]
    )


async def _own_site() -> ASGIApp:
    """Return the site as Django serves it, for a stream that was not handed over."""
    return await sync_to_async(_handler, thread_sensitive=False)()


@cache
def _handler() -> ASGIHandler:
    return ASGIHandler()
