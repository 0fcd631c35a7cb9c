"""Other origins that may read streams."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.test import AsyncClient, RequestFactory

from tasks_app.live import origins

pytestmark = pytest.mark.once

OURS, OTHER, STRANGER = "https://app.example", "https://other.example", "https://evil.example"


@pytest.mark.parametrize(
    ("allowed", "origin", "expected", "vary"),
    [
        ([OURS, OTHER], OURS, OURS, "Origin"),
        ([OURS, OTHER], OTHER, OTHER, "Origin"),
        ([OURS, OTHER], STRANGER, None, "Origin"),
        ([OURS, OTHER], None, None, "Origin"),
        (OURS, OURS, OURS, "Origin"),
        (OURS, STRANGER, None, "Origin"),
        ("*", STRANGER, "*", None),
        ("", OURS, None, None),
    ],
)
@pytest.mark.parametrize("setting", ["EVENTSTREAM_ALLOW_ORIGIN", "EVENTSTREAM_ALLOW_ORIGINS"])
def test_origin_of_a_request_decides(
    settings: Any, setting: str, allowed: Any, origin: str | None, expected: str | None, vary: str
) -> None:
    """The Referer does not matter: Django's pages send none to other origins."""
    settings.EVENTSTREAM_ALLOW_ORIGIN = ""
    setattr(settings, setting, allowed)
    headers = {"Referer": f"{OURS}/", **({"Origin": origin} if origin else {})}
    response = HttpResponse()
    origins.allow(RequestFactory().get("/", headers=headers), response)
    assert response.get("Access-Control-Allow-Origin") == expected
    assert response.get("Vary") == vary


@pytest.mark.parametrize("path", ["/tasks/stream/", "/api/tasks/stream"])
def test_preflight_is_answered(settings: Any, path: str) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = [OURS]
    settings.EVENTSTREAM_ALLOW_CREDENTIALS = True
    settings.EVENTSTREAM_ALLOW_HEADERS = "Authorization, Last-Event-ID"
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    ask = async_to_sync(AsyncClient().options)
    cors_headers = {
        name: value
        for name, value in ask(path, headers={"Origin": OURS, **asked}).headers.items()
        if name.startswith("Access-Control")
    }
    assert cors_headers == {
        "Access-Control-Allow-Origin": OURS,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET",
        "Access-Control-Allow-Headers": "Authorization, Last-Event-ID",
        "Access-Control-Max-Age": "600",
    }
    stranger = ask(path, headers={"Origin": STRANGER, **asked})
    assert (stranger.status_code, stranger.headers["Allow"]) == (204, "GET, OPTIONS")
    assert "Access-Control-Allow-Origin" not in stranger.headers
