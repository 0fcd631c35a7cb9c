"""One viewer's stream: how it opens, what it waits for, when it ends."""

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
from tasks_app.live.channels import Wanted
from tasks_app.live.cursor import Cursor
from tasks_app.live.pages import PAGE_BYTES, in_pages
from tasks_app.live.relay import TROUBLE_SECONDS, Relay
from tasks_app.live.serving import server
from tasks_app.live.view import ALL_EVENTS, View
from tasks_app.live.viewer import Viewer

#: The most pages that are read before a stream begins. Most openings have fewer, so that they are
#: read and sent at once.
OPENING_PAGES = 4
#: How often an open stream asks whether its viewer may still read it. Where the database does not
#: answer that, it asks again after TROUBLE_SECONDS.
RECHECK_SECONDS = 60.0
#: What is raised where the database does not answer.
AWAY = (OperationalError, InterfaceError)


async def open_stream(
    relay: Relay,
    viewer: Viewer,
    channels: Iterable[str],
    resumed: Cursor | None,
    wanted: Wanted = ALL_EVENTS,
) -> AsyncIterator[bytes] | None:
    """Return what a viewer is sent, as bytes of server-sent events; None if there is nothing left.

    Ends after the terminal event of every task it watches. Holds a listener from the first byte
    asked for to the last, so it must be closed.
    """
    listener = Listener()
    listener.assign_loop()
    view = View(channels, wanted)
    # django-eventstream's kick compares it with the primary key, whatever its type.
    listener.user_id = cast(Any, viewer.user.pk)
    listener.channels = set(view.channels)
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(relay.attached(listener))
        if resumed is not None:
            # Another process may have sent this viewer what the relay of this one has yet to read.
            await relay.caught_up()
        # Drop queued events: the opening covers them.
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
    """Return the first bytes of an opening, and what reads the rest of it, if there is more.

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
    """Send piece after piece, and read none before the last one was taken."""
    async with stack:
        yield wire.BEGINNING + first
        #: What the database has to tell, before what the relay brings.
        missed = opening
        #: What the relay brought, page by page, after what was missed.
        brought: Iterator[list[wire.Fact | wire.Report]] | None = None
        recheck_at = time.monotonic() + RECHECK_SECONDS
        #: When a client that was sent none of the pages read needs a sign of life.
        keep_alive_at = time.monotonic() + task_settings().stream_keepalive_seconds
        while (missed or brought or not view.ended) and not server.is_closing:
            if time.monotonic() >= recheck_at:
                try:
                    allowed = await viewer.still_reads(view.channels)
                except AWAY:
                    # Send no event before a re-check succeeds. Until then the listener keeps
                    # events, or overflows, and the database tells what was lost.
                    yield wire.KEEP_ALIVE
                    await _trouble()
                    continue
                if not allowed:
                    break
                view.narrow(allowed)
                recheck_at = time.monotonic() + RECHECK_SECONDS
            if missed is not None:
                try:
                    piece = await database_sync_to_async(next)(missed, None)
                except AWAY:
                    yield wire.KEEP_ALIVE
                    await _trouble()
                    missed = view.catch_up(relay.cursor, progress=True)
                    continue
                if piece is None:
                    missed = None
                elif piece or time.monotonic() >= keep_alive_at:
                    yield piece or wire.KEEP_ALIVE
                    keep_alive_at = time.monotonic() + task_settings().stream_keepalive_seconds
                continue
            if brought is not None:
                page = next(brought, None)
                if page is None:
                    brought = None
                elif piece := b"".join(view.wire_of(event) for event in page if view.admit(event)):
                    yield piece
                continue
            keepalive = task_settings().stream_keepalive_seconds
            try:
                # An event that comes after a re-check is due must not overtake it.
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
                # Read what was lost from the database; of progress the newest is enough.
                missed = view.catch_up(relay.cursor, progress=True)
                continue
            # A viewer may take them slowly, so a re-check may fall due between two pages.
            brought = in_pages((event, len(event.wire)) for event in events)
        # The clients of a server that shuts down come back to the next one.
        if not server.is_closing:
            yield wire.STREAM_END


async def _trouble() -> None:
    """Wait before asking again a database that did not answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TROUBLE_SECONDS):
            await asyncio.Event().wait()


def _take(listener: Listener) -> tuple[list[wire.Fact | wire.Report], bool, Any]:
    """Empty a listener's queues; return its events in the relay's order."""
    with get_listener_manager().lock:
        listener.aevent.clear()
        queues, listener.channel_items = listener.channel_items, {}
        overflow, listener.overflow = listener.overflow, False
    events = sorted(itertools.chain(*queues.values()), key=operator.attrgetter("order"))
    return events, overflow, listener.error
