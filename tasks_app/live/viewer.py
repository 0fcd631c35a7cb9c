"""The viewer of a stream, and the check of what they may still read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from django.http import HttpRequest

from tasks_app.live.handoff import Handoff, ask_again

if TYPE_CHECKING:
    from tasks_app.permissions import User


@dataclass(frozen=True)
class Viewer:
    """A user, and a function that asks what the request that opened the stream may read now.

    A stream may outlive a session, a password, a token, or a permission. Only the site knows which
    of these matters, so the site is asked.
    """

    user: User
    ask: Callable[[], Awaitable[set[str]]]

    @classmethod
    def of(cls, request: HttpRequest, user: User) -> Self:
        handoff = Handoff.of(request)
        site = None if handoff is None else handoff.site
        # Keep only the scope: the request also holds all that middleware put into it.
        scope = getattr(request, "scope", {})
        return cls(user, partial(ask_again, site, scope))

    async def still_reads(self, channels: Collection[str]) -> set[str]:
        """Return the channels that this viewer may still read."""
        return set(channels) & await self.ask()
