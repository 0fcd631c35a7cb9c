"""Authentication: sessions with CSRF, a site's own tokens, and a site's own API."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import AsyncRequestFactory, Client, RequestFactory, override_settings
from django.urls import include, path
from ninja import NinjaAPI
from ninja.security import HttpBearer

from tasks_app.api import Problem, SessionAuth, answer_all, answer_problem, router
from tasks_app.api import urls as api_urls
from tasks_app.api.auth import authenticator, authenticators, challenge
from tasks_app.live import stream
from tasks_app.live.asgi import with_task_streams
from tasks_app.models import Task
from tests.api.asking import API, GREET, client_of, problem, someone, start
from tests.rows import enqueued

pytestmark = pytest.mark.django_db


class Token(HttpBearer):
    """The token is the user's name."""

    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        return User.objects.filter(username=token).first()


def anonymous(request: HttpRequest) -> str | None:
    """A faulty authenticator: it returns no user."""
    return "somebody" if "X-Mistake" in request.headers else None


BEARER = "tests.api.test_auth.Token"
TOKENS = [BEARER, "tests.api.test_auth.anonymous", "tasks_app.api.SessionAuth"]


@pytest.fixture
def tokens() -> Iterator[None]:
    """Serve the API of a site that accepts tokens."""
    with override_settings(TASK_API_AUTH=TOKENS):
        module = ModuleType("tests.api.token_urls")
        patterns = api_urls.patterns(api_urls.build("tokens"))
        module.urlpatterns = [  # type: ignore[attr-defined]
            path("api/tasks/", include((patterns, "tasks_app_api"), namespace="tokens")),
        ]
        sys.modules[module.__name__] = module
        with override_settings(ROOT_URLCONF=module.__name__):
            yield
        del sys.modules[module.__name__]


@pytest.fixture
def ada() -> User:
    return someone("start_task")


def bearing(user: User, **options: Any) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {user.username}"} | options}


# Sessions.


@pytest.mark.parametrize("path", ["", "stream", "00000000-0000-0000-0000-000000000000"])
@pytest.mark.parametrize("method", ["get", "post", "delete"])
def test_anonymous_user_gets_401_and_no_redirect(path: str, method: str) -> None:
    response = getattr(Client(enforce_csrf_checks=True), method)(API + path)
    if response.status_code != 405:
        assert problem(response, 401) == {"detail": "Authentication required. Log in first."}
        assert response["WWW-Authenticate"] == "Session"


def test_session_needs_a_csrf_token_for_changes(ada: User) -> None:
    client = client_of(ada, enforce_csrf_checks=True)
    body = problem(start(client), 403)
    assert body["detail"] == (
        "CSRF cookie not set. Send the CSRF token of this site's pages, or of its cookie "
        "csrftoken, in the header X-CSRFToken."
    )
    task = enqueued(owner=ada)
    problem(client.post(f"{API}{task.pk}/cancel"), 403)
    problem(client.delete(f"{API}{task.pk}"), 403)
    assert client.get(API).status_code == 200

    client.get("/")
    token = {"X-CSRFToken": client.cookies["csrftoken"].value}
    assert start(client, headers=token).status_code == 202
    body = problem(start(client, headers=token | {"Origin": "https://evil.example"}), 403)
    assert body["detail"].startswith("Origin checking failed - https://evil.example ")
    problem(start(client, headers={"X-CSRFToken": "wrong"}), 403)
    assert Task.objects.count() == 2


def test_inactive_user_is_not_authenticated(ada: User) -> None:
    client = client_of(ada)
    User.objects.update(is_active=False)
    problem(client.get(API), 401)


# Tokens.


@pytest.mark.usefixtures("tokens")
def test_token_needs_no_csrf_token(ada: User) -> None:
    client = Client(enforce_csrf_checks=True)
    response = start(client, **bearing(ada))
    assert response.status_code == 202
    assert Task.objects.get().owner == ada
    found = client.get(response["Location"], **bearing(ada))
    assert found.json()["task_id"] == response.json()["task_id"]
    assert client.delete(f"{API}{Task.objects.get().pk}", **bearing(ada)).status_code == 409


@pytest.mark.usefixtures("tokens")
def test_first_authenticator_decides(ada: User) -> None:
    client = client_of(someone(), enforce_csrf_checks=True)
    assert start(client, **bearing(ada)).status_code == 202
    assert Task.objects.get().owner == ada


@pytest.mark.usefixtures("tokens")
def test_sessions_work_beside_tokens(ada: User) -> None:
    assert start(client_of(ada)).status_code == 202
    problem(start(client_of(ada, enforce_csrf_checks=True)), 403)


@pytest.mark.usefixtures("tokens")
def test_invalid_token_response_lists_the_schemes() -> None:
    response = Client().get(API, headers={"Authorization": "Bearer nobody"})
    problem(response, 401)
    assert response["WWW-Authenticate"] == "Bearer, Session"


@pytest.mark.usefixtures("tokens")
def test_token_of_an_inactive_user_is_refused(ada: User) -> None:
    User.objects.update(is_active=False)
    response = Client().get(API, **bearing(ada))
    assert problem(response, 401) == {"detail": "This user account is inactive."}
    assert response["WWW-Authenticate"] == "Bearer, Session"


@pytest.mark.usefixtures("tokens")
def test_authenticator_without_a_user_raises() -> None:
    with pytest.raises(ImproperlyConfigured, match="It must return the user who sent the request"):
        Client().get(API, headers={"X-Mistake": "1"})


