"""The views that pages call: permissions and responses."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.test.utils import override_script_prefix
from django.urls import reverse
from django.utils import timezone

from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import TERMINAL, Status
from tasks_app.web import display
from tests.rows import claimed, ended, enqueued, fresh, last_fact, saved, snapshot, worker

pytestmark = pytest.mark.django_db

JSON = {"Accept": "application/json"}
NOT_FOUND = {"detail": "Task not found, or you don't have permission to view it."}


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def client_of(user: User | None, **options: Any) -> Client:
    client = Client(**options)
    if user is not None:
        client.force_login(user)
    return client


def permitted(*codenames: str) -> User:
    user = User.objects.create_user("permitted")
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="tasks_app", codename__in=codenames)
    )
    return user


def undated(response: Any) -> dict[str, Any]:
    """Return the JSON of a response without the server's time."""
    data: dict[str, Any] = response.json()
    assert timezone.now() - datetime.fromisoformat(data.pop("time")) < timedelta(minutes=1)
    return data


def status_of(task_id: uuid.UUID) -> str:
    return reverse("tasks_app:status", args=[task_id])


def cancel_of(task_id: uuid.UUID) -> str:
    return reverse("tasks_app:cancel", args=[task_id])


def test_script_gets_a_status_code_if_the_site_requires_a_login(ada: User, settings: Any) -> None:
    """A script without a session is not redirected to a login page, which it could not read."""
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    task = enqueued(owner=ada)
    query = f"?task={task.pk}"
    client = Client()
    assert client.get(status_of(task.pk)).status_code == 404
    assert client.get(reverse("tasks_app:statuses") + query).status_code == 403
    assert client.get(reverse("tasks_app:stream", args=[task.pk])).status_code == 501
    assert client.get(task.get_absolute_url()).status_code == 302


# Status of one task.


def test_status_of_own_task(ada: User) -> None:
    task = saved(Status.COMPLETED, owner=ada, result={"rows": 3})
    response = client_of(ada).get(status_of(task.pk))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert "no-store" in response.headers["Cache-Control"]
    assert undated(response) == task.info().model_dump(mode="json")
    assert response.json()["result"] == {"rows": 3}


def test_traceback_is_not_in_the_status(ada: User) -> None:
    task = saved(Status.FAILED, owner=ada, error_traceback="Traceback: secret")
    response = client_of(ada).get(status_of(task.pk))
    assert response.json()["error"] == {"type": None, "message": "The task failed."}
    assert b"secret" not in response.content


@pytest.mark.parametrize("role", ["nobody", "another", "canceller"])
def test_status_of_other_users_task_is_not_found(ada: User, role: str) -> None:
    task = saved(owner=ada)
    user = {
        "nobody": lambda: None,
        "another": lambda: User.objects.create_user("bob"),
        "canceller": lambda: permitted("cancel_task"),
    }[role]()
    response = client_of(user).get(status_of(task.pk))
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


def test_missing_task_gets_the_same_response(ada: User) -> None:
    response = client_of(ada).get(status_of(uuid.uuid4()))
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


def test_viewer_of_all_sees_other_users_task(ada: User) -> None:
    task = saved(owner=ada)
    assert client_of(permitted("view_task")).get(status_of(task.pk)).status_code == 200


# Statuses of many tasks.


def test_statuses_omit_other_users_tasks(ada: User) -> None:
    mine, other = saved(owner=ada), saved()
    third = saved(Status.COMPLETED, owner=ada)
    query = {"task": [str(mine.pk), str(other.pk), str(third.pk), str(uuid.uuid4())]}
    response = client_of(ada).get(reverse("tasks_app:statuses"), query)
    assert response.status_code == 200
    assert "no-store" in response.headers["Cache-Control"]
    found = {info["task_id"]: info for info in response.json()["tasks"]}
    assert found == {str(task.pk): task.info().model_dump(mode="json") for task in (mine, third)}


