"""Whose turn it is to open a stream: few requests at a time, and fewer of one user."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from asgiref.sync import sync_to_async
from django.db import close_old_connections

#: How many streams open at a time. After a deploy all viewers come back at once, and under ASGI
#: each request has a database connection of its own.
OPENINGS = 10
#: How many of them may be one user's, whose long history may take seconds to read.
OPENINGS_PER_USER = 3


class _Turns:
    """The turns of one event loop."""

    def __init__(self) -> None:
        self.all = asyncio.Semaphore(OPENINGS)
        #: As long as any turn refers to them.
        self.of_users = WeakValueDictionary[Any, asyncio.Semaphore]()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()
#: The turn of the request that is being answered.
_current: ContextVar[Turn | None] = ContextVar("tasks_app.turn", default=None)


class Turn:
    """A request's turn to ask the database; use it as an asynchronous context."""

    def __init__(self) -> None:
        self._turns = _turns.setdefault(asyncio.get_running_loop(), _Turns())
        self._held: list[asyncio.Semaphore] = []

    async def __aenter__(self) -> Self:
        await self._take(self._turns.all)
        self._outer = _current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _current.reset(self._outer)
        self._let_go()

    @staticmethod
    async def becomes(user_id: Any) -> None:
        """Make the turn of this request one of its user's, and wait until they may have another.

        A request that waits has no turn meanwhile, so it keeps no other user waiting.
        """
        if (turn := _current.get()) is not None:
            await turn._become(user_id)

    async def _become(self, user_id: Any) -> None:
        own = self._turns.of_users.setdefault(user_id, asyncio.Semaphore(OPENINGS_PER_USER))
        if own.locked():
            # Nor does it keep a database connection.
            await sync_to_async(close_old_connections)()
            self._let_go()
            await self._take(own)
            await self._take(self._turns.all)
        else:
            await self._take(own)

    async def _take(self, semaphore: asyncio.Semaphore) -> None:
        await semaphore.acquire()
        self._held.append(semaphore)

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().release()
