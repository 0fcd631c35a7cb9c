"""The API's page: its commands run, and its token example works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from http import HTTPStatus
from types import ModuleType

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import include, path

from tasks_app.api import urls as api_urls
from tasks_app.api.payloads import PAGE, PAGE_MAX, Filters, StartRequest
from tasks_app.models import Task
from tests.docs.pages import ROOT, code, section, snippets, table
from tests.harness import PATIENCE, Web

PAGE_ON_API = ROOT / "docs" / "api.md"


@pytest.mark.once
@pytest.mark.django_db(transaction=True)
def test_commands_of_the_page_run(start_web: Callable[..., Web]) -> None:
    User.objects.create_superuser("demo", password="demo-airports")
    blocks = [snippet.text for snippet in snippets(PAGE_ON_API, "sh")]
    script = "set -eu -o pipefail\n" + "echo '=== next'\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        env={"SITE": start_web().url, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        text=True,
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = done.stdout.split("=== next\n")
    login, start, again, acts, turned, history, removed, stream, wrong = answers
    assert json.loads(login) == {"tasks": [], "next": None}
    assert start.startswith("HTTP/1.1 202")
    assert re.search(r"(?mi)^location: /api/tasks/[0-9a-f-]{36}/status$", start)
    assert again.strip().lower() == "idempotent-replayed: true"
    status, cancelled, retried = acts.splitlines()
    assert json.loads(status)["status"] == "pending"
    assert json.loads(cancelled)["status"] == "cancelled"
    assert json.loads(retried)["status"] == "pending"
    assert removed == "204\n"
    assert json.loads(turned)["next"] is None
    assert json.loads(history)["events"][0]["event_type"] == "task_queued"
    assert "event: task_status" in stream
    [example] = snippets(PAGE_ON_API, "json")
    # Python 3.13 has another phrase for this status.
    title = {"title": HTTPStatus(422).phrase}
    assert json.loads(wrong) == json.loads(example.text) | title
    assert Task.objects.count() == 1


@pytest.mark.django_db
def test_token_example_authenticates() -> None:
    [snippet] = [one for one in snippets(PAGE_ON_API, "python") if one.file == "shop/auth.py"]
    shop, auth, urls = (ModuleType(name) for name in ("shop", "shop.auth", "shop.urls"))
    shop.auth = auth  # type: ignore[attr-defined]
    modules = {module.__name__: module for module in (shop, auth, urls)}
    sys.modules.update(modules)
    try:
        exec(snippet.text, auth.__dict__)
        [line] = [
            one.text for one in snippets(PAGE_ON_API, "python") if "TASK_API_AUTH" in one.text
        ]
        names: dict[str, list[str]] = {}
        exec(line, names)
        with override_settings(TASK_API_AUTH=names["TASK_API_AUTH"], ROOT_URLCONF="shop.urls"):
            patterns = api_urls.patterns(api_urls.build("shop"))
            urls.urlpatterns = [path("", include((patterns, "shop")))]  # type: ignore[attr-defined]
            ada = User.objects.create_user("ada")
            client = Client(enforce_csrf_checks=True)
            bearer = {"Authorization": f"Bearer {auth.token_of(ada)}"}
            assert client.get("/", headers=bearer).json() == {"tasks": [], "next": None}
            assert client.get("/", headers={"Authorization": "Bearer x"}).status_code == 401
            # Not stopped by the CSRF check; refused because of the missing permission.
            sent = client.post("/", {"task": "x"}, content_type="application/json", headers=bearer)
            assert sent.json()["detail"] == "You don't have permission to start tasks."
    finally:
        for name in modules:
            del sys.modules[name]


def test_fields_of_a_start_are_documented() -> None:
    rows = table(PAGE_ON_API, "Starting a task")
    assert [code(row[0])[0] for row in rows] == list(StartRequest.model_fields)


def test_parameters_of_a_list_are_documented() -> None:
    documented = {name for row in table(PAGE_ON_API, "Lists") for name in code(row[0])}
    assert documented == set(Filters.model_fields)
    assert f"{PAGE} by default, from 1 to {PAGE_MAX}" in section(PAGE_ON_API, "Lists")


def test_operations_are_documented() -> None:
    documented = [one for row in table(PAGE_ON_API, "Operations") for one in code(row[0])]
    schema = api_urls.api.get_openapi_schema()
    existing = {
        f"{method.upper()} /{path.removeprefix('/api/tasks/').replace('task_id', 'id')}"
        for path, methods in schema["paths"].items()
        for method in methods
    }
    assert {one.partition("?")[0] for one in documented} == existing


def test_errors_are_documented() -> None:
    documented = {
        status for row in table(PAGE_ON_API, "Errors") for status in re.findall(r"\d{3}", row[0])
    }
    schema = api_urls.api.get_openapi_schema()
    declared = {
        str(status)
        for methods in schema["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
        if int(status) >= 400
    }
    # Any operation may return them, so none declares them.
    assert documented == declared | {"405", "500"}
