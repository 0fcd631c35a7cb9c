from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from tests.clocks import Clock

Login = Callable[..., Client]


@pytest.fixture
def login(db: None) -> Login:
    """Log a staff user in with these permissions."""

    def log_in(*permissions: str, username: str = "staff", is_staff: bool = True) -> Client:
        user = User.objects.create_user(username, is_staff=is_staff)
        found = Permission.objects.filter(
            content_type__app_label="tasks_app", codename__in=permissions
        )
        assert len(found) == len(permissions)
        user.user_permissions.set(found)
        client = Client()
        client.force_login(user)
        return client

    return log_in


@pytest.fixture
def still(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop all clocks, so that a page is never older than its rows in a slow test."""
    now = timezone.now()
    clock.now = now
    monkeypatch.setattr(timezone, "now", lambda: now)
