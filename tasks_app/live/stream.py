"""The stream of one viewer: its opening, its events, and its end."""

from __future__ import annotations

import asyncio
import itertools
import operator
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

from channels.db import database_sync_to_async
from django.db import InterfaceError, OperationalError
from django_eventstream.utils import sse_encode_error
from django_eventstream.views import Listener, get_listener_manager

from tasks_app.conf import task_settings
from tasks_app.live import wire
from tasks_app.live.channels import EventFilter
from tasks_app.live.cursor import Cursor
from tasks_app.live.pages import PAGE_BYTES, in_pages
from tasks_app.live.relay import TROUBLE_SECONDS, Relay
from tasks_app.live.serving import server
from tasks_app.live.view import ALL_EVENTS, View
from tasks_app.live.viewer import Viewer

#: The most pages that are read before a stream begins. Most openings have fewer, so they are read
#: and sent in one step.
OPENING_PAGES = 4
#: The interval at which an open stream checks whether its viewer may still read it. If the database
#: does not answer, it tries again after TROUBLE_SECONDS.
RECHECK_SECONDS = 60.0
#: The errors raised if the database does not answer.
NO_ANSWER = (OperationalError, InterfaceError)


async def open_stream(
    relay: Relay,
    viewer: Viewer,
    channels: Iterable[str],
    resumed: Cursor | None,
    event_filter: EventFilter = ALL_EVENTS,
) -> AsyncIterator[bytes] | None:
    """Return the bytes of a viewer's stream; None if the viewer has received everything.

    The stream ends after the terminal event of every task that it watches. It holds a listener
    until its last byte is read, so it must be closed.
    """
    listener = Listener()
    listener.assign_loop()
    view = View(channels, event_filter)
    # django-eventstream's kick compares it with the primary key, which may have any type.
    listener.user_id = cast(Any, viewer.user.pk)
    listener.channels = set(view.channels)
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(relay.attached(listener))
        if resumed is not None:
            # Another process may have sent facts to this viewer that this relay has not read yet.
            await relay.caught_up()
        # Drop queued events: the opening snapshot already covers them.
        _take(listener)
        opening = await database_sync_to_async(_open)(view, resumed, relay.cursor)
        if opening is None:
            await stack.aclose()
            return None
    except BaseException:
        await stack.aclose()
        raise
    return _events(stack, relay, listener, viewer, view, *opening)


def _open(
    view: View, resumed: Cursor | None, until: Cursor
) -> tuple[bytes, Iterator[bytes] | None] | None:
    """Return the first bytes of an opening, and an iterator of the rest if there is more.

    Other viewers wait until this returns, so it reads a bounded number of pages.
    """
    if resumed is not None and not until.continues(resumed):
        resumed = None
    if not view.begin(resumed, until):
        return None
    opening = view.catch_up(until)
    first = b""
    for _ in range(OPENING_PAGES):
        piece = next(opening, None)
        if piece is None:
            return first, None
        first += piece
        if len(first) > PAGE_BYTES:
            break
    return first, opening


async def _events(
    stack: AsyncExitStack,
    relay: Relay,
    listener: Listener,
    viewer: Viewer,
    view: View,
    first: bytes,
    opening: Iterator[bytes] | None,
) -> AsyncIterator[bytes]:
    """Yield the stream in pieces. A piece is read only after the viewer has taken the last one."""
    async with stack:
        yield wire.BEGINNING + first
        #: Pieces to read from the database before the events of the relay.
        backlog = opening
        #: Pages of the relay's events, sent after the backlog.
        relayed: Iterator[list[wire.Fact | wire.Report]] | None = None
        recheck_at = time.monotonic() + RECHECK_SECONDS
        #: The time to send a keep-alive, if no page read until then holds an event for the client.
        keep_alive_at = time.monotonic() + task_settings().stream_keepalive_seconds
        while (backlog or relayed or not view.ended) and not server.is_closing:
            if time.monotonic() >= recheck_at:
                try:
                    allowed = await viewer.still_reads(view.channels)
                except NO_ANSWER:
                    # Send no event before a re-check succeeds. Until then the listener keeps
                    # events, or overflows; lost events are then read from the database.
                    yield wire.KEEP_ALIVE
                    await _pause()
                    continue
                if not allowed:
                    break
                view.narrow(allowed)
                recheck_at = time.monotonic() + RECHECK_SECONDS
            if backlog is not None:
                try:
                    piece = await database_sync_to_async(next)(backlog, None)
                except NO_ANSWER:
                    yield wire.KEEP_ALIVE
                    await _pause()
                    backlog = view.catch_up(relay.cursor, progress=True)
                    continue
                if piece is None:
                    backlog = None
                elif piece or time.monotonic() >= keep_alive_at:
                    yield piece or wire.KEEP_ALIVE
                    keep_alive_at = time.monotonic() + task_settings().stream_keepalive_seconds
                continue
            if relayed is not None:
                page = next(relayed, None)
                if page is None:
                    relayed = None
                elif piece := b"".join(view.wire_of(event) for event in page if view.admit(event)):
                    yield piece
                continue
            keepalive = task_settings().stream_keepalive_seconds
            try:
                # If a re-check is due before an event arrives, the re-check must come first.
                async with asyncio.timeout(min(keepalive, recheck_at - time.monotonic())):
                    await listener.aevent.wait()
            except TimeoutError:
                yield wire.KEEP_ALIVE
                continue
            events, overflow, error = _take(listener)
            if error:
                yield sse_encode_error(error["condition"], error["text"], error["extra"]).encode()
                return
            if overflow:
                # Read the lost events from the database, and only the newest progress.
                backlog = view.catch_up(relay.cursor, progress=True)
                continue
            # A viewer may read them slowly, so a re-check may become due between two pages.
            relayed = in_pages((event, len(event.wire)) for event in events)
        # If this server shuts down, the clients must reconnect to the next one.
        if not server.is_closing:
            yield wire.STREAM_END


async def _pause() -> None:
    """Wait before the next query to a database that did not answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TROUBLE_SECONDS):
            await asyncio.Event().wait()


def _take(listener: Listener) -> tuple[list[wire.Fact | wire.Report], bool, Any]:
    """Empty a listener's queues. Return its events in the relay's order, its overflow and error."""
    with get_listener_manager().lock:
        listener.aevent.clear()
        queues, listener.channel_items = listener.channel_items, {}
        overflow, listener.overflow = listener.overflow, False
    events = sorted(itertools.chain(*queues.values()), key=operator.attrgetter("order"))
    return events, overflow, listener.error
