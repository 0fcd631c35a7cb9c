"""Who watches a stream: asked when it opens, and again while it is open."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, cast

from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.http import HttpRequest

from tasks_app.streaming.channels import readable

if TYPE_CHECKING:
    from tasks_app.permissions import User


@dataclass(frozen=True)
class Viewer:
    """A user, and the session that says so; no session where something else does, such as a token.

    A stream may outlast both. As a page would, it asks whether the session is still there and the
    password still the one that it was opened with: somebody who lost a session to a thief signs
    out, or takes another password.
    """

    user: User
    session_key: str | None = None

    @classmethod
    def of(cls, request: HttpRequest, user: User) -> Self:
        """Reads the session, so it blocks."""
        session = getattr(request, "session", None)
        if session is None or session.get(SESSION_KEY) != str(user.pk):
            return cls(user)
        return cls(user, session.session_key)

    def still_reads(self, channels: Collection[str]) -> set[str]:
        """Return which of the channels this viewer may read as things stand now."""
        users = get_user_model()._default_manager
        now = cast("User | None", users.filter(pk=cast(Any, self.user.pk)).first())
        if now is None or not self._is_signed_in(now):
            return set()
        return readable(now, channels)

    def _is_signed_in(self, now: User) -> bool:
        if self.session_key is None:
            return True
        # Read and never written: Django's own get_user would give a session another key, of which
        # an open stream could not tell the browser.
        session = import_module(settings.SESSION_ENGINE).SessionStore(self.session_key)
        return session.get(SESSION_KEY) == str(now.pk) and _proof(now) == _proof(self.user)


def _proof(user: User) -> str | None:
    """What changes with the password; None for users that have none."""
    proof = getattr(user, "get_session_auth_hash", None)
    return None if proof is None else str(proof())
