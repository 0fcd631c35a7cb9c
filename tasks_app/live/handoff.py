"""How the view of a stream hands it over, past the site's middleware, to who carries it."""

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
    """What the view of a stream leaves beside its response, for `with_task_streams` to find.

    It travels in the ASGI scope, so no middleware has to know of it. With `asking` the view opens
    no stream, and says only which channels the request may read.
    """

    def __init__(self, site: ASGIApp, asking: bool = False) -> None:
        self.site = site
        self.asking = asking
        #: Whether the request has reached the view of a stream, whatever that answers.
        self.reached = False
        self.stream: OpenStream | None = None
        self.allowed: set[str] = set()
        #: Whether the view could not decide, because the database did not answer.
        self.database_away = False

    @classmethod
    def of(cls, request: HttpRequest) -> Handoff | None:
        found: Handoff | None = getattr(request, "scope", {}).get(KEY)
        return found


class OpenStream:
    """A stream whose first bytes have been read.

    So its generator has begun, and lets go of what it holds however it is closed: by `aclose`, or
    by the event loop once nothing refers to it any more.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    @classmethod
    async def of(cls, stream: AsyncGenerator[bytes]) -> OpenStream | None:
        """Read the first bytes of a stream; None if it has none."""
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
    """Return which channels the sender of a request may read now, if any.

    Sends the site the same request again, without a client, so that all of its middleware decides
    anew. Any answer but the view's own grants nothing, a maintenance page too. Raises
    OperationalError if the view found that the database does not answer.
    """
    handoff = Handoff(site or await _own_site(), asking=True)
    granted = False
    unread = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        # Then Django waits for a disconnect, until it has answered.
        return next(unread, None) or await asyncio.Future()

    async def send(message: Any) -> None:
        nonlocal granted
        if message["type"] == "http.response.start":
            granted = is_stream(message)

    await handoff.site({**scope, KEY: handoff}, receive, send)
    if handoff.database_away:
        raise OperationalError("The database does not answer who may still read a stream.")
    return handoff.allowed if granted else set()


def is_stream(start: Mapping[str, Any]) -> bool:
    """Whether a response is a view's stream, and not what middleware answered in its place.

    Middleware may answer 200 as well, with a log-in page or terms to agree to.
    """
    return start["status"] == HTTPStatus.OK and any(
        name.lower() == b"content-type" and value.startswith(MEDIA_TYPE.encode())
        for name, value in start["headers"]
    )


async def _own_site() -> ASGIApp:
    """The site as Django serves it, for a stream of the plain view: nobody handed it over."""
    return await sync_to_async(_handler, thread_sensitive=False)()


@cache
def _handler() -> ASGIHandler:
    return ASGIHandler()
