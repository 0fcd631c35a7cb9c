"""What a site answers when it is asked again who may read an open stream."""

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
    """Ask for the rights of a request for all that is hers, at either door."""
    client = Client()
    client.force_login(ada)
    scope = AsyncRequestFactory()._base_scope(path=request.param, query_string="mine=1")
    cookie = f"sessionid={client.session.session_key}"
    scope["headers"] = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
    # Made here, so that it goes by the settings of the test.
    return lambda: async_to_sync(ask_again)(ASGIHandler(), scope)


@pytest.mark.parametrize("middleware", ["closed", "replacing"])
def test_a_page_in_place_of_the_view_grants_nothing(
    ada: User, ask: Ask, settings: Any, middleware: str
) -> None:
    """Whatever its status: maintenance answers 503, terms to agree to answer 200."""
    assert ask() == {owner_channel(ada.pk)}
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"tests.site_middleware.{middleware}"]
    assert ask() == set()


@pytest.mark.parametrize("at", ["user", "rights"])
def test_a_database_that_is_away_decides_nothing(
    ask: Ask, at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is no line of the log: each open stream asks again, for as long as it is away."""
    take_away(monkeypatch, at)
    with pytest.raises(OperationalError, match="who may still read"):
        ask()
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
