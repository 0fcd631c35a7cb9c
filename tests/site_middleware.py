"""Middleware that sites have in MIDDLEWARE, sync and async."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware, sync_only_middleware

GetResponse = Callable[[HttpRequest], Any]


@sync_only_middleware
def acting(get_response: GetResponse) -> GetResponse:
    """Set the user, as impersonation and tokens in cookies do."""

    def middleware(request: HttpRequest) -> Any:
        if name := request.COOKIES.get("acting_as"):
            request.user = User.objects.get(username=name)
        return get_response(request)

    return middleware


@sync_only_middleware
def marking(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Mark"] = "seen"
        response.set_cookie("mark", "seen")
        return response

    return middleware


@sync_and_async_middleware
def closed(get_response: GetResponse) -> GetResponse:
    """Answer 503 after the view was called, as a maintenance mode does."""
    if not iscoroutinefunction(get_response):
        raise TypeError("meant for ASGI")

    async def middleware(request: HttpRequest) -> Any:
        await get_response(request)
        return HttpResponse("Back soon.", status=503)

    return middleware


@sync_only_middleware
def replacing(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> Any:
        get_response(request)
        return HttpResponse("Read the new terms first.")

    return middleware


@sync_only_middleware
def elsewhere(get_response: GetResponse) -> GetResponse:
    """Choose the URLs of a tenant."""

    def middleware(request: HttpRequest) -> Any:
        request.urlconf = "tests.i18n_urls"  # type: ignore[attr-defined]
        return get_response(request)

    return middleware
