"""The API against its OpenAPI schema: every response to any request is declared."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.apps import apps
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.test import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tasks_app.api import urls
from tasks_app.states import Status
from tests.api.asking import API, client_of, someone
from tests.api.test_streams import first, scope
from tests.rows import ended, enqueued, saved

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

#: Over WSGI, where streams answer that they need ASGI, so that no response is endless.
OPENAPI = schemathesis.openapi.from_wsgi(f"{API}openapi.json", get_wsgi_application())
OPERATIONS: list[APIOperation[Any, Any, Any, Any]] = [
    found.ok() for found in OPENAPI.get_all_operations()
]

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

#: Statuses that must occur with valid requests, so that each operation is really tested.
EXPECTED = {
    "POST ": {202, 422},
    "GET ": {200},
    "GET stream": {501},
    "GET {task_id}": {200, 404},
    "DELETE {task_id}": {204, 404, 409},
    "GET {task_id}/status": {200, 404},
    "GET {task_id}/events": {200, 404},
    "GET {task_id}/stream": {501},
    "POST {task_id}/cancel": {200, 404, 409},
    "POST {task_id}/retry": {202, 404, 409},
}

TOKEN = "t" * 32


@pytest.fixture(autouse=True)
def _one_transaction(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the connection and the test's transaction through all requests.

    Django's own test client does the same.
    """
    marker = request.node.get_closest_marker("django_db")
    if marker.kwargs.get("transaction"):
        # Under ASGI each request has its own connection, which must be closed at its end.
        yield
        return
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def root() -> User:
    return someone(is_superuser=True)


def cookies_of(user: User | None) -> dict[str, str]:
    """Return the cookies of a user's session, with its CSRF token."""
    cookies = {"csrftoken": TOKEN}
    if user is not None:
        client = client_of(user)
        cookies["sessionid"] = client.cookies["sessionid"].value
    return cookies


def tried(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    cookies: dict[str, str],
    ids: list[str],
    examples: int,
) -> set[int]:
    """Try an operation with valid or invalid requests, and return the response statuses."""
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        task_id=st.sampled_from([None, *ids]),
        name=st.sampled_from(
            [None, *(f"tests.api.tasks.{name}" for name in ("Anything", "Greet"))]
        ),
    )
    def ask(case: Any, task_id: str | None, name: str | None) -> None:
        # Random ids and names would never match existing ones.
        if task_id and "task_id" in case.path_parameters:
            case.path_parameters["task_id"] = task_id
        if name and isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body["task"] = name
        answer(case)

    def answer(case: Any) -> None:
        with transaction.atomic():
            response = case.call(headers={"X-CSRFToken": TOKEN}, cookies=cookies)
            transaction.set_rollback(True)
        seen.add(response.status_code)
        if response.status_code != 501:
            case.validate_response(response, checks=[*CHECKS, not_a_server_error])
        else:
            case.validate_response(response, checks=CHECKS)

    ask()
    if operation.label == f"POST {API}" and mode is GenerationMode.POSITIVE:
        # Random requests would never start a task.
        body = {"task": "tests.api.tasks.Anything"}
        answer(operation.Case(body=body, media_type="application/json"))
    return seen


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("who", ["superuser", "nobody"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_response_is_declared(
    root: User, operation: Any, who: str, mode: GenerationMode
) -> None:
    ids = [str(saved(status, owner=root, name="tests.tasks.Noop").pk) for status in Status]
    cookies = cookies_of(root if who == "superuser" else None)
    seen = tried(operation, mode, cookies, ids, examples=15 if who == "superuser" else 3)
    if who == "nobody":
        assert seen <= {401, 404, 405}
    elif mode is GenerationMode.POSITIVE:
        assert seen >= EXPECTED[operation.label.replace(API, "")]


def test_docs_page_loads_only_files_of_the_site() -> None:
    """As a Content Security Policy of 'self' requires. Only data is inline."""
    page = Client().get(f"{API}docs")
    assert page.status_code == 200
    text = page.content.decode()
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(sources) > 3
    assert all(source.startswith("/static/ninja/") for source in sources)
    assert re.findall(r"<script(?! src=)([^>]*)>", text) == [
        ' type="application/json" id="swagger-settings"'
    ]


def test_without_the_files_there_is_no_docs_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "is_installed", lambda _name: False)
    assert urls.build("bare").docs_url is None


@pytest.mark.django_db(transaction=True)
def test_responses_of_streams_are_declared(root: User) -> None:
    """Over ASGI, where they do stream. Written by hand, because a stream need not end."""
    over, task = ended(Status.COMPLETED), enqueued(owner=root)
    declared = {
        operation.path.removeprefix(API): operation.definition.raw["responses"]
        for operation in OPERATIONS
    }
    had = {"Last-Event-ID": str(over.events.latest("id").pk)}
    for user, path, query, headers, expected in [
        (root, "stream", f"task={task.pk}", {}, 200),
        (root, "stream", "all=1", {}, 200),
        (root, f"{task.pk}/stream", "", {}, 200),
        (root, f"{over.pk}/stream", "", had, 204),
        (root, "stream", f"task={over.pk}", had, 204),
        (root, "stream", "&".join(["task=x"] * 1001), {}, 400),
        (None, "stream", "all=1", {}, 401),
        (None, f"{task.pk}/stream", "", {}, 401),
        (root, f"{uuid.UUID(int=1)}/stream", "", {}, 404),
        (root, "stream", f"task={uuid.UUID(int=1)}", {}, 404),
        (root, "stream", "", {}, 422),
        (root, f"{task.pk}/stream", "", {"Last-Event-ID": "x"}, 422),
    ]:
        status, headers_received, _ = first(scope(user, path, query, headers=headers))
        assert status == expected, (path, query)
        answers = declared["stream" if path == "stream" else "{task_id}/stream"]
        kinds = answers[str(status)].get("content", {})
        assert not kinds or headers_received["content-type"] in kinds


def test_operations_with_changes_take_the_csrf_token() -> None:
    for operation in OPERATIONS:
        headers = {one["name"] for one in operation.definition.raw.get("parameters", [])}
        safe = operation.method.upper() == "GET"
        assert ("X-CSRFToken" in headers) is not safe, operation.label


def test_operations_are_complete() -> None:
    assert {operation.label.replace(API, "") for operation in OPERATIONS} == set(EXPECTED)
