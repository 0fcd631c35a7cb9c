"""A database that is down when a stream queries it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError

#: The queries for opening a stream, in order, and the function of each.
ASKED = {
    "user": "django.contrib.sessions.backends.db.SessionStore.load",
    "rights": "tasks_app.live.endpoint.readable",
    "stream": "tasks_app.live.relay.Cursor.now",
}


def take_away(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def away(*_args: Any, **_kwargs: Any) -> Any:
        raise OperationalError("connection refused")

    monkeypatch.setattr(ASKED[at], away)
