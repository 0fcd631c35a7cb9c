"""The database's clock, controlled by a test."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.utils import timezone

from tasks_app.store import ledger


class Clock:
    """A database clock that a test sets in UTC and that answers in the site's time zone mode."""

    def __init__(self) -> None:
        self.now = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def __call__(self, _using: str) -> datetime:
        return local(self.now)


def local(value: datetime) -> datetime:
    """Return a time in the form that the site uses: aware, or naive if USE_TZ is off."""
    return value if settings.USE_TZ else timezone.make_naive(value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    begin = ledger.begin

    def begin_at_clock(using: str, *wait: int) -> datetime:
        begin(using, *wait)
        return clock(using)

    for name, module in list(sys.modules.items()):
        if name.startswith("tasks_app."):
            if hasattr(module, "database_now"):
                monkeypatch.setattr(module, "database_now", clock)
            if getattr(module, "begin", None) is begin:
                monkeypatch.setattr(module, "begin", begin_at_clock)
    return clock
