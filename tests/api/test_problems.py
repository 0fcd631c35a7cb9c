"""A program gets JSON that says what is wrong, for every kind of bad request."""

from __future__ import annotations

import io
import json
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError, connection
from django.http import Http404, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.test import Client, RequestFactory, override_settings
from ninja.errors import HttpError

from tasks_app.api.bodies import read
from tasks_app.api.problems import Problem
from tasks_app.api.urls import api
from tasks_app.models import Task
from tasks_app.service import TaskService
from tests.api.asking import API, GREET, client_of, problem, someone, start
from tests.rows import enqueued

pytestmark = pytest.mark.django_db

TOKEN = "t" * 32


class Unread:
    """A body that must not be read."""

    def read(self, *_: Any) -> bytes:
        raise AssertionError("the body was read")

    readline = read


@pytest.fixture
def ada() -> User:
    return someone("start_task")


@pytest.fixture
def client(ada: User) -> Client:
    return client_of(ada)


@pytest.fixture(params=[True, False], ids=["debug", "no-debug"])
def debug(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.DEBUG = request.param


# Paths and methods.


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "7",
        "7/status",
        f"{uuid.UUID(int=1)}/",
        f"{uuid.UUID(int=1)}/stop",
        "docs/",
        "é",
        "a/b/c",
    ],
)
@pytest.mark.parametrize("method", ["get", "post", "delete"])
def test_unknown_path_is_a_problem(client: Client, path: str, method: str) -> None:
    client.handler.enforce_csrf_checks = True
    response = getattr(client, method)(API + path)
    assert problem(response, 404) == {"detail": "There is no API endpoint at this path."}


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("", "GET, POST, HEAD"),
        ("stream", "GET"),
        (str(uuid.UUID(int=1)), "DELETE, GET, HEAD"),
        (f"{uuid.UUID(int=1)}/status", "GET, HEAD"),
        (f"{uuid.UUID(int=1)}/stream", "GET"),
        (f"{uuid.UUID(int=1)}/cancel", "POST"),
    ],
)
def test_wrong_method_is_a_problem(client: Client, path: str, methods: str) -> None:
    response = client.put(API + path)
    assert set(response["Allow"].split(", ")) == set(methods.split(", "))
    assert problem(response, 405)["detail"].startswith("PUT is not allowed at this path. Use ")


@pytest.mark.parametrize("what", ["", "{}", "{}/status", "{}/events", "openapi.json", "docs"])
def test_head_is_get_without_a_body(ada: User, client: Client, what: str) -> None:
    path = API + what.format(enqueued(owner=ada).pk)
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head["Content-Type"] == get["Content-Type"]
    problem(client.get(f"{API}{uuid.UUID(int=1)}"), 404)
    assert client.head(f"{API}{uuid.UUID(int=1)}").status_code == 404
    assert client.head(f"{API}{uuid.UUID(int=1)}/cancel").status_code == 405


# Bodies.


@pytest.mark.parametrize(
    "body",
    [
        " ",
        "{",
        "nonsense",
        "{'task': 1}",
        b"\xff\xfe\xff",
        b'{"task": "\xff"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"task": ' + "9" * 5000 + "}",
    ],
)
def test_invalid_json_is_a_bad_request(client: Client, body: Any) -> None:
    assert problem(start(client, body), 400)["detail"].startswith("The body is not valid JSON: ")


KINDS = [
    "",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=\xe9",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=latin-1",
    "x" * 999,
]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_content_type_is_refused(ada: User, kind: str) -> None:
    client = client_of(ada, enforce_csrf_checks=True)
    client.cookies["csrftoken"] = TOKEN
    body = problem(
        start(client, json.dumps(GREET), content_type=kind, headers={"X-CSRFToken": TOKEN}), 415
    )
    assert "must be application/json" in body["detail"]
    assert len(body["detail"]) < 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["", "wrong", TOKEN])
