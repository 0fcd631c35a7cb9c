"""The page of one task, and retrying it from there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import include, path, reverse
from pytest_django import Settings

from project.middleware import POLICY
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tasks_app.store import lifecycle
from tasks_app.tasks.progress import LogLine
from tests.rows import claimed, ended, enqueued, saved, snapshot

#: A site that includes only the app's URLs.
urlpatterns = [path("tasks/", include("tasks_app.urls"))]

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

JSON = {"Accept": "application/json"}
NOT_FOUND = {"detail": "Task not found, or you don't have permission to view it."}
XSS = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _no_templates_of_a_site(settings: Settings) -> None:
    [engine] = settings.TEMPLATES
    settings.TEMPLATES = [engine | {"DIRS": []}]


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def permitted(*codenames: str) -> User:
    user = User.objects.create_user("permitted")
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="tasks_app", codename__in=codenames)
    )
    return user


def page_of(task: Task) -> str:
    return reverse("tasks_app:task", args=[task.pk])


def retry_of(task: Task) -> str:
    return reverse("tasks_app:retry", args=[task.pk])


# The page.


def test_owner_sees_a_card(ada: User) -> None:
    task = enqueued(owner=ada)
    assert page_of(task) == task.get_absolute_url()
    response = client_of(ada).get(page_of(task))
    text = response.content.decode()
    assert text.count('data-form="card"') == 1
    assert "<h1>Noop</h1>" in text
    assert 'class="back"' not in text
    # A standalone page that needs only files of this site.
    assert text.startswith("<!doctype html>")
    assert "<style" not in text
    assert response["Content-Security-Policy"] == POLICY


def test_viewer_sees_the_page_and_others_do_not(ada: User) -> None:
    task = enqueued(owner=ada)
    assert client_of(permitted("view_task")).get(page_of(task)).status_code == 200
    bob = User.objects.create_user("bob")
    assert client_of(bob).get(page_of(task)).status_code == 404
    missing = reverse("tasks_app:task", args=[uuid.uuid4()])
    assert client_of(bob).get(missing).status_code == 404


def test_anonymous_user_is_redirected_to_login(settings: Settings, ada: User) -> None:
    settings.LOGIN_URL = "/login/"
    for url in (page_of(enqueued(owner=ada)), reverse("tasks_app:task", args=[uuid.uuid4()])):
        assert Client().get(url)["Location"] == f"/login/?next={url}"


@pytest.mark.parametrize(
    ("back", "accepted"),
    [
        ("/admin/?q=1&p=2", True),
        ("http://testserver/there/", True),
        ("https://elsewhere.example/", False),
        ("//elsewhere.example/", False),
        ("javascript:alert(1)", False),
        ("", False),
    ],
)
def test_back_link_leads_only_to_this_site(ada: User, back: str, accepted: bool) -> None:
    response = client_of(ada).get(page_of(enqueued(owner=ada)), {"next": back})
    assert response.context["back"] == (back if accepted else "")
    assert ('class="back"' in response.content.decode()) is accepted


def test_site_overrides_the_base_template(ada: User, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "tasks_app").mkdir()
    (tmp_path / "tasks_app" / "base.html").write_text(
        "<title>{% block title %}{% endblock %}</title>OURS{% block content %}{% endblock %}"
    )
    [engine] = settings.TEMPLATES
    settings.TEMPLATES = [engine | {"DIRS": [tmp_path]}]
    text = client_of(ada).get(page_of(enqueued(owner=ada))).content.decode()
    assert "OURS" in text
    assert "task-page.css" not in text
    assert 'data-form="card"' in text


def test_card_is_escaped(ada: User) -> None:
    task, claim = claimed(owner=ada, name=XSS)
    lifecycle.log({claim: [LogLine(XSS, XSS)]})
    lifecycle.complete({claim: {"x": XSS}})
    text = client_of(ada).get(page_of(task)).content.decode()
    assert XSS not in text
    assert "&lt;script&gt;" in text


# Retry.


def test_retry_redirects_to_the_new_task(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada)
    user = permitted("retry_task", "view_task")
    assert 'data-part="retry"' in client_of(user).get(page_of(task)).content.decode()
    response = client_of(user).post(retry_of(task))
    new = Task.objects.get(retried_from=task)
    assert (response.status_code, response["Location"]) == (302, page_of(new))
    assert new.owner == ada
    text = client_of(user).get(page_of(task)).content.decode()
    assert f'<a data-part="retried" href="{page_of(new)}">' in text
    assert 'data-part="retry"' not in text


def test_next_of_a_form_is_followed(ada: User) -> None:
    user = permitted("retry_task")
    first, second = ended(Status.FAILED, owner=ada), ended(Status.FAILED, owner=ada)
    there = client_of(user).post(retry_of(first), {"next": "/there/"})
    assert there["Location"] == "/there/"
    # This user may not see the new task's page, so the redirect leads elsewhere.
    away = client_of(user).post(retry_of(second), {"next": "https://elsewhere.example/"})
    assert away["Location"] == "/"


def test_script_gets_json(ada: User) -> None:
    task = ended(Status.CANCELLED, owner=ada)
    response = client_of(permitted("retry_task")).post(retry_of(task), headers=JSON)
    new = Task.objects.get(retried_from=task)
    assert response.status_code == 202
    assert response.json() == new.started().model_dump(mode="json")


def test_second_retry_leads_to_the_first(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada)
    client = client_of(permitted("retry_task", "view_task"))
    client.post(retry_of(task))
    new = Task.objects.get(retried_from=task)
    assert client.post(retry_of(task))["Location"] == page_of(new)
    response = client.post(retry_of(task), headers=JSON)
    assert response.status_code == 409
    assert response.json()["task"] == str(new.pk)
    assert Task.objects.count() == 2


def test_new_task_is_hidden_from_users_who_may_not_see_it(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada)
    client = client_of(permitted("retry_task"))
    client.post(retry_of(task))
    new = Task.objects.get(retried_from=task)
    response = client.post(retry_of(task), headers=JSON)
    assert response.status_code == 409
    assert str(new.pk) not in response.content.decode()


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.COMPLETED])
def test_task_that_did_not_fail_cannot_be_retried(ada: User, status: Status) -> None:
    task = saved(status, owner=ada)
    client = client_of(permitted("retry_task", "view_task"))
    before = snapshot()
    assert client.post(retry_of(task), headers=JSON).status_code == 409
    response = client.post(retry_of(task), headers={"Referer": "http://testserver/from/"})
    assert response["Location"] == "http://testserver/from/"
    [message] = get_messages(response.wsgi_request)
    word = "already" if status.is_terminal else "still"
    assert str(message) == f"Couldn't do that: {word} {status}."
    assert snapshot() == before


def test_duplicate_is_reported(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada, unique_key="one")
    enqueued(owner=ada, unique_key="one")
    client = client_of(permitted("retry_task"))
    response = client.post(retry_of(task), headers=JSON)
    assert (response.status_code, "has not finished" in response.json()["detail"]) == (409, True)
    [message] = get_messages(client.post(retry_of(task)).wsgi_request)
    assert str(message) == ("Couldn't do that: another task with its unique key has not finished.")


@pytest.mark.parametrize("sees", [True, False])
def test_unique_key_is_shown_only_to_users_who_may_see_the_task(ada: User, sees: bool) -> None:
    task = ended(Status.FAILED, owner=ada, unique_key="pay of bob")
    other = enqueued(owner=ada, unique_key="pay of bob")
    client = client_of(permitted("retry_task", *(["view_task"] if sees else [])))
    answer = client.post(retry_of(task), headers=JSON).json()
    assert ("pay of bob" in str(answer)) is sees
    assert answer.get("task") == (str(other.pk) if sees else None)


@pytest.mark.parametrize("role", ["nobody", "another", "owner", "viewer"])
def test_retry_without_permission_gives_404(ada: User, role: str) -> None:
    """This includes the owner, unless the task class allows a start over HTTP."""
    task = ended(Status.FAILED, owner=ada)
    client: Any = {
        "nobody": Client,
        "another": lambda: client_of(User.objects.create_user("bob")),
        "owner": lambda: client_of(ada),
        "viewer": lambda: client_of(permitted("view_task")),
    }[role]()
    before = snapshot()
    response = client.post(retry_of(task), headers=JSON)
    assert (response.status_code, response.json()) == (404, NOT_FOUND)
    assert client.post(retry_of(task)).status_code == 404
    assert snapshot() == before


def test_retry_needs_csrf_token_and_post(ada: User) -> None:
    task = ended(Status.FAILED, owner=ada)
    client = Client(enforce_csrf_checks=True)
    client.force_login(permitted("retry_task"))
    assert client.post(retry_of(task)).status_code == 403
    assert client.get(retry_of(task)).status_code == 405
    assert Task.objects.count() == 1


def test_task_deleted_during_the_retry_is_not_found(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ended(Status.FAILED, owner=ada)
    real = task_service.retry_task

    def removed(task_id: uuid.UUID, **options: Any) -> Any:
        Task.objects.filter(pk=task_id).delete()
        return real(task_id, **options)

    monkeypatch.setattr("tasks_app.web.views.task_service.retry_task", removed)
    client = client_of(permitted("retry_task"))
    assert client.post(retry_of(task), headers=JSON).status_code == 404