def test_long_wait_reports_a_missing_worker(
    ada: User,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It costs two queries, however many such tasks there are."""
    settings.DEBUG = True
    monkeypatch.setattr(display, "_warned", {})
    old = timedelta(seconds=11)
    mails = [saved(owner=ada, queue="mails", age=old) for _ in range(9)]
    others = [saved(owner=ada, age=old), saved(owner=ada), saved(Status.FAILED, owner=ada, age=old)]
    query = {"task": [str(task.pk) for task in mails + others]}

    def reported(user: User) -> list[Any]:
        tasks = client_of(user).get(reverse("tasks_app:statuses"), query).json()["tasks"]
        found = {info["task_id"]: info.get("no_worker") for info in tasks}
        return [found[str(task.pk)] for task in [mails[0], *others]]

    message = "Waiting for a worker"
    assert reported(ada) == [message, message, None, None]
    command = "Waiting for a worker. Start one: manage.py run_tasks"
    assert reported(permitted("view_task")) == [command, command, None, None]
    warning = "No worker runs tasks of queue default, mails. Start one: manage.py run_tasks"
    # and not for each request
    assert [record.getMessage() for record in caplog.records] == [warning]
    page = client_of(ada).get(mails[0].get_absolute_url()).content.decode()
    assert f'data-no-worker="{message}"' in page
    assert f'<span data-part="state" dir="auto">{message}</span>' in page
    worker(queues=["mails"])
    assert reported(ada) == ["", message, None, None]
    worker()
    assert reported(ada) == ["", "", None, None]
    assert "data-no-worker" not in client_of(ada).get(mails[0].get_absolute_url()).content.decode()


def test_statuses_need_a_login(ada: User) -> None:
    task = saved(owner=ada)
    response = client_of(None).get(reverse("tasks_app:statuses"), {"task": str(task.pk)})
    assert (response.status_code, response.json()) == (403, {"detail": "Log in to see tasks."})


def test_number_of_queries_for_statuses_is_constant(
    ada: User, django_assert_num_queries: Any
) -> None:
    client = client_of(ada)
    ids = [str(saved(owner=ada).pk) for _ in range(20)]
    with django_assert_num_queries(5):  # session, user, two for permissions, tasks
        response = client.get(reverse("tasks_app:statuses"), {"task": ids})
    assert len(response.json()["tasks"]) == 20


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({}, "Use exactly one of ?task=<id> (may be repeated), ?mine=1 and ?all=1."),
        ({"mine": "1"}, "Name at least one task by ?task=<id>; repeat it for more tasks."),
        ({"all": "1"}, "Name at least one task by ?task=<id>; repeat it for more tasks."),
        (
            {"task": "7"},
            "A task ID must be a UUID, such as 4b989876-840f-48f8-84a9-bfd1b9303794.",
        ),
        (
            {"task": [str(uuid.uuid4()) for _ in range(4)]},
            "4 tasks requested, but at most 3 are allowed (TASK_STREAM_MAX_TASKS). "
            "Send several requests.",
        ),
    ],
)
def test_invalid_statuses_query_is_refused(
    ada: User, settings: Any, query: Any, detail: str
) -> None:
    settings.TASK_STREAM_MAX_TASKS = 3
    response = client_of(ada).get(reverse("tasks_app:statuses"), query)
    assert (response.status_code, response.json()) == (400, {"detail": detail})


# Cancel.


def test_script_cancels_and_gets_json(ada: User) -> None:
    task = enqueued(owner=ada)
    response = client_of(ada).post(cancel_of(task.pk), headers=JSON)
    assert response.status_code == 200
    assert undated(response) == fresh(task).info().model_dump(mode="json")
    assert response.json()["status"] == "cancelled"
    assert last_fact(task).data == {"by": "ada"}


def test_cancel_of_running_task_is_a_request(ada: User) -> None:
    task, _ = claimed(owner=ada)
    response = client_of(ada).post(cancel_of(task.pk), headers=JSON)
    assert (response.json()["status"], response.json()["cancel_requested"]) == ("running", True)


def test_user_with_permission_cancels_other_users_task(ada: User) -> None:
    task = enqueued(owner=ada)
    response = client_of(permitted("cancel_task")).post(cancel_of(task.pk), headers=JSON)
    assert response.status_code == 200
    assert fresh(task).status == Status.CANCELLED
    assert last_fact(task).data == {"by": "permitted"}


@pytest.mark.parametrize("headers", [JSON, {}])
@pytest.mark.parametrize("role", ["nobody", "another", "viewer"])
def test_user_without_permission_cannot_cancel(
    ada: User, role: str, headers: dict[str, str]
) -> None:
    task = enqueued(owner=ada)
    user = {
        "nobody": lambda: None,
        "another": lambda: User.objects.create_user("bob"),
        "viewer": lambda: permitted("view_task", "change_task", "delete_task"),
    }[role]()
    before = snapshot()
    response = client_of(user).post(cancel_of(task.pk), headers=headers)
    assert response.status_code == 404
    if headers == JSON:
        assert response.json() == NOT_FOUND
    assert snapshot() == before


def test_anonymous_user_cannot_cancel_a_task_without_owner() -> None:
    task = enqueued()
    assert client_of(None).post(cancel_of(task.pk)).status_code == 404
    assert fresh(task).status == Status.PENDING


def test_missing_task_cannot_be_cancelled(ada: User) -> None:
    response = client_of(ada).post(cancel_of(uuid.uuid4()), headers=JSON)
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_cancel_of_finished_task_is_a_conflict(ada: User, status: Status) -> None:
    task = ended(status, owner=ada)
    before = snapshot()
    response = client_of(ada).post(cancel_of(task.pk), headers=JSON)
    assert response.status_code == 409
    assert undated(response) == task.info().model_dump(mode="json")
    assert snapshot() == before


def test_task_deleted_during_the_cancel_is_not_found(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ended(Status.COMPLETED, owner=ada)
    cancel = task_service.cancel_task

    def cancel_and_delete(task_id: uuid.UUID, **options: Any) -> Any:
        try:
            return cancel(task_id, **options)
        finally:
            Task.objects.filter(pk=task_id).delete()

    monkeypatch.setattr("tasks_app.web.views.task_service.cancel_task", cancel_and_delete)
    response = client_of(ada).post(cancel_of(task.pk), headers=JSON)
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


def test_cancel_needs_csrf_token(ada: User) -> None:
    task = enqueued(owner=ada)
    client = client_of(ada, enforce_csrf_checks=True)
    assert client.post(cancel_of(task.pk), headers=JSON).status_code == 403
    assert fresh(task).status == Status.PENDING
    client.get(reverse("home"))
    token = client.cookies["csrftoken"].value
    headers = JSON | {"X-CSRFToken": token}
    assert client.post(cancel_of(task.pk), headers=headers).status_code == 200


HOME = "http://testserver/tasks/"


@pytest.mark.parametrize(
    ("following", "referer", "location"),
    [
        ("/tasks/?page=2", None, "/tasks/?page=2"),
        ("/tasks/", HOME, "/tasks/"),
        (HOME, None, HOME),
        (None, HOME, HOME),
        ("", HOME, HOME),
        (None, None, "/"),
        ("https://evil.example/", None, "/"),
        ("https://evil.example/", "/here/", "/here/"),
        ("//evil.example/", None, "/"),
        ("/\\evil.example/", None, "/"),
        ("https:///evil.example/", None, "/"),
        ("javascript:alert(1)", None, "/"),
        ("http://testserver@evil.example/", None, "/"),
        (None, "https://evil.example/", "/"),
        ("\0/", None, "/"),
    ],
)
def test_form_redirects_only_within_this_site(
    ada: User, following: str | None, referer: str | None, location: str
) -> None:
    task = enqueued(owner=ada)
    response = client_of(ada).post(
        cancel_of(task.pk),
        {} if following is None else {"next": following},
        headers={"Accept": "text/html"} | ({"Referer": referer} if referer else {}),
    )
    assert (response.status_code, response.headers["Location"]) == (302, location)
    assert fresh(task).status == Status.CANCELLED


def test_https_page_does_not_redirect_to_http(ada: User) -> None:
    task = enqueued(owner=ada)
    response = client_of(ada).post(cancel_of(task.pk), {"next": HOME}, secure=True)
    assert response.headers["Location"] == "/"


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_late_cancel_form_redirects_too(ada: User, status: Status) -> None:
    task = ended(status, owner=ada)
    response = client_of(ada).post(
        cancel_of(task.pk), {"next": "/tasks/"}, headers={"Accept": "text/html"}
    )
    assert (response.status_code, response.headers["Location"]) == (302, "/tasks/")


# Methods.


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
@pytest.mark.parametrize("name", ["status", "statuses"])
def test_statuses_are_read_only(ada: User, name: str, method: str) -> None:
    task = saved(owner=ada)
    url = reverse(f"tasks_app:{name}", args=[task.pk] if name == "status" else [])
    response = getattr(client_of(ada), method)(url)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
    assert client_of(ada).head(url, {"task": str(task.pk)}).status_code == 200


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_cancel_requires_post(ada: User, method: str) -> None:
    task = enqueued(owner=ada)
    response = getattr(client_of(ada), method)(cancel_of(task.pk))
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert fresh(task).status == Status.PENDING


@pytest.mark.parametrize("name", ["stream", "streams"])
def test_streams_need_asgi(ada: User, name: str) -> None:
    task = saved(owner=ada)
    url = reverse(f"tasks_app:{name}", args=[task.pk] if name == "stream" else [])
    response = client_of(ada).get(url)
    assert (response.status_code, response.headers["Content-Type"]) == (501, "text/plain")
    assert response.content == b"Streams need ASGI. Serve this site with uvicorn or daphne."


def test_urls() -> None:
    task_id = uuid.UUID(int=0)
    assert {
        name: reverse(f"tasks_app:{name}", args=args)
        for name, args in (
            ("streams", []),
            ("statuses", []),
            ("stream", [task_id]),
            ("status", [task_id]),
            ("cancel", [task_id]),
        )
    } == {
        "streams": "/tasks/stream/",
        "statuses": "/tasks/status/",
        "stream": f"/tasks/{task_id}/stream/",
        "status": f"/tasks/{task_id}/status/",
        "cancel": f"/tasks/{task_id}/cancel/",
    }


# Permission to cancel does not include permission to view.

VISIBLE_TO_CANCELLER = {"task_id", "status", "cancel_requested"}


def test_canceller_gets_only_the_status(ada: User) -> None:
    task, _ = claimed(owner=ada, params={"token": "secret"})
    response = client_of(permitted("cancel_task")).post(cancel_of(task.pk), headers=JSON)
    assert response.status_code == 200
    assert undated(response) == {
        "task_id": str(task.pk),
        "status": "running",
        "cancel_requested": True,
    }


def test_canceller_does_not_get_the_result(ada: User) -> None:
    task = saved(Status.COMPLETED, owner=ada, result="secret", progress_text="secret")
    response = client_of(permitted("cancel_task")).post(cancel_of(task.pk), headers=JSON)
    assert (response.status_code, set(undated(response))) == (409, VISIBLE_TO_CANCELLER)
    assert b"secret" not in response.content


@pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED])
def test_canceller_who_may_view_gets_everything(ada: User, status: Status) -> None:
    task = saved(status, owner=ada)
    user = permitted("cancel_task", "view_task")
    response = client_of(user).post(cancel_of(task.pk), headers=JSON)
    assert set(undated(response)) == set(task.info().model_dump())


def test_more_fields_than_django_allows_are_refused(ada: User) -> None:
    url = reverse("tasks_app:statuses") + "?" + "&".join(["task=x"] * 1001)
    assert client_of(ada).get(url).status_code == 400


@pytest.mark.parametrize("view", ["cancel", "retry"])
def test_redirect_keeps_the_script_prefix(ada: User, view: str) -> None:
    """A browser need not send a Referer."""
    ada.user_permissions.set(Permission.objects.filter(codename="retry_task"))
    url, client = f"/tasks/{enqueued(owner=ada).pk}/{view}/", client_of(ada)
    with override_script_prefix("/app/"):
        answer = client.post(url, headers={"Accept": "text/html"})
    assert answer.headers["Location"] == "/app/"
