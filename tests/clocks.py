"""The database's clock, in the hands of a test."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.utils import timezone

from tasks_app import ledger


class Clock:
    """The database's time, in the test's hands: told in UTC, asked as the site keeps its time."""

    def __init__(self) -> None:
        self.now = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def __call__(self, _using: str) -> datetime:
        return local(self.now)


def local(moment: datetime) -> datetime:
    """A time as the site keeps it."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    begin = ledger.begin

    def begin_by_it(using: str, *wait: int) -> datetime:
        begin(using, *wait)
        return clock(using)

    for name, module in list(sys.modules.items()):
        if name.startswith("tasks_app."):
            if hasattr(module, "database_now"):
                monkeypatch.setattr(module, "database_now", clock)
            if getattr(module, "begin", None) is begin:
                monkeypatch.setattr(module, "begin", begin_by_it)
    return clock