def test_body_is_not_read_for_authentication(ada: User, kind: str, token: str) -> None:
    """A form in it may be long or broken, and a CSRF token in it does not count."""
    client = client_of(ada, enforce_csrf_checks=True)
    client.cookies["csrftoken"] = TOKEN
    task = enqueued(owner=ada)
    response = client.generic(
        "POST",
        f"{API}{task.pk}/cancel",
        f"csrfmiddlewaretoken={TOKEN}",
        content_type=kind,
        headers={"X-CSRFToken": token} if token else {},
        **{"wsgi.input": Unread()},
    )
    if token == TOKEN:
        assert response.status_code == 200
    else:
        assert "X-CSRFToken" in problem(response, 403)["detail"]


def test_charset_parameter_is_accepted(client: Client) -> None:
    response = start(client, content_type="application/json; charset=utf-8")
    assert response.status_code == 202


def test_body_has_a_maximum_size(client: Client) -> None:
    body = json.dumps(GREET)
    with override_settings(TASK_API_MAX_BODY_BYTES=len(body) - 1):
        assert problem(start(client, body), 413) == {
            "detail": f"The body has {len(body)} bytes, but at most {len(body) - 1} are allowed."
        }
    with override_settings(TASK_API_MAX_BODY_BYTES=len(body)):
        assert start(client, body).status_code == 202


def test_maximum_size_holds_even_if_content_length_is_wrong(settings: Any) -> None:
    """A server may not check that the body has the declared length."""
    settings.TASK_API_MAX_BODY_BYTES = 1000
    headers = [(b"content-length", b"5"), (b"content-type", b"application/json")]
    scope = {"method": "POST", "path": API, "headers": headers}
    with pytest.raises(Problem) as refused:
        read(ASGIRequest(scope, io.BytesIO(b'"%s"' % (b"x" * 100_000))))
    assert refused.value.status_code == 413
    assert "100,002 bytes" in str(refused.value)


def test_sites_own_limit_holds_too(client: Client) -> None:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10):
        problem(start(client), 413)


@pytest.mark.parametrize("length", [None, "", "x", "-1", "1" * 19, "1" * 5000])
@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}])
def test_body_without_a_length_is_not_read(
    client: Client, headers: dict[str, str], length: str | None
) -> None:
    """Over HTTP/2 the length and Transfer-Encoding may both be missing."""
    more: dict[str, Any] = {} if length is None else {"CONTENT_LENGTH": length}
    response = client.generic(
        "POST", API, b"", content_type="application/json", headers=headers, **more
    )
    assert problem(response, 411)["detail"] == (
        "Send the length of the body in the Content-Length header."
    )


def test_more_fields_than_django_allows_are_refused(client: Client) -> None:
    assert problem(client.get(API + "?" + "&".join(["status=failed"] * 1001)), 400)["detail"]


