"""Who watches a stream: asked when it opens, and again while it is open."""

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
    """A user, and how to learn what the request that opened the stream would be allowed now.

    A stream may outlast a session, a password, a token, or a permission. Only the site knows which
    of them counts, so the site is asked.
    """

    user: User
    ask: Callable[[], Awaitable[set[str]]]

    @classmethod
    def of(cls, request: HttpRequest, user: User) -> Self:
        handoff = Handoff.of(request)
        site = None if handoff is None else handoff.site
        # Not the request itself: an open stream would keep all that middleware put into it.
        scope = getattr(request, "scope", {})
        return cls(user, partial(ask_again, site, scope))

    async def still_reads(self, channels: Collection[str]) -> set[str]:
        """Return which of the channels this viewer may read as things stand now."""
        return set(channels) & await self.ask()
