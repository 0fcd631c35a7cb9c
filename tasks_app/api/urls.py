"""The URLs of the API. A site adds `path("api/tasks/", include("tasks_app.api.urls"))`."""

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
#: URLs of django-ninja itself, which need no authentication.
_PAGES = {"openapi-json", "openapi-view", "api-root"}


def build(namespace: str = app_name) -> NinjaAPI:
    """Return a separate API under a namespace, with the authenticators of TASK_API_AUTH."""
    auth = authenticators()
    api = NinjaAPI(
        title="Tasks",
        version="1",
        description="Start background tasks, watch them, and end them.",
        urls_namespace=namespace,
        auth=auth,
        # If django-ninja is not an installed app, its page would load files from another host.
        docs_url="/docs" if apps.is_installed("ninja") else None,
    )
    answer_all(api, challenge(auth))
    api.add_router("", router, auth=auth)
    return api


def patterns(api: NinjaAPI) -> list[URLPattern]:
    """Return the URLs of an API. All other paths and methods are answered with a problem."""
    url_patterns = cast(list[URLPattern], api.urls[0])
    for pattern in url_patterns:
        pattern.callback = _guarded(pattern.callback)
        if pattern.name not in _PAGES:
            # Authenticators decide, and answer 401. Django's LoginRequiredMiddleware would redirect
            # clients, even those with a token.
            pattern.callback = login_not_required(pattern.callback)
    return [*url_patterns, re_path("", _not_found)]


@login_not_required
@csrf_exempt
def _not_found(request: HttpRequest) -> HttpResponseBase:
    detail = "There is no API endpoint at this path."
    return Problem(HTTPStatus.NOT_FOUND, detail).response(request)


limit_body(_not_found, lambda: 0)


def _guarded(view: View) -> View:
    """Wrap a view so that a 405, which django-ninja answers in plain text, is a problem."""
    if iscoroutinefunction(view):

        @wraps(view)
        async def stream(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
            return _as_problem(request, await cast(Awaitable[Any], view(request, **kwargs)))

        return stream_view(stream, unavailable)  # type: ignore[return-value]

    @wraps(view)
    def guarded(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        method = request.method
        if method == "HEAD":
            # Answer as for GET. The server leaves out the body.
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
    """Return a problem for a 405. `head` allows HEAD with GET; streams, which never end, do not."""
    if isinstance(response, HttpResponseNotAllowed):
        methods = set(response.headers["Allow"].split(", "))
        if head and "GET" in methods:
            methods.add("HEAD")
        allowed = ", ".join(sorted(methods))
        return Problem(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{request.method} is not allowed at this path. Use {allowed}.",
            headers={"Allow": allowed},
        ).response(request)
    return response


api = build()
urlpatterns = patterns(api)
