"""Sessions that streams read and never write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest


def read_only(request: HttpRequest) -> None:
    """Give a request a session that is read from its own, and never written.

    Pages of one user reconnect together and often. If each wrote the session, they would extend it
    for as long as a tab is open, and under a rotated key take it from each other.
    """
    session = getattr(request, "session", None)
    if isinstance(session, SessionBase):
        request.session = ReadOnlySession(session)


def without_cookie(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Leave the session's cookie out of the headers of an answer to a request for a stream.

    The user may have logged in or out since the request was sent. Then the answer would bring the
    old cookie back, or delete the new one.
    """
    cookie = f"{settings.SESSION_COOKIE_NAME}=".encode()
    return [
        (name, value)
        for name, value in headers
        if name.lower() != b"set-cookie" or not value.startswith(cookie)
    ]


class ReadOnlySession(SessionBase):
    """A copy of a session in memory. Changes to it are kept for the request and then forgotten."""

    def __init__(self, original: SessionBase) -> None:
        self._original = original
        super().__init__(original.session_key)

    def __getattr__(self, name: str) -> Any:
        # What a site's own session store offers beside Django's interface.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._original, name)

    @property
    def modified(self) -> bool:
        """Never, as SessionMiddleware sees it: there is nothing to save."""
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
