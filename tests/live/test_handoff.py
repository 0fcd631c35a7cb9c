"""The answer of a site that is asked again who may read an open stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError
from django.test import AsyncRequestFactory, Client

from tasks_app.live.channels import owner_channel
from tasks_app.live.handoff import ask_again
from tests.outages import take_away

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


Ask = Callable[[], set[str]]


@pytest.fixture(params=["/tasks/stream/", "/api/tasks/stream"])
def ask(ada: User, request: pytest.FixtureRequest) -> Ask:
    """Ask again for the rights of a request for Ada's own tasks, with both kinds of URLs."""
    client = Client()
    client.force_login(ada)
    scope = AsyncRequestFactory()._base_scope(path=request.param, query_string="mine=1")
    cookie = f"sessionid={client.session.session_key}"
    scope["headers"] = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
    # Created here, so that it uses the test's settings.
    return lambda: async_to_sync(ask_again)(ASGIHandler(), scope)


@pytest.mark.parametrize("middleware", ["closed", "replacing"])
def test_other_response_than_the_views_grants_nothing(
    ada: User, ask: Ask, settings: Any, middleware: str
) -> None:
    """The status does not matter: a maintenance page has 503, a page with new terms has 200."""
    assert ask() == {owner_channel(ada.pk)}
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"tests.site_middleware.{middleware}"]
    assert ask() == set()


@pytest.mark.parametrize("at", ["user", "rights"])
def test_unavailable_database_decides_nothing(
    ask: Ask, at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is logged, because each open stream asks again as long as it lasts."""
    take_away(monkeypatch, at)
    with pytest.raises(OperationalError, match="who may still read"):
        ask()
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
