"""The API, for a site to include: `path("api/tasks/", include("tasks_app.api.urls"))`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any, cast

from django.apps import apps
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponseBase, HttpResponseNotAllowed
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI

from tasks_app.api.auth import authenticators, challenge
from tasks_app.api.operations import router
from tasks_app.api.problems import Problem, answer_all, unavailable
from tasks_app.conf import task_settings
from tasks_app.live.endpoint import limit_body, stream_view

View = Callable[..., HttpResponseBase]

app_name = "tasks_app_api"
#: Of django-ninja's own, which ask nobody who they are.
_PAGES = {"openapi-json", "openapi-view", "api-root"}


def build(namespace: str = app_name) -> NinjaAPI:
    """Return the API by itself, under a namespace, with the authenticators of TASK_API_AUTH."""
    asked = authenticators()
    api = NinjaAPI(
        title="Tasks",
        version="1",
        description="Start background tasks, watch them, and end them.",
        urls_namespace=namespace,
        auth=asked,
        # Without django-ninja among the apps its page would come from another host.
        docs_url="/docs" if apps.is_installed("ninja") else None,
    )
    answer_all(api, challenge(asked))
    api.add_router("", router, auth=asked)
    return api


def patterns(api: NinjaAPI) -> list[URLPattern]:
    """The URLs of an API, with a problem for every other path and method."""
    found = cast(list[URLPattern], api.urls[0])
    for pattern in found:
        pattern.callback = _guarded(pattern.callback)
        if pattern.name not in _PAGES:
            # Authenticators decide, and answer 401: Django's LoginRequiredMiddleware would redirect
            # also those who have a token.
            pattern.callback = login_not_required(pattern.callback)
    return [*found, re_path("", _nothing_here)]


@login_not_required
@csrf_exempt
def _nothing_here(request: HttpRequest) -> HttpResponseBase:
    return Problem(HTTPStatus.NOT_FOUND, "There is nothing at this path.").response(request)


limit_body(_nothing_here, lambda: 0)


def _guarded(view: View) -> View:
    """Answer what django-ninja answers in plain text with a problem."""
    if iscoroutinefunction(view):

        @wraps(view)
        async def stream(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
            return _as_problem(request, await cast(Awaitable[Any], view(request, **kwargs)))

        return stream_view(stream, unavailable)  # type: ignore[return-value]

    @wraps(view)
    def guarded(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        method = request.method
        if method == "HEAD":
            # As GET: servers leave out the body.
            request.method = "GET"
        try:
            response = view(request, **kwargs)
        finally:
            request.method = method
        return _as_problem(request, response, head=True)

    return cast(View, limit_body(guarded, lambda: task_settings().api_max_body_bytes))


def _as_problem(
    request: HttpRequest, response: HttpResponseBase, head: bool = False
) -> HttpResponseBase:
    """`head` says whether HEAD is for where GET is: it is not for a stream, which has no end."""
    if isinstance(response, HttpResponseNotAllowed):
        methods = set(response.headers["Allow"].split(", "))
        if head and "GET" in methods:
            methods.add("HEAD")
        allowed = ", ".join(sorted(methods))
        return Problem(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{request.method} is not for this path. Use {allowed}.",
            headers={"Allow": allowed},
        ).response(request)
    return response


api = build()
urlpatterns = patterns(api)
