"""A database that is away by the time that a stream asks it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError

#: What a stream asks of it, in this order, and where.
ASKED = {
    "user": "django.contrib.sessions.backends.db.SessionStore.load",
    "rights": "tasks_app.streaming.endpoint.readable",
    "stream": "tasks_app.streaming.relay.Cursor.now",
}


def take_away(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def away(*_args: Any, **_kwargs: Any) -> Any:
        raise OperationalError("connection refused")

    monkeypatch.setattr(ASKED[at], away)
