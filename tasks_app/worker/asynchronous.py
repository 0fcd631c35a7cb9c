"""Asynchronous code in a task: the event loop that its thread waits for, and its synchronous calls.

What asyncio and asgiref are doing is read off the frames of their public functions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, copy_context
from types import FrameType
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import connections

from tasks_app.worker.queries import discard

#: What a thread is in while it only waits for an event loop, or for what the loop waits for.
WAITING = frozenset({"asgiref", "asyncio", "concurrent", "queue", "selectors", "threading"})
#: The functions that run an event loop until one task of it is done, and where they keep that.
ROOTS = {
    asyncio.BaseEventLoop.run_until_complete.__code__: "future",
    asyncio.Runner.run.__code__: "task",
}


@contextmanager
def context_of_run() -> Iterator[Context]:
    """Make a context in which asynchronous code has its own thread for synchronous calls.

    asgiref would share one thread among all tasks: with it the database connections, and whatever
    transaction one of them left open. The connections of that thread are closed at the end.
    """
    context = copy_context()
    sensitive = ThreadSensitiveContext()
    context.run(SyncToAsync.thread_sensitive_context.set, sensitive)
    try:
        yield context
    finally:
        executor = SyncToAsync.context_to_thread_executor.pop(sensitive, None)
        if executor is not None:
            executor.submit(discard).result()
            executor.submit(connections.close_all).result()
            executor.shutdown()


def working_for(
    thread: int, frames: Mapping[int, FrameType]
) -> tuple[int, asyncio.Future[Any] | None]:
    """Find the thread that does the work which this one waits for; itself if it waits for none.

    With it comes the task to cancel, if that thread runs an event loop which is idle.
    """
    for frame in outwards(frames.get(thread)):
        if (root := _root(frame)) is not None:
            return thread, root
        if frame.f_code is AsyncToSync.__call__.__code__:
            other = _thread_of_loop(frame.f_locals.get("current_executor"), frames)
            if other is not None:
                return working_for(other, frames)
        elif package(frame) not in WAITING:
            break
    return thread, None


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _root(frame: FrameType) -> asyncio.Future[Any] | None:
    """Return the task for which a frame runs an event loop."""
    name = ROOTS.get(frame.f_code)
    found = frame.f_locals.get(name) if name else None
    return found if isinstance(found, asyncio.Future) else None


def _thread_of_loop(executor: object, frames: Mapping[int, FrameType]) -> int | None:
    """Return the thread of the loop that async_to_sync started and waits for in this executor."""
    started = list(AsyncToSync.loop_thread_executors.items())
    loops = [loop for loop, waiting in started if waiting is executor]
    for thread, inner in frames.items():
        for frame in outwards(inner):
            root = _root(frame)
            if root is not None and root.get_loop() in loops:
                return thread
    return None