# Values that databases, JSON or Python cannot handle. They may only be refused.


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "a\0b",
        "\ud800",
        {"\0": 1},
        {"\ud800": 1},
        float("nan"),
        float("inf"),
        10**400,
        -(10**4200),
        nested(50),
        nested(240),
        nested(300),
        nested(900),
        ["x" * 1_100_000],
        {"k" * 100_000: 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_start_a_task_or_are_refused(client: Client, value: Any) -> None:
    response = start(client, {"task": "tests.api.tasks.Anything", "params": {"value": value}})
    if response.status_code == 202:
        stored = Task.objects.get()
        assert stored.params == {"value": value}
    else:
        body = problem(response, 422 if "no JSON" not in response.content.decode() else 400)
        body["detail"].encode()
        assert not Task.objects.exists()


@pytest.mark.parametrize("field", ["task", "unique_key", "run_after", "params", "\0", "\ud800"])
@pytest.mark.parametrize(
    "value",
    ["a\0b", "\ud800", "x" * 100_000, 10**400, nested(50), None, ""],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_in_any_field_are_reported(client: Client, field: str, value: Any) -> None:
    if value is None and field in ("unique_key", "run_after"):
        return
    body = problem(start(client, GREET | {field: value}), 422)
    # Pydantic cannot read a field name with a lone surrogate.
    assert set(body["errors"]) == {field.replace("\0", "\ufffd").replace("\ud800", "")}
    body["detail"].encode()


@pytest.mark.parametrize("name", ["\0", "tests\0", "é.ü", "a" * 200, "..", ".", "a." * 90, "\n"])
def test_odd_task_names_are_unknown(client: Client, name: str) -> None:
    assert problem(start(client, {"task": name}), 422)["errors"].keys() == {"task"}


# Server errors.


@pytest.mark.usefixtures("debug")
def test_server_error_hides_its_text(
    ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is sesame")

    reported: list[Any] = []

    def report(**kwargs: Any) -> None:
        reported.append(kwargs["request"])

    monkeypatch.setattr(TaskService, "cancel_task", broken)
    got_request_exception.connect(report)
    client = client_of(ada, raise_request_exception=False)
    try:
        response = client.post(f"{API}{enqueued(owner=ada).pk}/cancel")
    finally:
        got_request_exception.disconnect(report)
    assert problem(response, 500) == {
        "detail": "Internal error. It has been logged. Try again later."
    }
    assert reported == [response.wsgi_request]
    [record] = [record for record in caplog.records if record.exc_info]
    assert (record.name, record.levelname) == ("django.request", "ERROR")
    assert "the password is sesame" in caplog.text


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
@pytest.mark.parametrize("table", ["django_session", "tasks_app_task"])
def test_database_outage_is_a_problem(
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
    table: str,
) -> None:
    client = client_of(ada)

    def away(execute: Any, sql: str, *more: Any) -> Any:
        if table in sql:
            raise kind("connection refused")
        return execute(sql, *more)

    with connection.execute_wrapper(away):
        response = client.get(API)
    assert response["Retry-After"] == "5"
    assert problem(response, 503) == {"detail": "The database does not answer. Try again later."}
    [record] = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert (record.levelname, record.exc_info) == ("WARNING", None)


@pytest.mark.parametrize("error", [RuntimeError(), OperationalError("a\nb")])
def test_path_cannot_forge_log_lines(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A site may put its own prefix before the API's path, with any characters."""
    api.on_exception(RequestFactory().get("/x%0AERROR forged/api/tasks/"), error)
    [record] = caplog.records
    assert record.getMessage().endswith(r": /x\nERROR forged/api/tasks/")
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (Http404("x"), 404, "Task not found, or you don't have permission to view it."),
        (PermissionDenied(), 403, "You don't have permission to do this."),
        (PermissionDenied("Pay first."), 403, "Pay first."),
        (UnreadablePostError("gone"), 400, "gone"),
        (BadRequest("odd"), 400, "odd"),
        (MultiPartParserError("no boundary"), 400, "no boundary"),
        (Problem(418, "Teapot.", headers={"X-Tea": "1"}), 418, "Teapot."),
        (Problem(499, "Too late."), 499, "Too late."),
        (HttpError(599, "Far away."), 599, "Far away."),
    ],
)
def test_error_of_a_sites_own_service_is_a_problem(
    ada: User,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    detail: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(TaskService, "cancel_task", refuse)
    response = client.post(f"{API}{enqueued(owner=ada).pk}/cancel")
    assert problem(response, status) == {"detail": detail}
    assert response.get("X-Tea") == ("1" if status == 418 else None)


@pytest.mark.parametrize(
    "error",
    [RuntimeError(), OperationalError(), Http404(), PermissionDenied(), Problem(409, "No.")],
    ids=lambda error: type(error).__name__,
)
def test_error_rolls_the_request_back(
    ada: User, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As in any view with ATOMIC_REQUESTS."""
    start_task = TaskService.start_task

    def started(self: TaskService, *given: Any, **options: Any) -> None:
        start_task(self, *given, **options)
        raise error

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    client = client_of(ada, raise_request_exception=False)
    assert start(client).status_code == 202
    monkeypatch.setattr(TaskService, "start_task", started)
    assert start(client).status_code >= 400
    assert Task.objects.count() == 1


def test_problem_may_have_more_fields() -> None:
    response = Problem(409, "Busy.", task=uuid.UUID(int=7)).response(RequestFactory().get("/x"))
    assert json.loads(response.content)["task"] == "00000000-0000-0000-0000-000000000007"
