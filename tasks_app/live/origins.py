"""Access to streams from pages of other origins: django-eventstream's settings, as CORS headers."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.cache import patch_vary_headers

#: The seconds for which a browser may cache the answer to a preflight request.
PREFLIGHT_MAX_AGE = 600


def allow(request: HttpRequest, response: HttpResponseBase) -> None:
    """Let a page of an allowed origin read a response. Do nothing if the site allows no origin."""
    allowed = set(allowed_origins())
    if not allowed:
        return
    origin = request.headers.get("Origin", "")
    if "*" in allowed:
        origin = "*"
    else:
        patch_vary_headers(response, ["Origin"])
        if origin not in allowed:
            return
    response.headers["Access-Control-Allow-Origin"] = origin
    if getattr(settings, "EVENTSTREAM_ALLOW_CREDENTIALS", False):
        response.headers["Access-Control-Allow-Credentials"] = "true"
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = "GET"
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_MAX_AGE)
        if headers := getattr(settings, "EVENTSTREAM_ALLOW_HEADERS", ""):
            response.headers["Access-Control-Allow-Headers"] = headers


def allowed_origins() -> Iterator[str]:
    for name in ("EVENTSTREAM_ALLOW_ORIGIN", "EVENTSTREAM_ALLOW_ORIGINS"):
        value = getattr(settings, name, None) or ()
        yield from [value] if isinstance(value, str) else value
