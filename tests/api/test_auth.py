"""Who asks: by session with CSRF, by tokens of the site's own, and in an API of the site's own."""

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
    """A token is its user's name."""

    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        return User.objects.filter(username=token).first()


def anonymous(request: HttpRequest) -> str | None:
    """A mistake: it tells no user."""
    return "somebody" if "X-Mistake" in request.headers else None


BEARER = "tests.api.test_auth.Token"
TOKENS = [BEARER, "tests.api.test_auth.anonymous", "tasks_app.api.SessionAuth"]


@pytest.fixture
def tokens() -> Iterator[None]:
    """The API of a site that takes tokens."""
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
def test_nobody_is_asked_to_log_in_and_not_redirected(path: str, method: str) -> None:
    response = getattr(Client(enforce_csrf_checks=True), method)(API + path)
    if response.status_code != 405:
        assert problem(response, 401) == {"detail": "Log in first."}
        assert response["WWW-Authenticate"] == "Session"


def test_a_session_needs_the_csrf_token_for_what_it_changes(ada: User) -> None:
    client = client_of(ada, enforce_csrf_checks=True)
    told = problem(start(client), 403)
    assert told["detail"] == (
        "CSRF cookie not set. Send the token of this site's pages, or its cookie csrftoken, in "
        "the header X-CSRFToken."
    )
    task = enqueued(owner=ada)
    problem(client.post(f"{API}{task.pk}/cancel"), 403)
    problem(client.delete(f"{API}{task.pk}"), 403)
    assert client.get(API).status_code == 200

    client.get("/")
    token = {"X-CSRFToken": client.cookies["csrftoken"].value}
    assert start(client, headers=token).status_code == 202
    told = problem(start(client, headers=token | {"Origin": "https://evil.example"}), 403)
    assert told["detail"].startswith("Origin checking failed - https://evil.example ")
    problem(start(client, headers={"X-CSRFToken": "wrong"}), 403)
    assert Task.objects.count() == 2


def test_who_is_not_active_is_nobody(ada: User) -> None:
    client = client_of(ada)
    User.objects.update(is_active=False)
    problem(client.get(API), 401)


# Tokens.


@pytest.mark.usefixtures("tokens")
def test_a_token_needs_no_csrf_token(ada: User) -> None:
    client = Client(enforce_csrf_checks=True)
    response = start(client, **bearing(ada))
    assert response.status_code == 202
    assert Task.objects.get().owner == ada
    found = client.get(response["Location"], **bearing(ada))
    assert found.json()["task_id"] == response.json()["task_id"]
    assert client.delete(f"{API}{Task.objects.get().pk}", **bearing(ada)).status_code == 409


@pytest.mark.usefixtures("tokens")
def test_a_token_before_a_session_decides(ada: User) -> None:
    client = client_of(someone(), enforce_csrf_checks=True)
    assert start(client, **bearing(ada)).status_code == 202
    assert Task.objects.get().owner == ada


@pytest.mark.usefixtures("tokens")
def test_sessions_go_on_beside_tokens(ada: User) -> None:
    assert start(client_of(ada)).status_code == 202
    problem(start(client_of(ada, enforce_csrf_checks=True)), 403)


@pytest.mark.usefixtures("tokens")
def test_a_wrong_token_is_told_what_would_do() -> None:
    response = Client().get(API, headers={"Authorization": "Bearer nobody"})
    problem(response, 401)
    assert response["WWW-Authenticate"] == "Bearer, Session"


@pytest.mark.usefixtures("tokens")
def test_a_token_of_somebody_not_active_is_refused(ada: User) -> None:
    User.objects.update(is_active=False)
    response = Client().get(API, **bearing(ada))
    assert problem(response, 401) == {"detail": "This user is not active."}
    assert response["WWW-Authenticate"] == "Bearer, Session"


@pytest.mark.usefixtures("tokens")
def test_an_authenticator_that_tells_no_user_is_a_mistake() -> None:
    with pytest.raises(ImproperlyConfigured, match="It must return the user who asks"):
        Client().get(API, headers={"X-Mistake": "1"})


@pytest.mark.usefixtures("tokens")
def test_a_site_that_wants_a_login_everywhere_takes_tokens_too(ada: User, settings: Any) -> None:
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
def test_the_openapi_tells_of_both() -> None:
    schemes = Client().get(f"{API}openapi.json").json()["components"]["securitySchemes"]
    assert schemes["Token"] == {"type": "http", "scheme": "bearer"}
    assert schemes["SessionAuth"] == {"type": "apiKey", "in": "cookie", "name": "sessionid"}


