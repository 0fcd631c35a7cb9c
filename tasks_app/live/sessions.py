"""Sessions that streams read and never write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest


def read_only(request: HttpRequest) -> None:
    """Replace the session of a request by a copy that is never saved.

    The pages of one user reconnect often, and at the same time. If each request saved the session,
    an open tab would keep the session alive without end. After a rotation of the secret key, the
    requests would also replace each other's session.
    """
    session = getattr(request, "session", None)
    if isinstance(session, SessionBase):
        request.session = ReadOnlySession(session)


def without_cookie(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Remove the session's cookie from the headers of the answer to a stream request.

    The user may have logged in or out since the request was sent. The answer would then restore the
    old cookie, or delete the new one.
    """
    cookie = f"{settings.SESSION_COOKIE_NAME}=".encode()
    return [
        (name, value)
        for name, value in headers
        if name.lower() != b"set-cookie" or not value.startswith(cookie)
    ]


class ReadOnlySession(SessionBase):
    """A copy of a session in memory. Changes to it last as long as the request."""

    def __init__(self, original: SessionBase) -> None:
        self._original = original
        super().__init__(original.session_key)

    def __getattr__(self, name: str) -> Any:
        # For what a site's own session class has in addition to Django's interface.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._original, name)

    @property
    def modified(self) -> bool:
        """Always False, so that SessionMiddleware saves nothing."""
        return False

    @modified.setter
    def modified(self, value: bool) -> None:
        pass

    def load(self) -> dict[str, Any]:
        return dict(self._original.items())

    def exists(self, session_key: str) -> bool:
        return True

    def create(self) -> None:
        pass

    def save(self, must_create: bool = False) -> None:
        pass

    def delete(self, session_key: str | None = None) -> None:
        pass

    def flush(self) -> None:
        self.clear()

    async def aflush(self) -> None:
        self.clear()
