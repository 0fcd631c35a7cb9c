"""Clients and requests for tests of the API."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

from tests.api.tasks import Greet

API = "/api/tasks/"
GREET = {"task": Greet.name(), "params": {"place": {"name": "Berne", "people": 3}}}


def someone(*codenames: str, **fields: Any) -> User:
    user = User.objects.create(username=f"user{User.objects.count()}", **fields)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="tasks_app", codename__in=codenames)
    )
    return User.objects.get(pk=user.pk)


def client_of(user: User | None, **options: Any) -> Client:
    client = Client(**options)
    if user is not None:
        client.force_login(user)
    return client


def start(client: Client, body: Any = None, **options: Any) -> Any:
    content = GREET if body is None else body
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    return client.post(API, data, **{"content_type": "application/json"} | options)


def problem(response: Any, status: int) -> dict[str, Any]:
    """Check that a response is a problem, and return its body without the common fields."""
    assert (response.status_code, response["Content-Type"]) == (status, "application/problem+json")
    assert "no-store" in response["Cache-Control"]
    body: dict[str, Any] = response.json()
    assert body.pop("type") == "about:blank"
    assert body.pop("title") == response.reason_phrase
    assert body.pop("status") == status
    assert body.pop("instance") == response.wsgi_request.path
    return body
