"""Streams of this process, read event by event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from channels.db import database_sync_to_async
from django.contrib.auth.models import User

from tasks_app.live.channels import EventFilter, readable
from tasks_app.live.cursor import Cursor
from tasks_app.live.relay import relay
from tasks_app.live.stream import open_stream
from tasks_app.live.view import ALL_EVENTS, View
from tasks_app.live.viewer import Viewer

PATIENCE = 20.0


@dataclass
class Seen:
    type: str
    id: str
    message: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.message["data"]
        return data


def parsed(chunk: bytes) -> list[Seen]:
    """Return the events in some bytes, without comments and events without data."""
    events = []
    for block in chunk.decode().split("\n\n"):
        lines = [line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")]
        fields = {line[0].rstrip(":"): line[1] for line in lines if len(line) == 2}
        if fields.get("data"):
            events.append(Seen(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def opening_of(view: View, resumed: Cursor | None, until: Cursor) -> bytes | None:
    """Return what a view sends first; None if its viewer had everything."""
    return b"".join(view.catch_up(until)) if view.begin(resumed, until) else None


def viewer_of(user: User, channels: Iterable[str]) -> Viewer:
    """Return a viewer that only the database knows: without session and middleware."""

    def ask() -> set[str]:
        now = User.objects.filter(pk=user.pk).first()
        return readable(now, set(channels)) if now else set()

    return Viewer(user, database_sync_to_async(ask))


class Watching:
    """An open stream, as an asynchronous context manager."""

    def __init__(
        self,
        viewer: User | Viewer,
        channels: Iterable[str],
        resumed: Cursor | None = None,
        event_filter: EventFilter = ALL_EVENTS,
    ) -> None:
        self.seen: list[Seen] = []
        viewer = viewer if isinstance(viewer, Viewer) else viewer_of(viewer, channels)
        self._asked = (viewer, channels, resumed, event_filter)
        self._stream: AsyncIterator[bytes]

    async def __aenter__(self) -> Watching:
        opened = await open_stream(relay, *self._asked)
        assert opened is not None
        self._stream = opened
        await self.next()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()  # type: ignore[attr-defined]

    async def next(self) -> list[Seen]:
        """Return the events of the next chunk."""
        events = parsed(await asyncio.wait_for(anext(self._stream), PATIENCE))
        self.seen += events
        return events

    async def sees(self, kind: str) -> Seen:
        """Read up to an event of this type, and return it."""
        while True:
            for event in await self.next():
                if event.type == kind:
                    return event

    async def finish(self) -> None:
        """Read to the end."""
        async with asyncio.timeout(PATIENCE):
            async for chunk in self._stream:
                self.seen += parsed(chunk)

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.seen]