def test_what_cannot_be_imported_is_told() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"names 'shop\.auth\.Gone': No module .*shop"):
        authenticator("shop.auth.Gone")


def test_what_has_no_scheme_is_a_session() -> None:
    assert challenge([anonymous]) == "Session"


@pytest.mark.parametrize("wrong", [{"TASK_API_AUTH": ["shop.auth.Token"]}, {"TASK_MAX_WORKERS": 0}])
def test_who_cannot_be_asked_lets_nobody_pass(wrong: dict[str, Any]) -> None:
    """And the URLs load, so that `manage.py check` can tell why."""
    with override_settings(**wrong):
        [late] = authenticators()
        assert challenge([late]) == "Session"
        with pytest.raises(ImproperlyConfigured, match="TASK_"):
            late(RequestFactory().get("/"))


def test_what_could_not_be_had_at_first_is_asked_for_again(ada: User) -> None:
    """Such as an authenticator in a module that imports this app's API."""
    with override_settings(TASK_API_AUTH=["shop.auth.Token"]):
        [late] = authenticators()
    with override_settings(TASK_API_AUTH=[BEARER]):
        asked = RequestFactory().get("/", **bearing(ada))
        assert late(asked) == ada
        assert late(RequestFactory().get("/")) is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("tokens")
def test_a_stream_ends_with_the_token_that_opened_it(
    ada: User, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """The site is asked again by the same request, and refuses it."""
    monkeypatch.setattr(stream, "RECHECK_SECONDS", 0.05)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 0.02
    scope = AsyncRequestFactory()._base_scope(path="/api/tasks/stream", query_string="mine=1")
    bearer = f"Bearer {ada.username}".encode()
    scope["headers"] = [(b"host", b"testserver"), (b"authorization", bearer)]
    asked = ApplicationCommunicator(with_task_streams(get_asgi_application()), scope)

    async def said(text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in (await asked.receive_output(20)).get("body", b""):
                pass

    async def go() -> None:
        await asked.send_input({"type": "http.request"})
        assert (await asked.receive_output(20))["status"] == 200
        for _ in range(10):  # signs of life, and looks between them
            await said(b"keep-alive")
        await User.objects.filter(pk=ada.pk).aupdate(username="another")
        await said(b"stream-end")
        await asked.wait(10)

    async_to_sync(go)()


# In an API of the site's own.

own = NinjaAPI(urls_namespace="own")
own.add_exception_handler(Problem, answer_problem)  # type: ignore[arg-type]
own.add_router("/work/", router)

bare = NinjaAPI(urls_namespace="bare")
bare.add_router("/work/", router, auth=Token())

told = NinjaAPI(urls_namespace="told")
answer_all(told, "Bearer")
told.add_router("/work/", router, auth=Token())

urlpatterns = [path("own/", own.urls), path("bare/", bare.urls), path("told/", told.urls)]
OWN = override_settings(ROOT_URLCONF="tests.api.test_auth")


@OWN
def test_the_router_works_in_an_api_of_the_sites_own(ada: User) -> None:
    client = client_of(ada)
    response = client.post("/own/work/", GREET, content_type="application/json")
    task = Task.objects.get()
    assert response.status_code == 202
    assert response["Location"] == f"/own/work/{task.pk}/status"
    assert response.json()["stream_url"] == f"/own/work/{task.pk}/stream"
    assert problem(client.post(f"/own/work/{task.pk}/retry"), 409)["task_status"] == "pending"


@OWN
def test_there_it_asks_who_is_there_unless_told_otherwise(ada: User) -> None:
    """An API without authenticators of its own does not open the tasks to all."""
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
        {"detail": "There is no such task, or you may not see it."},
    )


@OWN
def test_with_all_our_handlers_whatever_goes_wrong_there_is_a_problem(ada: User) -> None:
    response = Client().get("/told/work/")
    assert problem(response, 401) == {"detail": "Log in first."}
    assert response["WWW-Authenticate"] == "Bearer"
    assert set(problem(Client().get("/told/work/?x=1", **bearing(ada)), 422)["errors"]) == {"x"}
    response = Client().get("/told/work/?limit=x", **bearing(ada))
    assert set(problem(response, 422)["errors"]) == {"limit"}


def test_the_router_names_who_asks_by_itself() -> None:
    assert [type(one) for one in router.auth] == [SessionAuth]