@pytest.mark.usefixtures("tokens")
def test_tokens_work_if_the_site_requires_a_login(ada: User, settings: Any) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    client = Client(enforce_csrf_checks=True)
    response = start(client, **bearing(ada))
    assert response.status_code == 202
    assert client.get(response["Location"], **bearing(ada)).status_code == 200
    problem(client.get(f"{API}nowhere/", **bearing(ada)), 404)
    problem(client.get(API), 401)
    problem(client.get(f"{API}stream"), 401)
    settings.LOGIN_URL = "/login/"
    assert client.get(f"{API}openapi.json").status_code == 302


@pytest.mark.usefixtures("tokens")
def test_openapi_has_both_schemes() -> None:
    schemes = Client().get(f"{API}openapi.json").json()["components"]["securitySchemes"]
    assert schemes["Token"] == {"type": "http", "scheme": "bearer"}
    assert schemes["SessionAuth"] == {"type": "apiKey", "in": "cookie", "name": "sessionid"}


def test_authenticator_that_cannot_be_imported_raises() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"names 'shop\.auth\.Gone': No module .*shop"):
        authenticator("shop.auth.Gone")


def test_authenticator_without_a_scheme_counts_as_session() -> None:
    assert challenge([anonymous]) == "Session"


@pytest.mark.parametrize("wrong", [{"TASK_API_AUTH": ["shop.auth.Token"]}, {"TASK_MAX_WORKERS": 0}])
def test_broken_authentication_admits_nobody(wrong: dict[str, Any]) -> None:
    """The URLs still load, so that `manage.py check` can report why."""
    with override_settings(**wrong):
        [late] = authenticators()
        assert challenge([late]) == "Session"
        with pytest.raises(ImproperlyConfigured, match="TASK_"):
            late(RequestFactory().get("/"))


def test_failed_import_of_an_authenticator_is_retried(ada: User) -> None:
    """For example if its module imports this app's API."""
    with override_settings(TASK_API_AUTH=["shop.auth.Token"]):
        [late] = authenticators()
    with override_settings(TASK_API_AUTH=[BEARER]):
        request = RequestFactory().get("/", **bearing(ada))
        assert late(request) == ada
        assert late(RequestFactory().get("/")) is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("tokens")
def test_stream_ends_with_its_token(
    ada: User, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """The site is asked again with the same request, and refuses it."""
    monkeypatch.setattr(stream, "RECHECK_SECONDS", 0.05)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 0.02
    scope = AsyncRequestFactory()._base_scope(path="/api/tasks/stream", query_string="mine=1")
    bearer = f"Bearer {ada.username}".encode()
    scope["headers"] = [(b"host", b"testserver"), (b"authorization", bearer)]
    stream_client = ApplicationCommunicator(with_task_streams(get_asgi_application()), scope)

    async def receive_until(text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in (await stream_client.receive_output(20)).get("body", b""):
                pass

    async def go() -> None:
        await stream_client.send_input({"type": "http.request"})
        assert (await stream_client.receive_output(20))["status"] == 200
        for _ in range(10):  # keep-alives, and re-checks between them
            await receive_until(b"keep-alive")
        await User.objects.filter(pk=ada.pk).aupdate(username="another")
        await receive_until(b"stream-end")
        await stream_client.wait(10)

    async_to_sync(go)()


# In a site's own API.

own = NinjaAPI(urls_namespace="own")
own.add_exception_handler(Problem, answer_problem)  # type: ignore[arg-type]
own.add_router("/work/", router)

bare = NinjaAPI(urls_namespace="bare")
bare.add_router("/work/", router, auth=Token())

handled = NinjaAPI(urls_namespace="handled")
answer_all(handled, "Bearer")
handled.add_router("/work/", router, auth=Token())

urlpatterns = [path("own/", own.urls), path("bare/", bare.urls), path("handled/", handled.urls)]
OWN = override_settings(ROOT_URLCONF="tests.api.test_auth")


@OWN
def test_router_works_in_a_sites_own_api(ada: User) -> None:
    client = client_of(ada)
    response = client.post("/own/work/", GREET, content_type="application/json")
    task = Task.objects.get()
    assert response.status_code == 202
    assert response["Location"] == f"/own/work/{task.pk}/status"
    assert response.json()["stream_url"] == f"/own/work/{task.pk}/stream"
    assert problem(client.post(f"/own/work/{task.pk}/retry"), 409)["task_status"] == "pending"


@OWN
def test_router_authenticates_by_default(ada: User) -> None:
    """An API without its own authenticators must not open the tasks to everybody."""
    assert Client().get("/own/work/").status_code == 401
    client = client_of(ada, enforce_csrf_checks=True)
    problem(client.post("/own/work/", GREET, content_type="application/json"), 403)
    assert client_of(ada).get("/bare/work/").status_code == 401
    assert Client().get("/bare/work/", **bearing(ada)).status_code == 200


@OWN
def test_without_our_handler_a_problem_is_an_error_of_that_api(ada: User) -> None:
    task = enqueued()
    response = Client().get(f"/bare/work/{task.pk}", **bearing(ada))
    assert (response.status_code, response.json()) == (
        404,
        {"detail": "Task not found, or you don't have permission to view it."},
    )


@OWN
def test_with_our_handlers_every_error_is_a_problem(ada: User) -> None:
    response = Client().get("/handled/work/")
    assert problem(response, 401) == {"detail": "Authentication required. Log in first."}
    assert response["WWW-Authenticate"] == "Bearer"
    assert set(problem(Client().get("/handled/work/?x=1", **bearing(ada)), 422)["errors"]) == {"x"}
    response = Client().get("/handled/work/?limit=x", **bearing(ada))
    assert set(problem(response, 422)["errors"]) == {"limit"}


def test_router_has_an_authenticator() -> None:
    assert [type(one) for one in router.auth] == [SessionAuth]
