"""Turns to open a stream: few requests at a time, and fewer of one user."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from asgiref.sync import sync_to_async
from django.db import close_old_connections

#: The most streams that open at the same time. After a deploy all viewers reconnect together, and
#: under ASGI each request has its own database connection.
OPENINGS = 10
#: The most of them that may belong to one user, whose long history may take seconds to read.
OPENINGS_PER_USER = 3


class _Turns:
    """The turns of one event loop."""

    def __init__(self) -> None:
        self.all = asyncio.Semaphore(OPENINGS)
        #: One for each user, kept as long as a turn refers to it.
        self.of_users = WeakValueDictionary[Any, asyncio.Semaphore]()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()
#: The turn of the current request.
_current: ContextVar[Turn | None] = ContextVar("tasks_app.turn", default=None)


class Turn:
    """A request's turn to use the database. Use it as an asynchronous context manager."""

    def __init__(self) -> None:
        self._turns = _turns.setdefault(asyncio.get_running_loop(), _Turns())
        self._held: list[asyncio.Semaphore] = []

    async def __aenter__(self) -> Self:
        await self._take(self._turns.all)
        self._outer = _current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _current.reset(self._outer)
        self._release()

    @staticmethod
    async def count_for(user_id: Any) -> None:
        """Count the turn of this request as one of the user's. Wait if they have too many.

        A request that waits gives up its turn, so it does not delay other users.
        """
        if (turn := _current.get()) is not None:
            await turn._count_for(user_id)

    async def _count_for(self, user_id: Any) -> None:
        own = self._turns.of_users.setdefault(user_id, asyncio.Semaphore(OPENINGS_PER_USER))
        if own.locked():
            # A request that waits does not keep a database connection either.
            await sync_to_async(close_old_connections)()
            self._release()
            await self._take(own)
            await self._take(self._turns.all)
        else:
            await self._take(own)

    async def _take(self, semaphore: asyncio.Semaphore) -> None:
        await semaphore.acquire()
        self._held.append(semaphore)

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()
